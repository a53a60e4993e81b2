//! The pipeline's last step: every record in one report.

mod launch;

fn main() -> std::process::ExitCode {
    launch::launch("generate_report")
}
