//! `medvision completions`: prints shell completions.

use std::process::ExitCode;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap_complete::{Shell, generate};

use crate::cli::{self, EXIT_OK, PROGRAMS};

/// Print shell completions for all programs
///
/// To load them: source <(medvision completions bash)
#[derive(clap::Args)]
pub(super) struct CompletionsArgs {
    /// Shell
    // Scripts for PowerShell cannot be concatenated.
    #[arg(value_parser = PossibleValuesParser::new(["bash", "elvish", "fish", "zsh"]).try_map(|name| name.parse::<Shell>()))]
    shell: Shell,
}

/// Prints one script for all programs.
pub(super) fn run(args: &CompletionsArgs) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    for program in &PROGRAMS {
        generate(args.shell, &mut (program.command)(), program.name, &mut script);
    }
    cli::print(&String::from_utf8(script)?)?;
    Ok(ExitCode::from(EXIT_OK))
}
