//! The pipeline's last step: every record in one report.

use std::process::ExitCode;

use crate::cli::{CommonArgs, EXIT_CODES_HELP, EXIT_FAILURE, EXIT_OK, fail, print};
use crate::console::{Level, say};
use crate::report;
use crate::version::version;
use clap::Parser;

/// Compile all benchmark records into one report
///
/// Reads benchmarks/*.json and the datasets' summaries; writes benchmarks/FINAL_REPORT.json, docs/BENCHMARK_REPORT.md,
/// an HTML version, and plots in docs/plots. Figures without a record are null in JSON and "n/a" in
/// the text. An unreadable record is reported, only its own figures are missing, and the exit code is 1.
#[derive(Parser)]
#[command(name = "generate_report", version = version(), after_help = EXIT_CODES_HELP)]
struct Arguments {
    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the program; its exit code.
pub fn main() -> ExitCode {
    run(&Arguments::parse().common).unwrap_or_else(|error| fail(&error))
}

fn run(common: &CommonArgs) -> anyhow::Result<ExitCode> {
    common.start_logging(Level::WARN);
    let written = report::generate(&common.project()?)?;
    for problem in &written.problems {
        say(
            Level::ERROR,
            &format!("{}: {}; its figures are left null", problem.file, problem.reason),
        );
    }
    let metadata = &written.report.report_metadata;
    let mut summary = format!("{} records read", metadata.source_files.len());
    if !written.problems.is_empty() {
        summary += &format!(", {} unreadable", written.problems.len());
    }
    for file in &written.files {
        summary += &format!("\nwritten: {}", file.display());
    }
    print(&format!("{summary}\n"))?;
    Ok(ExitCode::from(if written.problems.is_empty() {
        EXIT_OK
    } else {
        EXIT_FAILURE
    }))
}
