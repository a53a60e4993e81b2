//! Compiles all records into one report.

mod launch;

fn main() -> std::process::ExitCode {
    launch::launch("generate_report")
}
