//! One file a room.

mod adapters;
mod allocation;
mod bad_input;
mod batch;
mod benchmarks;
mod cli;
mod distributed;
mod doctor;
mod documents;
mod environment;
mod generation;
mod gpu;
mod hub;
mod images;
mod linking;
mod model;
mod pipeline;
mod prepare;
mod program;
mod quant;
mod records;
mod rendering;
mod report;
mod server;
mod text;
mod trace;
