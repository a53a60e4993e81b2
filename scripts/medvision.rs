//! The command line: extract, trace, doctor.

fn main() {}
