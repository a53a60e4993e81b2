//! The subcommands of `medvision`.

mod doctor;
mod extract;
mod inputs;
mod merge;
mod options;
mod pipeline;
mod trace;

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Parser, Subcommand};

use self::options::PixelArgs;
use crate::cli::{self, CommonArgs, EXIT_CODES_HELP, EXIT_OK};
use crate::engine::{LoadOptions, MAX_PROMPT_CHARACTERS, ReadRequest, Reader, Reading};
use crate::error::PromptError;
use crate::prompts::EXTRACTION_PROMPT;
use crate::{Error, Result, console};

/// What `medvision` prints when it is run without a subcommand.
const MAP: &str = "\
medvision reads medical documents with Qwen2.5-VL, on this machine alone.

  medvision extract page.png           the text of a page, as it is read
  medvision extract scans/ --json      every page of a folder, one JSON object a line
  medvision extract - < page.png       a page from standard input
  medvision pipeline                   every phase in order: download, quantize, measure, report
  medvision doctor                     what is installed, what is wrong, how to mend it
  medvision --help                     all commands; COMMAND --help explains one
  server                               the same over HTTP, on port 8000
";

/// Read medical documents with Qwen2.5-VL, on this machine alone.
#[derive(Debug, Parser)]
#[command(name = "medvision", version = crate::version::version(), after_help = EXIT_CODES_HELP)]
struct Medvision {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Read pages: pictures in, text out
    Extract(Box<extract::ExtractArgs>),
    /// Write the tensors of every stage of one prompt, for comparison with another implementation
    Trace(Box<trace::TraceArgs>),
    /// Merge an adapter into its base model, for programs that take no adapters
    Merge(Box<merge::MergeArgs>),
    /// Run all phases in order, from the look at the machine to the report
    Pipeline(Box<pipeline::PipelineCommand>),
    /// Say what is installed, what is wrong and how to mend it
    Doctor(doctor::DoctorArgs),
}

/// Runs the command line; its exit code.
pub fn main() -> ExitCode {
    let outcome = match Medvision::parse().command {
        None => cli::print(MAP).map(|()| ExitCode::from(EXIT_OK)),
        Some(Command::Extract(args)) => extract::run(&args),
        Some(Command::Trace(args)) => trace::run(&args),
        Some(Command::Merge(args)) => merge::run(&args),
        Some(Command::Pipeline(args)) => pipeline::run(&args),
        Some(Command::Doctor(args)) => doctor::run(&args),
    };
    outcome.unwrap_or_else(|error| cli::fail(&error))
}

/// The prompt as given, or the default where it is blank; too long a prompt is refused before any work.
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

/// Reads one page; a panic ends this page and not the run.
fn read_safely(
    reader: &mut Reader,
    request: &ReadRequest,
    on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
) -> Result<Reading> {
    // The reader begins each page anew, whatever state the last one left behind.
    catch_unwind(AssertUnwindSafe(|| reader.read(request, on_text)))
        .unwrap_or_else(|_| Err(Error::Numeric("an internal error ended this page".to_owned())))
}

/// What decides the size of pages.
fn page_options(adapter: Option<&Path>, pixels: &PixelArgs) -> LoadOptions {
    LoadOptions {
        min_pixels: pixels.min_pixels,
        max_pixels: pixels.max_pixels,
        adapter: adapter.map(Path::to_owned),
        ..LoadOptions::default()
    }
}

/// Chooses the device and loads a model folder and an adapter on it.
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
        precision: common.precision.into(),
        ..page_options(adapter, pixels)
    };
    let reader = Reader::load(folder, &options);
    spinner.finish_and_clear();
    let reader = reader?;
    cli::say_warnings(reader.warnings());
    tracing::info!(seconds = start.elapsed().as_secs_f64(), "model loaded");
    Ok(reader)
}
