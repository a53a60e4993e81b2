//! Downloads the data sets for fine-tuning, checked file by file and row by row.

mod launch;

fn main() -> std::process::ExitCode {
    launch::launch("download_datasets")
}
