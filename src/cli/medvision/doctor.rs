//! `medvision doctor`: diagnoses the installation.

use std::process::ExitCode;

use clap::builder::FalseyValueParser;

use crate::cli::{self, CommonArgs, EXIT_FAILURE, EXIT_OK};
use crate::console::Level;
use crate::doctor;

/// Diagnose the installation and suggest fixes
///
/// Checks the machine, libtorch, GPUs and model folders as a run with the same flags would see them.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes:\n  0    ready to read pages\n  1    problems found that must be fixed first\n  130  interrupted by Ctrl-C or SIGTERM"
)]
pub(super) struct DoctorArgs {
    /// Print the report as JSON
    #[arg(long, env = "MVP_JSON", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    json: bool,

    #[command(flatten)]
    common: CommonArgs,
}

/// Prints the report; the exit code tells whether pages can be read.
pub(super) fn run(args: &DoctorArgs) -> anyhow::Result<ExitCode> {
    args.common.start_logging(Level::WARN);
    let report = doctor::examine(&args.common.project()?, &args.common.choices());
    if args.json {
        cli::print(&format!("{}\n", serde_json::to_string_pretty(&report)?))?;
    } else {
        cli::print(&report.to_string())?;
    }
    Ok(ExitCode::from(if report.usable { EXIT_OK } else { EXIT_FAILURE }))
}
