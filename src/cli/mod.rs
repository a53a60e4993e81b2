//! The command line: the flags, `main` and printed output of every program.
//!
//! Each flag has an environment variable (`MVP_*`), which the flag overrides. Library rooms have plain option structs; the
//! flags are converted to them here, and take their defaults from them.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::error::{ContextKind, ContextValue};
use clap::{Arg, ArgMatches, CommandFactory, Parser};

use self::adapter::AdapterArgs;
use self::common::CommonArgs;
#[cfg(feature = "pipeline")]
use self::{
    adapter::ResidentAdapterArgs, benchmark_args::BenchmarkArgs, hub_args::HubArgs, session::Session,
};
use crate::console::{self, Level};
use crate::documents::{Decoder, WORKER_ARGUMENT, run_worker};
use crate::error::PromptError;
use crate::{Error, Result};

mod adapter;
#[cfg(feature = "pipeline")]
mod audit_args;
#[cfg(feature = "pipeline")]
mod benchmark_args;
#[cfg(feature = "pipeline")]
mod benchmark_baseline;
#[cfg(feature = "pipeline")]
mod benchmark_quantized;
mod common;
#[cfg(feature = "pipeline")]
mod demo_ui;
#[cfg(feature = "pipeline")]
mod download_datasets;
#[cfg(feature = "pipeline")]
mod download_model;
#[cfg(feature = "pipeline")]
mod evaluate_finetuned;
#[cfg(feature = "pipeline")]
mod finetune_lora;
#[cfg(feature = "pipeline")]
mod generate_report;
#[cfg(feature = "pipeline")]
mod http_args;
#[cfg(feature = "pipeline")]
mod hub_args;
#[cfg(feature = "pipeline")]
mod key_args;
mod medvision;
#[cfg(feature = "pipeline")]
mod prepare_training_data;
#[cfg(feature = "pipeline")]
mod quantize_base;
#[cfg(feature = "pipeline")]
mod server;
#[cfg(feature = "pipeline")]
mod session;
mod validate_environment;

/// Success.
const EXIT_OK: u8 = 0;
/// Failure; standard error has the message.
const EXIT_FAILURE: u8 = 1;
/// Invalid command line.
const EXIT_USAGE: u8 = 2;

/// Exit codes, for the end of `--help`.
const EXIT_CODES_HELP: &str = "\
Exit codes:
  0    success
  1    failure; see standard error
  2    invalid command line
  130  interrupted by Ctrl-C or SIGTERM";

/// A program of this binary.
struct Program {
    /// Name under which it is started.
    name: &'static str,
    main: fn() -> ExitCode,
    /// Its flags and help.
    command: fn() -> clap::Command,
}

/// The programs of these modules, whose names are those of the programs.
macro_rules! programs {
    ($($name:ident)*) => {
        [$(Program {
            name: stringify!($name),
            main: $name::main,
            command: <$name::Arguments as CommandFactory>::command,
        }),*]
    };
}

#[cfg(feature = "pipeline")]
const PROGRAMS: [Program; 13] = programs![
    medvision server demo_ui validate_environment download_model benchmark_baseline quantize_base benchmark_quantized
    download_datasets prepare_training_data finetune_lora evaluate_finetuned generate_report
];
#[cfg(not(feature = "pipeline"))]
const PROGRAMS: [Program; 2] = programs![medvision validate_environment];

/// Programs that only a build with the feature `pipeline` has.
#[cfg(not(feature = "pipeline"))]
const PIPELINE_PROGRAMS: [&str; 11] = [
    "benchmark_baseline",
    "benchmark_quantized",
    "demo_ui",
    "download_datasets",
    "download_model",
    "evaluate_finetuned",
    "finetune_lora",
    "generate_report",
    "prepare_training_data",
    "quantize_base",
    "server",
];

/// Runs the program under whose name this process was started (the file name in its first argument), or `medvision` for any
/// other name. Started by [`decoder`], it decodes documents instead.
pub fn main() -> ExitCode {
    if std::env::args_os()
        .nth(1)
        .is_some_and(|first| first == WORKER_ARGUMENT)
    {
        return run_worker();
    }
    let path = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&path).file_name().and_then(|name| name.to_str());
    let name = name.unwrap_or_default();
    #[cfg(not(feature = "pipeline"))]
    if PIPELINE_PROGRAMS.contains(&name) {
        return fail(&anyhow::anyhow!(
            "this medvision was built to read pages only; run `make build` for {name}"
        ));
    }
    let program = PROGRAMS.iter().find(|program| program.name == name);
    program.map_or_else(medvision::main, |program| (program.main)())
}

/// Decodes documents in a process of this program, whose limits are its own.
fn decoder() -> Decoder {
    // This binary, also after another one was put in its place.
    Decoder::worker("/proc/self/exe")
}

/// Parses the command line. An error about the value of a variable names the variable.
fn parse<A: Parser>() -> (A, ArgMatches) {
    let words: Vec<OsString> = std::env::args_os().collect();
    let parsed = A::command()
        .try_get_matches_from(&words)
        .and_then(|matches| Ok((A::from_arg_matches(&matches)?, matches)));
    parsed.unwrap_or_else(|mut error| {
        if let Some(variable) = variable_of(&error, &A::command(), &words) {
            let tip = format!("the value is that of the variable {variable}: change it, or unset it");
            let tip = ContextValue::StyledStrs(vec![tip.into()]);
            error.insert(ContextKind::Suggested, tip);
        }
        error.format(&mut A::command()).exit()
    })
}

/// The variable whose value an error is about, if it is not the command line's.
fn variable_of(error: &clap::Error, command: &clap::Command, words: &[OsString]) -> Option<String> {
    // `--port <N>`
    let Some(ContextValue::String(shown)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    let name = shown.split([' ', '=']).next()?.strip_prefix("--")?;
    let is_given = words.iter().filter_map(|word| word.to_str()).any(|word| {
        let flag = word.strip_prefix("--").unwrap_or_default();
        flag.split('=').next() == Some(name)
    });
    let mut commands = vec![command];
    while let Some(command) = commands.pop().filter(|_| !is_given) {
        let flag = command.get_arguments().find(|flag| flag.get_long() == Some(name));
        let variable = flag
            .and_then(Arg::get_env)
            .filter(|name| std::env::var_os(name).is_some());
        if let Some(variable) = variable {
            return variable.to_str().map(str::to_owned);
        }
        commands.extend(command.get_subcommands());
    }
    None
}

/// Parses the command line, starts logging and signal handling, and runs a program; reports its failure.
fn start<A: Parser>(common: fn(&A) -> &CommonArgs, run: fn(&A) -> anyhow::Result<ExitCode>) -> ExitCode {
    let (arguments, _) = parse::<A>();
    common(&arguments).start_logging(Level::WARN);
    // Whatever finishes a step first says so later.
    console::exit_on_signal("interrupted")
        .map_err(Into::into)
        .and_then(|()| run(&arguments))
        .unwrap_or_else(|error| fail(&error))
}

/// Joins an error and its causes, leaving out causes that the text already includes.
fn with_causes(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Prints warnings about a model folder and an adapter that are usable; unusable ones are errors when they are loaded.
fn print_folder_warnings(model: &Path, adapter: Option<&Path>) {
    if let Ok(warnings) = crate::engine::folder_warnings(model, adapter) {
        print_warnings(&warnings);
    }
}

/// Prints warnings to standard error.
fn print_warnings(warnings: &[String]) {
    for warning in warnings {
        console::say(Level::WARN, warning);
    }
}

/// Reports a failure on standard error and returns the exit code for `main`.
///
/// A closed standard output, as with `| head`, is not a failure.
fn fail(error: &anyhow::Error) -> ExitCode {
    let is_broken_pipe = |cause: &(dyn std::error::Error + 'static)| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    };
    if error.chain().any(is_broken_pipe) {
        return ExitCode::from(EXIT_OK);
    }
    if matches!(error.downcast_ref(), Some(Error::Interrupted)) {
        console::say(Level::WARN, &with_causes(error));
        return ExitCode::from(console::EXIT_INTERRUPTED);
    }
    console::say(Level::ERROR, &with_causes(error));
    let usage = matches!(
        error.downcast_ref(),
        Some(Error::Option { .. } | Error::Prompt(PromptError::TooLong { .. }))
    );
    ExitCode::from(if usage { EXIT_USAGE } else { EXIT_FAILURE })
}

/// Parses free text, which may start with hyphens as a list does. A single word that looks like a flag is an error: its
/// value was forgotten.
fn free_text(value: &str) -> Result<String, String> {
    let name = value.trim_start_matches('-');
    let hyphens = value.len() - name.len();
    let starts_like_name = name.starts_with(|first: char| first.is_ascii_alphabetic());
    let is_flag = match hyphens {
        0 => false,
        1 | 2 => starts_like_name && !name.contains(char::is_whitespace) || value == "--",
        _ => false,
    };
    if is_flag {
        return Err(format!(
            "{value} reads like a flag: is the value missing? (to pass this text, put a space before it: \" {value}\")"
        ));
    }
    Ok(value.to_owned())
}

/// Prints `text` to standard output.
fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("cannot write to standard output")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_of_every_program_has_an_environment_variable() {
        for program in &PROGRAMS {
            let mut command = (program.command)();
            assert_eq!(command.get_name(), program.name);
            command.build();
            command.clone().debug_assert();
            for command in command.get_subcommands().chain([&command]) {
                let flags = command.get_arguments().filter(|flag| flag.get_long().is_some());
                for flag in flags.filter(|flag| !["help", "version"].contains(&flag.get_id().as_str())) {
                    let variable = flag.get_env().and_then(|name| name.to_str()).unwrap_or_default();
                    assert!(
                        variable.starts_with("MVP_"),
                        "{} {}",
                        command.get_name(),
                        flag.get_id()
                    );
                }
            }
        }
    }

    #[test]
    fn free_text_may_be_a_list_but_not_a_flag() {
        for text in [
            "- list",
            "-- list",
            "---",
            "-5 mg?",
            "plain",
            "",
            "-",
            " --json",
            "--what is this",
        ] {
            assert_eq!(free_text(text).as_deref(), Ok(text));
        }
        for flag in ["--json", "-r", "--model=x", "--"] {
            assert!(
                free_text(flag).unwrap_err().contains("reads like a flag"),
                "{flag}"
            );
        }
    }
}
