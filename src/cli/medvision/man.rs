//! `medvision man`: prints manual pages.

use std::process::ExitCode;

use anyhow::bail;
use clap::Command;
use clap_mangen::Man;

use crate::cli::{self, EXIT_OK, PROGRAMS};
use crate::version::version;

/// Print a manual page, in roff format
///
/// To show it: medvision man server | man -l -
#[derive(clap::Args)]
pub(super) struct ManArgs {
    /// Name of a program, or medvision-COMMAND for a command of medvision
    #[arg(default_value = "medvision")]
    page: String,
}

/// Prints one page.
pub(super) fn run(args: &ManArgs) -> anyhow::Result<ExitCode> {
    let pages = PROGRAMS.iter().flat_map(|program| commands((program.command)()));
    let pages: Vec<Command> = pages.collect();
    let Some(page) = pages.iter().find(|page| name(page) == args.page) else {
        let names: Vec<&str> = pages.iter().map(name).collect();
        bail!(
            "no manual page for {:?}; choose one of: {}",
            args.page,
            names.join(", ")
        );
    };
    let mut roff = Vec::new();
    Man::new(page.clone())
        // Empty, but still an argument: roff would take the source for the date.
        .date("\"\"")
        .source(format!("medvision {}", version()))
        .render(&mut roff)?;
    cli::print(&String::from_utf8(roff)?)?;
    Ok(ExitCode::from(EXIT_OK))
}

/// A program's command and its subcommands.
fn commands(command: Command) -> Vec<Command> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let subcommands: Vec<Command> = command.get_subcommands().cloned().collect();
    [command].into_iter().chain(subcommands).collect()
}

/// The name of a command's page.
fn name(command: &Command) -> &str {
    command.get_display_name().unwrap_or_else(|| command.get_name())
}
