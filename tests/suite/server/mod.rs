//! The engine and the server: a real HTTP client against the real server, with a stub in the model's place; in `embedded`
//! the shipped program with the embedded model.

mod access;
mod adapter;
mod audit;
mod binary;
mod certificates;
mod connections;
mod contract;
mod demo;
mod documents;
mod draining;
mod embedded;
mod engine;
mod leaving;
mod limits;
mod memory;
mod metrics;
mod openai;
mod operations;
mod preparing;
mod raw;
mod slow_readers;
mod streaming;
mod support;
mod tls;
mod tls_programs;
mod together;
mod tracing;
