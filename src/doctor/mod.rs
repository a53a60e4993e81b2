//! `medvision doctor`: diagnoses machine, libtorch, devices, models and adapters, and suggests fixes.

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
pub use self::machine::{Machine, os};
pub(crate) use self::models::SECTION as MODELS;
pub use self::models::{ModelReport, ModelSizes};
pub use self::torch::{Accelerators, GpuReport, Libtorch, libtorch_version};
use crate::blackwell_compat;
use crate::device::{DeviceChoice, Precision};
use crate::project::Project;
use crate::records::gibibytes;

/// The flags of a run that the diagnosis depends on.
#[derive(Debug, Clone)]
pub struct Choices {
    /// Model; `None`: the pipeline's, or the embedded one.
    pub model: Option<PathBuf>,
    /// Device.
    pub device: DeviceChoice,
    /// Compute dtype.
    pub precision: Precision,
}

/// Severity of a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Information.
    Info,
    /// Checked and correct.
    Pass,
    /// Works, but not as well as it could.
    Warn,
    /// Must be fixed before pages can be read.
    Error,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// Heading in the report.
    pub section: &'static str,
    /// Severity.
    pub status: Status,
    /// The finding.
    pub message: String,
    /// Suggested fix.
    pub hint: Option<String>,
}

/// The diagnosis.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Whether pages can be read on this machine.
    pub usable: bool,
    /// Version and commit of this program.
    pub version: &'static str,
    /// Time of the diagnosis, RFC 3339 UTC.
    pub timestamp: String,
    /// The machine.
    pub machine: Machine,
    /// The loaded libtorch.
    pub libtorch: Libtorch,
    /// GPUs and their state.
    pub accelerators: Accelerators,
    /// State of integer products on the first GPU.
    pub blackwell_compat: blackwell_compat::Check,
    /// Model folders.
    pub models: Vec<ModelReport>,
    /// LoRA adapters.
    pub adapters: Vec<AdapterReport>,
    /// Findings, in the order of the text report.
    pub checks: Vec<Check>,
}

/// Collects findings.
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

/// Diagnoses the machine, libtorch, devices, models and adapters of `project` for a run with `choices`.
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

/// Human-readable report.
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
        let summary = match (count(Status::Error), count(Status::Warn)) {
            (0, 0) => "Ready to read pages.".to_owned(),
            (0, 1) => "Ready to read pages; 1 warning.".to_owned(),
            (0, warnings) => format!("Ready to read pages; {warnings} warnings."),
            (1, _) => "Not ready: 1 error above.".to_owned(),
            (errors, _) => format!("Not ready: {errors} errors above."),
        };
        writeln!(formatter, "\nSummary\n{summary}")
    }
}

/// Human-readable size.
fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", gibibytes(bytes))
}
