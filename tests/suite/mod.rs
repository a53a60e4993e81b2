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
mod prepare;
mod quant;
mod records;
mod rendering;
mod report;
mod server;
mod text;
