//! Runs the phases.

use std::ffi::OsString;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::{
    Phase,
    download::{self, Download, ModelChoice, Network},
    plan::{Plan, plan},
    state::State,
};
use crate::console::{EXIT_INTERRUPTED, Level, Notify};
use crate::device::{self, DeviceChoice, Precision};
use crate::fs::parent_folder;
use crate::hub::{Hasher, HubSettings};
use crate::lora::own_adapter_folder;
use crate::project::Project;
use crate::records::paths;
use crate::{Error, Result};

/// Reason for skipping training on a CPU.
const LONG_TRAINING: &str = "full training takes hours on a CPU; set MVP_MAX_STEPS=N for a short run within the pipeline, \
                             or run finetune_lora directly";

/// Reason for skipping training if the model already has an adapter from elsewhere.
const EXISTING_ADAPTER: &str =
    "an adapter that was not trained here exists and is evaluated; set MVP_MAX_STEPS=N to train a new one";

/// Options of a run.
#[derive(Debug, Clone)]
pub struct PipelineOptions {
    /// First phase.
    pub from: Phase,
    /// Last phase.
    pub to: Phase,
    /// Run phases even if they are up to date.
    pub force: bool,
    /// Base model: a path, or a name under `models/`; `None`: as [`Project::model_folder`] chooses.
    pub model: Option<PathBuf>,
    /// Device of all programs.
    pub device: DeviceChoice,
    /// Compute dtype of all programs.
    pub precision: Precision,
    /// Local copy of the base model to use instead of a download.
    pub model_source: Option<PathBuf>,
    /// Local copies of datasets, `[NAME=]PATH`.
    pub dataset_sources: Vec<String>,
    /// Do not use the network.
    pub offline: bool,
    /// Hub settings; `None` if they are not valid, which the download programs report.
    pub hub: Option<HubSettings>,
    /// Flags passed to every program.
    pub program_flags: Vec<OsString>,
    /// Further flags, passed to the programs that download.
    pub download_flags: Vec<OsString>,
}

/// How a phase ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepStatus {
    /// Its program succeeded.
    Done,
    /// Its inputs and outputs are unchanged.
    UpToDate,
    /// There was nothing to do, for this reason.
    Skipped(String),
    /// Its program failed; says how.
    Failed(String),
    /// Stopped by a signal.
    Interrupted,
}

/// One phase of a run.
#[derive(Debug, Clone)]
pub struct Step {
    /// The phase.
    pub phase: Phase,
    /// How it ended.
    pub status: StepStatus,
    /// Wall-clock time.
    pub seconds: f64,
}

/// A run of the pipeline.
pub struct Pipeline<'a> {
    /// The project.
    pub project: &'a Project,
    /// Phases, and the options of their programs.
    pub options: &'a PipelineOptions,
    /// Told what each phase does.
    pub notify: Notify<'a>,
    /// Set to stop; the current program is sent SIGINT.
    pub stop: &'a AtomicBool,
}

impl Pipeline<'_> {
    /// Runs the phases in order, up to the first one that fails or is interrupted.
    ///
    /// # Errors
    /// Errors of the pipeline itself, such as a missing program; a program that fails is a [`StepStatus::Failed`].
    pub fn run(&self) -> Result<Vec<Step>> {
        let mut state = State::open(self.project, self.notify)?;
        let phases: Vec<Phase> = Phase::ALL
            .into_iter()
            .filter(|phase| (self.options.from..=self.options.to).contains(phase))
            .collect();
        let mut steps = Vec::new();
        for (index, phase) in phases.iter().enumerate() {
            let heading = format!("[{}/{}] {}", index + 1, phases.len(), phase.name());
            let start = Instant::now();
            let status = self.phase(*phase, &heading, &mut state)?;
            let is_last = matches!(status, StepStatus::Failed(_) | StepStatus::Interrupted);
            steps.push(Step {
                phase: *phase,
                status,
                seconds: start.elapsed().as_secs_f64(),
            });
            if is_last {
                break;
            }
        }
        Ok(steps)
    }

    fn phase(&self, phase: Phase, heading: &str, state: &mut State) -> Result<StepStatus> {
        let say = |text: &str| (self.notify)(Level::INFO, &format!("{heading}: {text}"));
        if self.stop.load(Ordering::Relaxed) {
            return Ok(StepStatus::Interrupted);
        }
        let program = program(phase)?;
        if !program.is_file() {
            let reason = "program not found next to this one; install all programs";
            return Err(Error::not_found(&program, reason));
        }
        let plan = match self.download(phase)? {
            Some(Download::Skip(reason)) => {
                say(&format!("skipped, nothing to download: {reason}"));
                return Ok(StepStatus::Skipped(reason));
            }
            Some(Download::Fallback(plan, warning)) => {
                (self.notify)(Level::WARN, &format!("{heading}: {warning}"));
                plan
            }
            Some(Download::Run(plan)) => plan,
            None => plan(phase, self.project, &self.base()?),
        };
        if phase == Phase::FinetuneLora
            && let Some(reason) = self.reason_to_skip_training()?
        {
            say(&format!("skipped: {reason}"));
            return Ok(StepStatus::Skipped(reason.to_owned()));
        }
        if plan.runs.is_empty() {
            let reason = match phase {
                Phase::EvaluateFinetuned => "no adapter found",
                _ => "no quantized model available",
            };
            say(&format!("nothing to measure: {reason}"));
            return Ok(StepStatus::Skipped(reason.to_owned()));
        }
        let inputs = self.fingerprint(phase, &plan, state)?;
        let may_skip = !phase.always_runs() && !self.options.force;
        if may_skip && state.is_up_to_date(phase.name(), &inputs, &plan.outputs)? {
            say("up to date");
            return Ok(StepStatus::UpToDate);
        }
        state.forget(phase.name())?;
        say("running");
        let start = Instant::now();
        for arguments in &plan.runs {
            let status = self.run_program(&program, phase, arguments)?;
            if status != StepStatus::Done {
                return Ok(status);
            }
        }
        if !phase.always_runs() {
            let seconds = start.elapsed().as_secs_f64();
            state.finish(phase.name(), inputs, &plan.outputs, seconds)?;
        }
        Ok(StepStatus::Done)
    }

    /// The base model's folder.
    fn base(&self) -> Result<PathBuf> {
        Ok(self.project.model_folder(self.options.model.as_deref())?.path)
    }

    /// Why training is skipped, unless its length is limited.
    fn reason_to_skip_training(&self) -> Result<Option<&'static str>> {
        let limits = ["MVP_MAX_STEPS", "MVP_CONFIG"].map(std::env::var_os);
        if limits.iter().any(Option::is_some) {
            return Ok(None);
        }
        let trained_here = self.project.file(paths::TRAINING_METRICS).exists();
        if !self.options.force && !trained_here && own_adapter_folder(self.project, &self.base()?).is_some() {
            return Ok(Some(EXISTING_ADAPTER));
        }
        let on_gpu = match self.options.device {
            DeviceChoice::Cpu => false,
            DeviceChoice::Gpu | DeviceChoice::Cuda(_) => true,
            DeviceChoice::Auto => device::gpus().is_ok_and(|gpus| !gpus.is_empty()),
        };
        Ok((!on_gpu).then_some(LONG_TRAINING))
    }

    /// How a download phase is run; `None` for any other phase.
    fn download(&self, phase: Phase) -> Result<Option<Download>> {
        let options = self.options;
        let network = || match &options.hub {
            Some(settings) => Network::probe(options.offline, settings),
            None => Network::Online,
        };
        Ok(match phase {
            Phase::DownloadModel => {
                let choice = ModelChoice {
                    model: options.model.as_deref(),
                    source: options.model_source.as_deref(),
                };
                Some(download::model(self.project, &choice, network)?)
            }
            Phase::DownloadDatasets => Some(download::datasets(
                self.project,
                &options.dataset_sources,
                network,
            )?),
            _ => None,
        })
    }

    /// Returns a hash of everything that the outputs of a phase depend on.
    fn fingerprint(&self, phase: Phase, plan: &Plan, state: &mut State) -> Result<String> {
        let mut hasher = Sha256::new();
        let mut add = |text: String| hasher.update(format!("{text}\n"));
        add(env!("CARGO_PKG_VERSION").to_owned());
        for argument in plan.runs.iter().flatten() {
            add(format!("argument {}", argument.display()));
        }
        for (name, value) in variables() {
            add(format!("variable {}={}", name.display(), value.display()));
        }
        let measures = matches!(
            phase,
            Phase::BenchmarkBaseline | Phase::BenchmarkQuantized | Phase::EvaluateFinetuned
        );
        if measures {
            add(format!("{} {:?}", self.options.device, self.options.precision));
            for gpu in device::gpus().unwrap_or_default() {
                add(format!("GPU {}", gpu.name));
            }
        }
        let documents = std::env::var_os("MVP_DOCUMENTS").map(PathBuf::from);
        let inputs: Vec<PathBuf> = plan.inputs.iter().cloned().chain(documents).collect();
        add(state.digest(&inputs)?);
        Ok(Hasher::Sha256(hasher).finish().to_string())
    }

    fn run_program(&self, program: &Path, phase: Phase, arguments: &[OsString]) -> Result<StepStatus> {
        let mut command = Command::new(program);
        command.args(arguments).args(&self.options.program_flags);
        if matches!(phase, Phase::DownloadModel | Phase::DownloadDatasets) {
            command.args(&self.options.download_flags);
        }
        // In its own process group, so that Ctrl-C reaches only this process, which passes it on once: a second signal
        // would end the program at once.
        command.stdin(Stdio::null()).process_group(0);
        // SAFETY: the closure makes one system call, which is async-signal-safe and accesses no memory.
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
            StepStatus::Done
        } else if code == Some(i32::from(EXIT_INTERRUPTED)) || self.stop.load(Ordering::Relaxed) {
            StepStatus::Interrupted
        } else {
            StepStatus::Failed(match (code, status.signal()) {
                (Some(code), _) => format!("exit code {code}"),
                (None, Some(signal)) => format!("terminated by signal {signal}"),
                (None, None) => "terminated for an unknown reason".to_owned(),
            })
        })
    }

    fn wait(&self, mut child: Child) -> std::io::Result<ExitStatus> {
        let mut signalled = false;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if self.stop.load(Ordering::Relaxed) && !signalled {
                signalled = true;
                // SAFETY: the child has not been reaped, so the process id is still its own.
                unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) };
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Path of a phase's program, next to the running one.
fn program(phase: Phase) -> Result<PathBuf> {
    let current = std::env::current_exe().map_err(|source| Error::System {
        what: "the running program",
        source,
    })?;
    let folder = parent_folder(&current);
    Ok(folder.join(phase.name()))
}

/// The `MVP_*` variables that can change results, sorted.
fn variables() -> Vec<(OsString, OsString)> {
    const IRRELEVANT: [&str; 16] = [
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
    let mut variables: Vec<_> = std::env::vars_os()
        .filter(|(name, _)| {
            name.as_encoded_bytes().starts_with(b"MVP_") && !IRRELEVANT.iter().any(|other| name == other)
        })
        .collect();
    variables.sort();
    variables
}
