//! One file a room.

mod cli;
mod server;
