//! Downloads the base model, checked file by file.

mod launch;

fn main() -> std::process::ExitCode {
    launch::launch("download_model")
}
