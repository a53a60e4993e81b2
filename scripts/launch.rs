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
            // OpenMP's threads wait without spinning, unless the user has a say: on a machine that does other work, too,
            // spinning took three quarters of this program's time. It is read when the library is loaded, not later.
            if program == "quantize_base" && env::var_os("OMP_WAIT_POLICY").is_none() {
                command.env("OMP_WAIT_POLICY", "passive");
            }
            let error = command.arg0(program).args(env::args_os().skip(1)).exec();
            format!("cannot run {}: {error}", medvision.display())
        }
        Err(error) => format!("cannot tell where {program} lies: {error}"),
    };
    eprintln!("error: {error}; {program} needs the medvision program beside it: build or copy both");
    ExitCode::FAILURE
}
