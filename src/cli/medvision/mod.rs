//! `medvision` and its subcommands.

#[cfg(feature = "pipeline")]
mod bench;
#[cfg(feature = "pipeline")]
mod completions;
mod doctor;
mod extract;
#[cfg(feature = "pipeline")]
mod health;
mod inputs;
#[cfg(feature = "pipeline")]
mod key;
#[cfg(feature = "pipeline")]
mod man;
#[cfg(feature = "pipeline")]
mod merge;
#[cfg(feature = "pipeline")]
mod offline;
mod options;
#[cfg(feature = "pipeline")]
mod pipeline;
mod trace;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};

use self::options::PixelArgs;
use crate::cli::{self, CommonArgs, EXIT_CODES_HELP, EXIT_OK};
use crate::engine::{LoadOptions, MAX_PROMPT_CHARACTERS, OnStep, ReadRequest, Reader, Reading};
use crate::error::PromptError;
use crate::prompts::EXTRACTION_PROMPT;
use crate::{Error, Result, console};

/// Output of `medvision` without a subcommand.
const OVERVIEW: &str = "\
medvision reads medical documents with Qwen2.5-VL, entirely on this machine.

  medvision extract page.png           extract the text of a page
  medvision extract scans/ --json      every page of a folder, one JSON object per line
  medvision extract - < page.png       a page from standard input
  medvision doctor                     diagnose the installation and suggest fixes
  medvision --help                     list all commands; COMMAND --help for details
";

/// The rest of it.
const PIPELINE_OVERVIEW: &str = if cfg!(feature = "pipeline") {
    "\
  medvision pipeline                   run all phases: download, quantize, train, evaluate, report
  server --demo-port 7860              the same over HTTP, on port 8000, with a page to try it on port 7860
"
} else {
    "\nThis build only reads pages; for the pipeline and the server: make build\n"
};

/// Read medical documents with Qwen2.5-VL, entirely on this machine.
#[derive(Parser)]
#[command(name = "medvision", version = crate::version::version(), after_help = EXIT_CODES_HELP)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Extract text from page images
    Extract(Box<extract::ExtractArgs>),
    /// Dump the tensors of every stage, for comparison with another implementation
    Trace(Box<trace::TraceArgs>),
    /// Measure load time, memory and speed of a model on this machine
    #[cfg(feature = "pipeline")]
    Bench(Box<bench::BenchArgs>),
    /// Merge an adapter into its base model, for programs without adapter support
    #[cfg(feature = "pipeline")]
    Merge(Box<merge::MergeArgs>),
    /// Run all phases in order, from environment check to report
    #[cfg(feature = "pipeline")]
    Pipeline(Box<pipeline::PipelineArgs>),
    /// Diagnose the installation and suggest fixes
    Doctor(doctor::DoctorArgs),
    /// Save model, adapter and image into one folder, for a network without access to others
    #[cfg(feature = "pipeline")]
    SaveOffline(Box<offline::SaveArgs>),
    /// Check a folder of save-offline and load what is in it
    #[cfg(feature = "pipeline")]
    LoadOffline(offline::LoadArgs),
    /// Make API keys for the server
    #[cfg(feature = "pipeline")]
    Key(key::KeyArgs),
    /// Ask a server whether it is ready (for health checks of containers)
    #[cfg(feature = "pipeline")]
    Health(health::HealthArgs),
    /// Print shell completions for all programs
    #[cfg(feature = "pipeline")]
    Completions(completions::CompletionsArgs),
    /// Print a manual page, in roff format
    #[cfg(feature = "pipeline")]
    Man(man::ManArgs),
}

/// Runs the program and returns its exit code.
pub(super) fn main() -> ExitCode {
    let (Arguments { command }, _) = cli::parse();
    if let Err(error) = console::exit_on_signal("interrupted") {
        return cli::fail(&error.into());
    }
    let outcome = match command {
        None => cli::print(&format!("{OVERVIEW}{PIPELINE_OVERVIEW}")).map(|()| ExitCode::from(EXIT_OK)),
        Some(Command::Extract(args)) => extract::run(&args),
        Some(Command::Trace(args)) => trace::run(&args),
        #[cfg(feature = "pipeline")]
        Some(Command::Bench(args)) => bench::run(&args),
        #[cfg(feature = "pipeline")]
        Some(Command::Merge(args)) => merge::run(&args),
        #[cfg(feature = "pipeline")]
        Some(Command::Pipeline(args)) => pipeline::run(&args),
        Some(Command::Doctor(args)) => doctor::run(&args),
        #[cfg(feature = "pipeline")]
        Some(Command::SaveOffline(args)) => offline::save(&args),
        #[cfg(feature = "pipeline")]
        Some(Command::LoadOffline(args)) => offline::load(&args),
        #[cfg(feature = "pipeline")]
        Some(Command::Key(args)) => key::run(&args),
        #[cfg(feature = "pipeline")]
        Some(Command::Health(args)) => health::run(&args),
        #[cfg(feature = "pipeline")]
        Some(Command::Completions(args)) => completions::run(&args),
        #[cfg(feature = "pipeline")]
        Some(Command::Man(args)) => man::run(&args),
    };
    outcome.unwrap_or_else(|error| cli::fail(&error))
}

/// Returns the prompt, or the default if it is blank; a prompt that is too long is rejected before any work.
fn prompt_or_default(prompt: Option<&str>) -> Result<String> {
    let prompt = prompt
        .filter(|prompt| !prompt.trim().is_empty())
        .unwrap_or(EXTRACTION_PROMPT);
    let characters = prompt.chars().count();
    if characters > MAX_PROMPT_CHARACTERS {
        let limit = MAX_PROMPT_CHARACTERS;
        return Err(PromptError::TooLong { characters, limit }.into());
    }
    Ok(prompt.to_owned())
}

/// Reads one page. A panic becomes an error, so that the next page can be read.
fn read_safely(reader: &Reader, request: &ReadRequest, on_step: &mut OnStep<'_>) -> Result<Reading> {
    // Unwind safe: the reader resets its state at the start of each page.
    catch_unwind(AssertUnwindSafe(|| reader.read(request, on_step)))
        .unwrap_or_else(|_| Err(Error::Internal("this page was skipped".to_owned())))
}

/// Load options that determine the size of pages.
fn page_options(adapter: Option<&Path>, pixels: &PixelArgs) -> LoadOptions {
    LoadOptions {
        min_pixels: pixels.min_pixels,
        max_pixels: pixels.max_pixels,
        adapter: adapter.map(Path::to_owned),
        ..LoadOptions::default()
    }
}

/// Selects the device and loads a model folder and an adapter on it.
fn load_model(
    folder: &Path,
    adapter: Option<&Path>,
    common: &CommonArgs,
    pixels: &PixelArgs,
) -> Result<Reader> {
    let selected = common.select_device()?;
    let start = Instant::now();
    let spinner = console::spinner("loading the model");
    let options = LoadOptions {
        device: selected.device,
        precision: common.precision,
        ..page_options(adapter, pixels)
    };
    let reader = Reader::load(folder, &options);
    spinner.finish_and_clear();
    let reader = reader?;
    cli::print_warnings(reader.warnings());
    tracing::info!(seconds = start.elapsed().as_secs_f64(), "model loaded");
    Ok(reader)
}
