//! The engine and the server: a real HTTP client against the real server, with a stub in the model's place.

mod binary;
mod contract;
mod engine;
mod leaving;
mod limits;
mod raw;
mod support;
