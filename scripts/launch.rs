//! The start of every program but `medvision`, which is all of them in one file: one binary with libtorch to link, store and copy.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// Becomes the `medvision` that lies beside this program, under the name of `program`.
pub fn launch(program: &str) -> ExitCode {
    let error = match env::current_exe() {
        Ok(path) => {
            let medvision = path.with_file_name("medvision");
            let mut command = Command::new(&medvision);
            let error = command.arg0(program).args(env::args_os().skip(1)).exec();
            format!("cannot run {}: {error}", medvision.display())
        }
        Err(error) => format!("cannot tell where {program} lies: {error}"),
    };
    eprintln!("error: {error}; {program} needs the medvision program beside it: build or copy both");
    ExitCode::FAILURE
}
