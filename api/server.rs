//! The REST server.

fn main() {}
