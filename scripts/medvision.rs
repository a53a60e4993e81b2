//! The command line: extract, trace, doctor.

use std::process::ExitCode;

fn main() -> ExitCode {
    medical_vision::commands::main()
}
