//! Checks whether the pipeline can run on this machine.

mod launch;

fn main() -> std::process::ExitCode {
    launch::launch("validate_environment")
}
