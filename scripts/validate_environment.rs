//! The pipeline's first step: is this machine fit for it?

mod launch;

fn main() -> std::process::ExitCode {
    launch::launch("validate_environment")
}
