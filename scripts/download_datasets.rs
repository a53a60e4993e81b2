//! Downloads and verifies the datasets for fine-tuning.

mod launch;

fn main() -> std::process::ExitCode {
    launch::launch("download_datasets")
}
