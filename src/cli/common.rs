//! The flags of every program.

#[cfg(feature = "pipeline")]
use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::FalseyValueParser;

use crate::Result;
use crate::console::{self, Level, LogFormat};
use crate::device::{self, DeviceChoice, Precision, Selected};
use crate::doctor;
use crate::project::{ModelFolder, Project, require_model};

/// Flags of every program.
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
    /// The server loads that model's NF4 folder where quantize_base has made one.
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
    pub precision: Precision,

    /// Number of CPU threads [default: physical cores available to the process]
    ///
    /// Use fewer on a machine that does other work: threads that wait for each other spin.
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

impl CommonArgs {
    /// Initializes logging at `default_level`, unless `-v` or `-q` is given, and the panic hook. Call once, before any work.
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

    /// The configuration that the doctor checks.
    pub fn choices(&self) -> doctor::Choices {
        doctor::Choices {
            model: self.model.clone(),
            device: self.device,
            precision: self.precision,
        }
    }

    /// These flags for another program that works on `project`.
    #[cfg(feature = "pipeline")]
    pub fn flags(&self, project: &Project) -> Vec<OsString> {
        let mut flags: Vec<OsString> = vec!["--root".into(), project.root().into()];
        if let Some(model) = &self.model {
            flags.extend(["--model".into(), model.into()]);
        }
        flags.extend(["--device".into(), self.device.to_string().into()]);
        flags.extend(["--precision".into(), self.precision.to_string().into()]);
        if let Some(threads) = self.threads {
            flags.extend(["--threads".into(), threads.to_string().into()]);
        }
        if self.log_format == LogFormat::Json {
            flags.extend(["--log-format".into(), "json".into()]);
        }
        if self.quiet {
            flags.push("--quiet".into());
        }
        flags.extend((0..self.verbose).map(|_| "--verbose".into()));
        flags
    }

    /// The project folder.
    pub fn project(&self) -> Result<Project> {
        Project::open(self.root.as_deref())
    }

    /// The model folder to load; prints which one if the user did not choose it.
    pub fn model_folder(&self, project: &Project) -> Result<ModelFolder> {
        checked(project.model_folder(self.model.as_deref())?)
    }

    /// The model folder to serve; see [`Project::served_model`].
    #[cfg(feature = "pipeline")]
    pub fn served_model(&self, project: &Project) -> Result<ModelFolder> {
        checked(project.served_model(self.model.as_deref())?)
    }

    /// Sets the number of CPU threads, selects the device and prints which one.
    ///
    /// Call before the first tensor is created: CUDA's library cannot be loaded later.
    pub fn select_device(&self) -> Result<Selected> {
        self.select(self.device)
    }

    /// As [`Self::select_device`] for one of several processes of this machine: "auto" and "cuda" select the GPU with the
    /// index `local_rank`.
    #[cfg(feature = "pipeline")]
    pub fn select_device_of(&self, local_rank: usize) -> Result<Selected> {
        let gpus = device::gpus().map_or(0, |gpus| gpus.len());
        self.select(match self.device {
            DeviceChoice::Auto | DeviceChoice::Gpu if gpus > 0 => DeviceChoice::Cuda(local_rank % gpus),
            chosen => chosen,
        })
    }

    fn select(&self, device: DeviceChoice) -> Result<Selected> {
        let selected = device::select(device)?;
        device::set_threads(self.threads.map_or_else(device::default_threads, usize::from));
        console::say(Level::INFO, &format!("device: {}", selected.description));
        Ok(selected)
    }
}

/// Checks that `folder` holds a model, and prints its notice.
fn checked(folder: ModelFolder) -> Result<ModelFolder> {
    require_model(&folder.path)?;
    if let Some(notice) = folder.notice() {
        console::say(Level::INFO, &notice);
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        common: CommonArgs,
    }

    #[test]
    fn defaults_are_automatic() {
        let common = Program::parse_from(["program"]).common;
        assert_eq!(common.device, DeviceChoice::Auto);
        assert_eq!(common.precision, Precision::Auto);
        assert_eq!((common.root, common.model, common.threads), (None, None, None));
    }

    #[cfg(feature = "pipeline")]
    #[test]
    fn flags_for_another_program_are_read_back() {
        let given = [
            "program",
            "--root=.",
            "--model=m",
            "--device=cuda:1",
            "--precision=bf16",
            "--threads=3",
            "--log-format=json",
            "-vv",
        ];
        let common = Program::parse_from(given).common;
        let flags = common.flags(&common.project().unwrap());
        let again = Program::parse_from([OsString::from("program")].into_iter().chain(flags)).common;
        assert_eq!(format!("{again:?}"), format!("{common:?}"));
    }
}
