//! One file a room.

mod allocation;
mod cli;
mod documents;
mod environment;
mod generation;
mod hub;
mod images;
mod linking;
mod model;
mod quant;
mod records;
mod report;
mod server;
mod text;
