//! Launcher of every program but `medvision`, the one binary that is linked with libtorch.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// Replaces this process by the `medvision` next to it, started under the name `program`. Returns only on failure.
pub fn launch(program: &str) -> ExitCode {
    let error = match env::current_exe() {
        Ok(path) => {
            let medvision = path.with_file_name("medvision");
            let mut command = Command::new(&medvision);
            // OpenMP's threads wait passively unless the user chose otherwise: on a busy machine, spinning took three quarters
            // of this program's time. libgomp reads the variable when it is loaded.
            if program == "quantize_base" && env::var_os("OMP_WAIT_POLICY").is_none() {
                command.env("OMP_WAIT_POLICY", "passive");
            }
            let error = command.arg0(program).args(env::args_os().skip(1)).exec();
            format!("cannot run {}: {error}", medvision.display())
        }
        Err(error) => format!("cannot determine the path of {program}: {error}"),
    };
    eprintln!("error: {error}; {program} needs the medvision program next to it: build or copy both");
    ExitCode::FAILURE
}
