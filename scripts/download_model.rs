//! Downloads and verifies the base model.

mod launch;

fn main() -> std::process::ExitCode {
    launch::launch("download_model")
}
