//! One file a room.

mod cli;
