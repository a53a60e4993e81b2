//! One file a room.

mod allocation;
mod cli;
mod images;
mod linking;
mod server;
