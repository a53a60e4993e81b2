//! Converts the raw datasets into pages, questions and answers in three splits.

mod launch;

fn main() -> std::process::ExitCode {
    launch::launch("prepare_training_data")
}
