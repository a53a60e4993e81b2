//! `generate_report`: compiles all records into one report.

use std::process::ExitCode;

use clap::Parser;

use super::{CommonArgs, EXIT_CODES_HELP, EXIT_FAILURE, EXIT_OK, print, start};
use crate::console::{Level, exit_on_signal, say};
use crate::report;
use crate::version::version;

/// Compile all benchmark records into one report
///
/// Reads benchmarks/*.json and the datasets' summaries; writes benchmarks/FINAL_REPORT.json, docs/BENCHMARK_REPORT.md,
/// an HTML version, and plots in docs/plots. Figures without a record are null in JSON and "n/a" in
/// the text. An unreadable record is reported, only its own figures are missing, and the exit code is 1.
#[derive(Parser)]
#[command(name = "generate_report", version = version(), after_help = EXIT_CODES_HELP)]
pub(super) struct Arguments {
    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the program and returns its exit code.
pub(super) fn main() -> ExitCode {
    start(|arguments: &Arguments| &arguments.common, run)
}

fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    exit_on_signal("interrupted; run the same command again")?;
    let written = report::generate(&arguments.common.project()?)?;
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
