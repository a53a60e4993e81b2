//! Running the phases.

use std::ffi::OsString;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::builder::FalseyValueParser;
use sha2::{Digest, Sha256};

use super::{
    Phase,
    download::{self, Download, ModelWish, Network},
    state::State,
    work::{Work, work},
};
use crate::console::{self, EXIT_INTERRUPTED, Level, LogFormat};
use crate::device::{self, DeviceChoice, Precision};
use crate::hub::{Hasher, HubArgs};
use crate::lora::own_folder;
use crate::project::Project;
use crate::records::paths;
use crate::{Error, Result};

/// Why a training is left out.
const LONG_TRAINING: &str = "full training takes hours on a CPU; set MVP_MAX_STEPS=N for a short run within the pipeline, \
                             or run finetune_lora directly";

/// Why an adapter that came with the model stays.
const ADAPTER_OF_OTHERS: &str =
    "an adapter that was not trained here exists and is evaluated; set MVP_MAX_STEPS=N to train a new one";

/// Flags of the pipeline.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Pipeline options")]
pub struct PipelineArgs {
    /// First phase to run
    #[arg(
        long,
        value_name = "PHASE",
        env = "MVP_FROM",
        default_value = "validate_environment",
        hide_env_values = true
    )]
    pub from: Phase,

    /// Last phase to run
    #[arg(
        long,
        value_name = "PHASE",
        env = "MVP_TO",
        default_value = "generate_report",
        hide_env_values = true
    )]
    pub to: Phase,

    /// Run phases even if they are up to date
    #[arg(long, env = "MVP_FORCE", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    pub force: bool,

    /// Use the base model in this folder instead of downloading it
    #[arg(long, value_name = "DIR", env = "MVP_MODEL_SOURCE", hide_env_values = true)]
    pub model_source: Option<PathBuf>,

    /// Use this local copy of a dataset instead of downloading it; repeatable
    #[arg(
        long = "dataset-source",
        value_name = "[NAME=]DIR|FILE",
        env = "MVP_DATASET_SOURCE",
        value_delimiter = ',',
        hide_env_values = true
    )]
    pub dataset_sources: Vec<String>,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub hub: HubArgs,
}

/// What every program of the pipeline is given.
#[derive(Debug, Clone)]
pub struct ProgramOptions {
    /// `--model`.
    pub model: Option<PathBuf>,
    /// `--device`.
    pub device: DeviceChoice,
    /// `--precision`.
    pub precision: Precision,
    /// `--threads`.
    pub threads: Option<u16>,
    /// `--log-format`.
    pub log_format: LogFormat,
    /// How many times `--verbose`.
    pub verbose: u8,
    /// `--quiet`.
    pub quiet: bool,
}

/// How a phase ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// It was run.
    Done,
    /// Its inputs are unchanged and what it made is there.
    UpToDate,
    /// There was nothing to do, for this reason.
    Nothing(String),
    /// This version comes without its program.
    NotBuilt,
    /// It failed, in these words.
    Failed(String),
    /// Ctrl-C.
    Interrupted,
}

/// One phase of a run.
#[derive(Debug, Clone)]
pub struct Step {
    /// Which.
    pub phase: Phase,
    /// How it ended.
    pub ended: Ended,
    /// How long it took.
    pub seconds: f64,
}

/// A run of the pipeline.
pub struct Pipeline<'a> {
    /// Where everything lies.
    pub project: &'a Project,
    /// Options for every program.
    pub programs: &'a ProgramOptions,
    /// Flags of the pipeline.
    pub args: &'a PipelineArgs,
    /// Set to stop; the program in work is asked to stop, too.
    pub stop: &'a AtomicBool,
}

impl Pipeline<'_> {
    /// Runs the phases in order, up to the first that fails; `Err` is a fault of the pipeline itself.
    pub fn run(&self) -> Result<Vec<Step>> {
        let mut state = State::open(self.project)?;
        let phases: Vec<Phase> = Phase::ALL
            .into_iter()
            .filter(|phase| (self.args.from..=self.args.to).contains(phase))
            .collect();
        let mut steps = Vec::new();
        for (index, phase) in phases.iter().enumerate() {
            let heading = format!("[{}/{}] {}", index + 1, phases.len(), phase.name());
            let start = Instant::now();
            let ended = self.phase(*phase, &heading, &mut state)?;
            let goes_on = !matches!(ended, Ended::Failed(_) | Ended::Interrupted);
            steps.push(Step {
                phase: *phase,
                ended,
                seconds: start.elapsed().as_secs_f64(),
            });
            if !goes_on {
                break;
            }
        }
        Ok(steps)
    }

    fn phase(&self, phase: Phase, heading: &str, state: &mut State) -> Result<Ended> {
        let say = |text: &str| console::say(Level::INFO, &format!("{heading}: {text}"));
        if self.stop.load(Ordering::Relaxed) {
            return Ok(Ended::Interrupted);
        }
        let program = program(phase)?;
        if !program.is_file() {
            if phase.may_be_missing() {
                say("not built yet: this version comes without it; skipped");
                return Ok(Ended::NotBuilt);
            }
            let reason = "program not found next to this one; install all programs";
            return Err(Error::checkpoint(&program, reason));
        }
        let work = match self.download(phase)? {
            Some(Download::Nothing(reason)) => {
                say(&format!("skipped, nothing to download: {reason}"));
                return Ok(Ended::Nothing(reason));
            }
            Some(Download::StandIn(work, note)) => {
                console::say(Level::WARN, &format!("{heading}: {note}"));
                work
            }
            Some(Download::Program(work)) => work,
            None => work(phase, self.project, &self.base()?),
        };
        if phase == Phase::FinetuneLora
            && let Some(reason) = self.untrained()?
        {
            say(&format!("skipped: {reason}"));
            return Ok(Ended::Nothing(reason.to_owned()));
        }
        if work.runs.is_empty() {
            let reason = match phase {
                Phase::EvaluateFinetuned => "no adapter found",
                _ => "no quantized model available",
            };
            say(&format!("nothing to measure: {reason}"));
            return Ok(Ended::Nothing(reason.to_owned()));
        }
        let inputs = self.fingerprint(phase, &work, state)?;
        let kept = !phase.always_runs() && !self.args.force;
        if kept && state.is_up_to_date(phase.name(), &inputs, &work.outputs)? {
            say("up to date");
            return Ok(Ended::UpToDate);
        }
        state.forget(phase.name())?;
        say("running");
        let start = Instant::now();
        for arguments in &work.runs {
            let ended = self.program(&program, phase, arguments)?;
            if ended != Ended::Done {
                return Ok(ended);
            }
        }
        if !phase.always_runs() {
            let seconds = start.elapsed().as_secs_f64();
            state.finish(phase.name(), inputs, &work.outputs, seconds)?;
        }
        Ok(Ended::Done)
    }

    /// The base model's folder.
    fn base(&self) -> Result<PathBuf> {
        Ok(self.project.model_folder(self.programs.model.as_deref())?.path)
    }

    /// Why this run leaves the training out, unless somebody has said how long it may be.
    fn untrained(&self) -> Result<Option<&'static str>> {
        let bounded = ["MVP_MAX_STEPS", "MVP_CONFIG"].map(std::env::var_os);
        if bounded.iter().any(Option::is_some) {
            return Ok(None);
        }
        let trained_here = self.project.file(paths::TRAINING_METRICS).exists();
        if !self.args.force && !trained_here && own_folder(self.project, &self.base()?).is_some() {
            return Ok(Some(ADAPTER_OF_OTHERS));
        }
        let on_gpu = match self.programs.device {
            DeviceChoice::Cpu => false,
            DeviceChoice::Gpu | DeviceChoice::Cuda(_) => true,
            DeviceChoice::Auto => device::gpus().is_ok_and(|gpus| !gpus.is_empty()),
        };
        Ok((!on_gpu).then_some(LONG_TRAINING))
    }

    /// How a download phase is done; `None` for any other.
    fn download(&self, phase: Phase) -> Result<Option<Download>> {
        let args = self.args;
        let network = || match args.hub.settings() {
            Ok(settings) => Network::probe(args.hub.offline(), &settings),
            // The program says what is wrong with them.
            Err(_) => Network::Online,
        };
        Ok(match phase {
            Phase::DownloadModel => {
                let wish = ModelWish {
                    chosen: self.programs.model.as_deref(),
                    source: args.model_source.as_deref(),
                };
                Some(download::model(self.project, &wish, network)?)
            }
            Phase::DownloadDatasets => {
                Some(download::datasets(self.project, &args.dataset_sources, network)?)
            }
            _ => None,
        })
    }

    /// A hash over everything that decides what a phase makes.
    fn fingerprint(&self, phase: Phase, work: &Work, state: &mut State) -> Result<String> {
        let mut hasher = Sha256::new();
        let mut add = |text: String| hasher.update(format!("{text}\n"));
        add(env!("CARGO_PKG_VERSION").to_owned());
        for argument in work.runs.iter().flatten() {
            add(format!("argument {}", argument.display()));
        }
        for (name, value) in settings() {
            add(format!("variable {}={}", name.display(), value.display()));
        }
        let measures = matches!(
            phase,
            Phase::BenchmarkBaseline | Phase::BenchmarkQuantized | Phase::EvaluateFinetuned
        );
        if measures {
            add(format!("{} {:?}", self.programs.device, self.programs.precision));
            for gpu in device::gpus().unwrap_or_default() {
                add(format!("GPU {}", gpu.name));
            }
        }
        let documents = std::env::var_os("MVP_DOCUMENTS").map(PathBuf::from);
        let inputs: Vec<PathBuf> = work.inputs.iter().cloned().chain(documents).collect();
        add(state.digest(&inputs)?);
        Ok(Hasher::Sha256(hasher).finish().to_string())
    }

    fn program(&self, program: &Path, phase: Phase, arguments: &[OsString]) -> Result<Ended> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .args(self.common_flags(phase))
            .stdin(Stdio::null())
            // Ctrl-C goes to this program, which passes it on once: twice would end the other at once.
            .process_group(0);
        // SAFETY: prctl is a system call and touches no memory; nothing else happens between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
                Ok(())
            });
        }
        let child = command.spawn().map_err(|error| Error::io(program, error))?;
        let status = self.wait(child).map_err(|error| Error::io(program, error))?;
        let code = status.code();
        Ok(if status.success() {
            Ended::Done
        } else if code == Some(i32::from(EXIT_INTERRUPTED)) || self.stop.load(Ordering::Relaxed) {
            Ended::Interrupted
        } else {
            Ended::Failed(match (code, status.signal()) {
                (Some(code), _) => format!("exit code {code}"),
                (None, Some(signal)) => format!("terminated by signal {signal}"),
                (None, None) => "terminated for an unknown reason".to_owned(),
            })
        })
    }

    fn wait(&self, mut child: Child) -> std::io::Result<ExitStatus> {
        let mut told = false;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if self.stop.load(Ordering::Relaxed) && !told {
                told = true;
                // SAFETY: the child is not waited for yet, so that the number is still its own.
                unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) };
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The flags that every program takes, as this one was given them.
    fn common_flags(&self, phase: Phase) -> Vec<OsString> {
        let options = self.programs;
        let mut flags: Vec<OsString> = vec!["--root".into(), self.project.root().into()];
        if let Some(model) = &options.model {
            flags.extend(["--model".into(), model.into()]);
        }
        flags.extend(["--device".into(), options.device.to_string().into()]);
        flags.extend(["--precision".into(), options.precision.to_string().into()]);
        if let Some(threads) = options.threads {
            flags.extend(["--threads".into(), threads.to_string().into()]);
        }
        if options.log_format == LogFormat::Json {
            flags.extend(["--log-format".into(), "json".into()]);
        }
        if options.quiet {
            flags.push("--quiet".into());
        }
        flags.extend((0..options.verbose).map(|_| "--verbose".into()));
        if matches!(phase, Phase::DownloadModel | Phase::DownloadDatasets) {
            let hub = &self.args.hub;
            flags.extend(["--jobs".into(), hub.jobs.to_string().into()]);
            flags.extend(["--retries".into(), hub.retries.to_string().into()]);
            flags.extend(["--stall-seconds".into(), hub.stall_seconds.to_string().into()]);
            flags.extend(["--retry-seconds".into(), hub.retry_seconds.to_string().into()]);
        }
        flags
    }
}

/// The program of a phase, beside this one.
fn program(phase: Phase) -> Result<PathBuf> {
    let this = std::env::current_exe().map_err(|error| Error::io("the running program", error))?;
    let folder = this.parent().unwrap_or(Path::new("."));
    Ok(folder.join(phase.name()))
}

/// The caller's variables that the programs obey, but for those that change no result; in order.
fn settings() -> Vec<(OsString, OsString)> {
    const WITHOUT_RESULT: [&str; 16] = [
        "MVP_ROOT",
        "MVP_FROM",
        "MVP_TO",
        "MVP_FORCE",
        "MVP_OFFLINE",
        "MVP_JOBS",
        "MVP_RETRIES",
        "MVP_STALL_SECONDS",
        "MVP_RETRY_SECONDS",
        "MVP_THREADS",
        "MVP_LOG",
        "MVP_LOG_FORMAT",
        "MVP_VERBOSE",
        "MVP_QUIET",
        "MVP_MODEL_SOURCE",
        "MVP_DATASET_SOURCE",
    ];
    let mut settings: Vec<_> = std::env::vars_os()
        .filter(|(name, _)| {
            name.as_encoded_bytes().starts_with(b"MVP_") && !WITHOUT_RESULT.iter().any(|other| name == other)
        })
        .collect();
    settings.sort();
    settings
}
