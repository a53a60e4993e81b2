//! The engine and the server: a real HTTP client against the real server, with a stub in the model's place.

mod engine;
#[allow(dead_code, reason = "the server's tests use it once pictures can be decoded")]
mod support;
