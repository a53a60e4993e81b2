//! `medvision doctor`: what is installed, what works, what is wrong and how to mend it.

mod adapters;
pub mod environment;
mod machine;
mod models;
mod torch;

use std::fmt;
use std::path::PathBuf;

use chrono::{SecondsFormat, Utc};
use serde::Serialize;

pub use self::adapters::AdapterReport;
pub use self::machine::Machine;
pub(crate) use self::models::SECTION as MODELS;
pub use self::models::{ModelReport, ModelSizes};
pub use self::torch::{Accelerators, GpuReport, Libtorch};
use crate::blackwell_compat;
use crate::device::{DeviceChoice, Precision};
use crate::project::Project;
use crate::records::gibibytes;

/// What a run is asked for, as far as the doctor looks at it.
#[derive(Debug, Clone)]
pub struct Choices {
    /// The model; `None`: the pipeline's, or the embedded one.
    pub model: Option<PathBuf>,
    /// Where it runs.
    pub device: DeviceChoice,
    /// Number format of activations.
    pub precision: Precision,
}

/// How one finding is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// A fact.
    Info,
    /// Checked and in order.
    Pass,
    /// Something is worse than it could be.
    Warn,
    /// Pages cannot be read before this is mended.
    Error,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Heading it belongs under.
    pub section: &'static str,
    /// How it is to be taken.
    pub status: Status,
    /// What was found.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// Everything that `doctor` found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Pages can be read on this machine as things are.
    pub usable: bool,
    /// Version and commit of this program.
    pub version: &'static str,
    /// When the report was made, RFC 3339 UTC.
    pub timestamp: String,
    /// The machine.
    pub machine: Machine,
    /// The libtorch that this program runs on.
    pub libtorch: Libtorch,
    /// GPUs, and whether they work.
    pub accelerators: Accelerators,
    /// Integer products on the first GPU.
    pub blackwell_compat: blackwell_compat::Check,
    /// Model folders.
    pub models: Vec<ModelReport>,
    /// LoRA adapters.
    pub adapters: Vec<AdapterReport>,
    /// The findings, in the order of the text report.
    pub checks: Vec<Check>,
}

/// Findings in the making.
#[derive(Debug, Default)]
struct Checks(Vec<Check>);

impl Checks {
    fn add(&mut self, section: &'static str, status: Status, message: impl Into<String>) {
        self.0.push(Check {
            section,
            status,
            message: message.into(),
            hint: None,
        });
    }

    fn add_with_hint(
        &mut self,
        section: &'static str,
        status: Status,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.add(section, status, message);
        if let Some(check) = self.0.last_mut() {
            check.hint = Some(hint.into());
        }
    }
}

/// Looks at the machine, libtorch, the devices and the models of `project`, as a run of `choices` would see them.
pub fn examine(project: &Project, choices: &Choices) -> Report {
    let mut checks = Checks::default();
    let machine = machine::examine(project, &mut checks);
    let libtorch = torch::examine_libtorch(&mut checks);
    let accelerators = torch::examine_accelerators(choices.device, &mut checks);
    let models = models::examine(project, choices, &machine, &accelerators, &mut checks);
    let adapters = adapters::examine(project, &models, &mut checks);
    Report {
        usable: !checks.0.iter().any(|check| check.status == Status::Error),
        version: crate::version::version(),
        timestamp: Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true),
        machine,
        libtorch,
        blackwell_compat: accelerators
            .gpus
            .first()
            .map(|gpu| gpu.blackwell_compat.clone())
            .unwrap_or_default(),
        accelerators,
        models,
        adapters,
        checks: checks.0,
    }
}

/// The report for people.
impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "medvision {}", self.version)?;
        let mut section = "";
        for check in &self.checks {
            if check.section != section {
                section = check.section;
                writeln!(formatter, "\n{section}")?;
            }
            let status = match check.status {
                Status::Info => "INFO",
                Status::Pass => "PASS",
                Status::Warn => "WARN",
                Status::Error => "ERROR",
            };
            writeln!(formatter, "[{status}] {}", check.message)?;
            if let Some(hint) = &check.hint {
                writeln!(formatter, "       hint: {hint}")?;
            }
        }
        let count = |status| self.checks.iter().filter(|check| check.status == status).count();
        let verdict = match (count(Status::Error), count(Status::Warn)) {
            (0, 0) => "Ready to read pages.".to_owned(),
            (0, 1) => "Ready to read pages; 1 warning.".to_owned(),
            (0, warnings) => format!("Ready to read pages; {warnings} warnings."),
            (1, _) => "Not ready: 1 error above.".to_owned(),
            (errors, _) => format!("Not ready: {errors} errors above."),
        };
        writeln!(formatter, "\nSummary\n{verdict}")
    }
}

/// `bytes` for people.
fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", gibibytes(bytes))
}
