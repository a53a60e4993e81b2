//! `medvision key`: makes API keys.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Subcommand, ValueEnum};

use crate::cli::{self, EXIT_OK};
use crate::server::{KeyScope, NewKey};

/// Make API keys for the server
#[derive(clap::Args)]
pub(super) struct KeyArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a key: the key goes to standard error, once; its line for --api-key-file to standard output
    ///
    /// The line holds the key's SHA-256, not the key: medvision key new ward-3 >> keys
    New {
        /// Name of the key, for the audit log: 1 to 64 letters, digits, `.`, `-` or `_`
        name: String,

        /// What the key may be used for [default: every route]
        #[arg(long, value_enum, env = "MVP_KEY_SCOPE", hide_env_values = true)]
        scope: Option<Scope>,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Scope {
    /// Every route but /metrics
    Inference,
    /// /metrics only
    Metrics,
}

/// Runs the command.
pub(super) fn run(args: &KeyArgs) -> anyhow::Result<ExitCode> {
    let Command::New { name, scope } = &args.command;
    let scope = match scope {
        None => KeyScope::All,
        Some(Scope::Inference) => KeyScope::Inference,
        Some(Scope::Metrics) => KeyScope::Metrics,
    };
    let new = NewKey::make(name, scope)?;
    // First, and not as a message: a line without its key is of no use.
    writeln!(io::stderr(), "key (shown once): {}", new.key).context("cannot show the key")?;
    cli::print(&format!("{}\n", new.line))?;
    Ok(ExitCode::from(EXIT_OK))
}
