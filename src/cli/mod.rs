//! Command-line options shared by every program: common flags, version, exit codes.
//!
//! Each flag has an environment variable (`MVP_*`); where both are given the flag wins.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::ValueEnum;
use clap::builder::FalseyValueParser;

use crate::console::{self, Level, LogFormat, Progress, Unit};
use crate::device::{DeviceChoice, Precision, Selected};
use crate::error::PromptError;
#[cfg(feature = "pipeline")]
use crate::pipeline;
use crate::project::{ModelFolder, Project, require_model};
use crate::{Error, Result, device, doctor};

mod adapter;
#[cfg(feature = "pipeline")]
pub mod benchmark_baseline;
#[cfg(feature = "pipeline")]
pub mod benchmark_quantized;
#[cfg(feature = "pipeline")]
pub mod download_datasets;
#[cfg(feature = "pipeline")]
pub mod download_model;
#[cfg(feature = "pipeline")]
pub mod evaluate_finetuned;
#[cfg(feature = "pipeline")]
pub mod finetune_lora;
#[cfg(feature = "pipeline")]
pub mod generate_report;
mod medvision;
#[cfg(feature = "pipeline")]
pub mod prepare_training_data;
#[cfg(feature = "pipeline")]
pub mod quantize_base;
#[cfg(feature = "pipeline")]
pub mod server;
pub mod validate_environment;

pub use self::adapter::AdapterArgs;

/// Everything asked for was done.
pub const EXIT_OK: u8 = 0;
/// Something failed; standard error says what.
pub const EXIT_FAILURE: u8 = 1;
/// The command line cannot be understood.
pub const EXIT_USAGE: u8 = 2;

/// Exit codes, for the end of every `--help`.
pub const EXIT_CODES_HELP: &str = "\
Exit codes:
  0    success
  1    failure; see standard error
  2    invalid command line
  130  interrupted by Ctrl-C or SIGTERM";

/// Runs the program that this process was started as (the last part of its first argument), `medvision` where that is no
/// other program's name; its exit code.
pub fn main() -> ExitCode {
    let name = std::env::args_os().next().unwrap_or_default();
    let program = Path::new(&name).file_name().and_then(|name| name.to_str());
    match program.unwrap_or_default() {
        #[cfg(feature = "pipeline")]
        "benchmark_baseline" => benchmark_baseline::main(),
        #[cfg(feature = "pipeline")]
        "benchmark_quantized" => benchmark_quantized::main(),
        #[cfg(feature = "pipeline")]
        "download_datasets" => download_datasets::main(),
        #[cfg(feature = "pipeline")]
        "download_model" => download_model::main(),
        #[cfg(feature = "pipeline")]
        "evaluate_finetuned" => evaluate_finetuned::main(),
        #[cfg(feature = "pipeline")]
        "finetune_lora" => finetune_lora::main(),
        #[cfg(feature = "pipeline")]
        "generate_report" => generate_report::main(),
        #[cfg(feature = "pipeline")]
        "prepare_training_data" => prepare_training_data::main(),
        #[cfg(feature = "pipeline")]
        "quantize_base" => quantize_base::main(),
        #[cfg(feature = "pipeline")]
        "server" => server::main(),
        "validate_environment" => validate_environment::main(),
        #[cfg(not(feature = "pipeline"))]
        name if PIPELINE_PROGRAMS.contains(&name) => fail(&anyhow::anyhow!(
            "this medvision was built to read pages only; run `make build` for {name}"
        )),
        _ => medvision::main(),
    }
}

/// The programs that a build without the feature `pipeline` leaves out.
#[cfg(not(feature = "pipeline"))]
const PIPELINE_PROGRAMS: [&str; 10] = [
    "benchmark_baseline",
    "benchmark_quantized",
    "download_datasets",
    "download_model",
    "evaluate_finetuned",
    "finetune_lora",
    "generate_report",
    "prepare_training_data",
    "quantize_base",
    "server",
];

/// Flags of every binary.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Common options")]
pub struct CommonArgs {
    /// Project folder containing models/, datasets/ and benchmarks/ [default: current folder]
    #[arg(long, value_name = "DIR", env = "MVP_ROOT", hide_env_values = true)]
    pub root: Option<PathBuf>,

    /// Model folder in Hugging Face format, or its name under models/
    ///
    /// Defaults to models/qwen25-vl-7b-base, or to the small model that ships with the program if
    /// that folder does not exist.
    #[arg(long, value_name = "DIR", env = "MVP_MODEL", hide_env_values = true)]
    pub model: Option<PathBuf>,

    /// Device: auto, cpu, cuda or cuda:N
    ///
    /// "auto" uses the first GPU if CUDA works, otherwise the CPU, and prints its choice.
    #[arg(
        long,
        value_name = "DEVICE",
        env = "MVP_DEVICE",
        default_value = "auto",
        hide_env_values = true
    )]
    pub device: DeviceChoice,

    /// Compute precision
    ///
    /// "auto" is f32 on a CPU and bf16 on a GPU. f16 requires a GPU.
    #[arg(
        long,
        value_name = "FORMAT",
        env = "MVP_PRECISION",
        default_value = "auto",
        hide_env_values = true
    )]
    pub precision: PrecisionArg,

    /// Number of CPU threads [default: physical cores available to the process]
    #[arg(long, value_name = "N", env = "MVP_THREADS", hide_env_values = true,
          value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,

    /// Log format on standard error
    #[arg(
        long,
        value_name = "FORMAT",
        env = "MVP_LOG_FORMAT",
        default_value = "text",
        hide_env_values = true
    )]
    pub log_format: LogFormat,

    /// Increase log verbosity (-v, -vv)
    #[arg(short, long, action = clap::ArgAction::Count, env = "MVP_VERBOSE", hide_env_values = true)]
    pub verbose: u8,

    /// Print errors only
    #[arg(
        short,
        long,
        env = "MVP_QUIET", value_parser = FalseyValueParser::new(),
        hide_env_values = true,
        conflicts_with = "verbose"
    )]
    pub quiet: bool,
}

/// `--precision` as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PrecisionArg {
    /// f32 on a CPU, bf16 on a GPU
    Auto,
    /// 32-bit floats
    F32,
    /// bfloat16
    Bf16,
    /// IEEE half precision, GPU only
    F16,
}

impl From<PrecisionArg> for Precision {
    fn from(precision: PrecisionArg) -> Self {
        match precision {
            PrecisionArg::Auto => Self::Auto,
            PrecisionArg::F32 => Self::F32,
            PrecisionArg::Bf16 => Self::Bf16,
            PrecisionArg::F16 => Self::F16,
        }
    }
}

impl CommonArgs {
    /// Starts logging (`default_level` without `-v` or `-q`) and the panic message. Call once, first thing in `main`.
    pub fn start_logging(&self, default_level: Level) {
        let level = match (self.quiet, self.verbose) {
            (true, _) => Level::ERROR,
            (_, 0) => default_level,
            (_, 1) => default_level.max(Level::INFO),
            (_, 2) => Level::DEBUG,
            _ => Level::TRACE,
        };
        console::init(self.log_format, level, self.quiet);
    }

    /// What the doctor looks at.
    pub fn choices(&self) -> doctor::Choices {
        doctor::Choices {
            model: self.model.clone(),
            device: self.device,
            precision: self.precision.into(),
        }
    }

    /// What the pipeline hands to its programs.
    #[cfg(feature = "pipeline")]
    pub fn for_programs(&self) -> pipeline::ProgramOptions {
        pipeline::ProgramOptions {
            model: self.model.clone(),
            device: self.device,
            precision: self.precision.into(),
            threads: self.threads,
            log_format: self.log_format,
            verbose: self.verbose,
            quiet: self.quiet,
        }
    }

    /// The project folder.
    pub fn project(&self) -> Result<Project> {
        Project::open(self.root.as_deref())
    }

    /// The model folder to load; says which one where the user did not choose it.
    pub fn model_folder(&self, project: &Project) -> Result<ModelFolder> {
        Self::announced(project.model_folder(self.model.as_deref())?)
    }

    /// The model folder to serve; see [`Project::served_model`].
    pub fn served_model(&self, project: &Project) -> Result<ModelFolder> {
        Self::announced(project.served_model(self.model.as_deref())?)
    }

    fn announced(folder: ModelFolder) -> Result<ModelFolder> {
        require_model(&folder.path)?;
        if let Some(notice) = folder.notice() {
            console::say(Level::INFO, &notice);
        }
        Ok(folder)
    }

    /// As [`Self::select_device`] for one of several processes on this machine: "auto" and "cuda" take the GPU of its number.
    pub fn select_device_of(&self, local_rank: usize) -> Result<Selected> {
        let gpus = device::gpus().map_or(0, |gpus| gpus.len());
        let device = match self.device {
            DeviceChoice::Auto | DeviceChoice::Gpu if gpus > 0 => DeviceChoice::Cuda(local_rank % gpus),
            chosen => chosen,
        };
        Self {
            device,
            ..self.clone()
        }
        .select_device()
    }

    /// Sets the number of CPU threads, chooses the device and says which.
    ///
    /// Call before the first tensor is made: CUDA's library cannot be added later.
    pub fn select_device(&self) -> Result<Selected> {
        let selected = device::select(self.device)?;
        device::set_threads(self.threads.map_or_else(device::default_threads, usize::from));
        console::say(Level::INFO, &format!("device: {}", selected.description));
        Ok(selected)
    }
}

/// An error and its causes, each said once: many errors' texts have their cause in them already.
fn with_causes(error: &anyhow::Error) -> String {
    let mut told = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if told.is_empty() {
            told = cause;
        } else if !told.contains(&cause) {
            told = format!("{told}: {cause}");
        }
    }
    told
}

/// Says what is odd about a model folder and an adapter that can be used all the same.
///
/// What cannot be used is an error of the work that follows.
pub fn warn_of(model: &Path, adapter: Option<&Path>) {
    if let Ok(warnings) = crate::engine::folder_warnings(model, adapter) {
        say_warnings(&warnings);
    }
}

/// Says each of a loaded model's warnings.
pub fn say_warnings(warnings: &[String]) {
    warnings
        .iter()
        .for_each(|warning| console::say(Level::WARN, warning));
}

/// Reports a failure on standard error; the exit code for `main`.
///
/// A reader of standard output that left early, as `head` does, is no failure.
pub fn fail(error: &anyhow::Error) -> ExitCode {
    let reader_left = |cause: &(dyn std::error::Error + 'static)| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    };
    if error.chain().any(reader_left) {
        return ExitCode::from(EXIT_OK);
    }
    if matches!(error.downcast_ref(), Some(Error::Interrupted)) {
        console::say(Level::WARN, &with_causes(error));
        return ExitCode::from(console::EXIT_INTERRUPTED);
    }
    console::say(Level::ERROR, &with_causes(error));
    let usage = matches!(
        error.downcast_ref(),
        Some(Error::Prompt(
            PromptError::TooLong { .. } | PromptError::Option { .. }
        ))
    );
    ExitCode::from(if usage { EXIT_USAGE } else { EXIT_FAILURE })
}

/// A flag's free text, which may begin with hyphens as a list does; one word that reads like a flag is a forgotten text.
pub fn free_text(value: &str) -> Result<String, String> {
    let name = value.trim_start_matches('-');
    let hyphens = value.len() - name.len();
    let begins_like_one = name.starts_with(|first: char| first.is_ascii_alphabetic());
    let is_flag = match hyphens {
        0 => false,
        1 | 2 => begins_like_one && !name.contains(char::is_whitespace) || value == "--",
        _ => false,
    };
    if is_flag {
        return Err(format!(
            "{value} reads like a flag: is the value missing? (to pass this text, put a space before it: \" {value}\")"
        ));
    }
    Ok(value.to_owned())
}

/// Moves `progress` to `done` of `all` steps of a stage, named with what it counts; with none done the stage begins.
pub fn counted(progress: &Progress, (stage, unit): (&str, &'static str), done: usize, all: usize) {
    match done {
        0 => progress.begin(stage, Unit::Of(unit), all as u64),
        _ => progress.set_position(done as u64),
    }
}

/// Prints `text` to standard output.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("cannot write to standard output")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        common: CommonArgs,
    }

    #[test]
    fn every_flag_has_an_environment_variable() {
        Program::command().debug_assert();
        for flag in Program::command().get_arguments() {
            let variable = flag.get_env().and_then(|name| name.to_str()).unwrap_or_default();
            assert!(variable.starts_with("MVP_"), "{}", flag.get_id());
        }
    }

    #[test]
    fn a_text_may_be_a_list_and_is_no_flag() {
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

    #[test]
    fn defaults_are_automatic() {
        let common = Program::parse_from(["program"]).common;
        assert_eq!(common.device, DeviceChoice::Auto);
        assert_eq!(common.precision, PrecisionArg::Auto);
        assert_eq!((common.root, common.model, common.threads), (None, None, None));
    }
}
