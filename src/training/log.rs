//! Training logs: JSON lines, TensorBoard events, and a plot of the loss.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{
    curve,
    events::Events,
    progress::{Progress, StepReport, Validation},
};
use crate::fs::write_atomically;
use crate::project::Project;
use crate::{Error, Result};

/// Folder of the logs, relative to the project folder.
pub const FOLDER: &str = "benchmarks/training";
const LINES: &str = "metrics.jsonl";
const CURVE: &str = "loss.svg";

/// The log files of one run.
pub struct Log {
    folder: PathBuf,
    lines: File,
    events: Events,
}

impl Log {
    /// Opens the logs. Lines up to `step` are kept: a resumed run appends to them.
    pub fn open(project: &Project, step: u64) -> Result<Self> {
        let folder = project.file(FOLDER);
        fs::create_dir_all(&folder).map_err(|error| Error::io(&folder, error))?;
        let path = folder.join(LINES);
        keep_lines(&path, step)?;
        if step == 0 {
            remove_events(&folder);
        }
        let lines = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .map_err(|error| Error::io(&path, error))?;
        let events = Events::create(&folder)?;
        Ok(Self {
            folder,
            lines,
            events,
        })
    }

    /// Logs the metrics of a step.
    pub fn step(&mut self, report: &StepReport) -> Result<()> {
        self.line(&json!({
            "step": report.step, "epoch": report.epoch, "loss": finite(report.loss),
            "learning_rate": report.learning_rate, "gradient_norm": finite(report.gradient_norm),
            "tokens_per_second": report.tokens_per_second, "data_wait_seconds": report.data_wait_seconds,
            "skipped": report.skipped,
        }))?;
        self.events.scalars(
            report.step,
            &[
                ("train/loss", report.loss),
                ("train/learning_rate", report.learning_rate),
                ("train/gradient_norm", report.gradient_norm),
                ("train/tokens_per_second", report.tokens_per_second),
                ("train/data_wait_seconds", report.data_wait_seconds),
            ],
        )
    }

    /// Logs the metrics of a validation.
    pub fn validation(&mut self, validation: &Validation) -> Result<()> {
        let value = serde_json::to_value(validation).unwrap_or_default();
        self.line(&json!({"step": validation.step, "validation": value}))?;
        let mut scalars = vec![
            ("validation/loss", validation.loss),
            ("validation/token_accuracy_pct", validation.token_accuracy_pct),
        ];
        if let Some(accuracy) = validation.document_accuracy_pct {
            scalars.push(("validation/document_accuracy_pct", accuracy));
        }
        self.events.scalars(validation.step, &scalars)
    }

    /// Plots the loss so far.
    pub fn plot(&self, progress: &Progress) -> Result<()> {
        let Some(svg) = curve::draw(&progress.losses, &progress.validations) else {
            return Ok(());
        };
        write_atomically(&self.folder.join(CURVE), |file| file.write_all(svg.as_bytes()))
    }

    fn line(&mut self, value: &Value) -> Result<()> {
        writeln!(self.lines, "{value}").map_err(|error| Error::io(self.folder.join(LINES), error))
    }
}

/// `None` for NaN/Inf, which JSON cannot represent.
fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

/// Removes the lines of steps after `step`, and lines that a killed run left incomplete.
fn keep_lines(path: &Path, step: u64) -> Result<()> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io(path, error)),
    };
    let kept: Vec<String> = BufReader::new(file)
        .lines()
        .map_while(Result::ok)
        .filter(|line| {
            let value: Option<Value> = serde_json::from_str(line).ok();
            value
                .and_then(|value| value["step"].as_u64())
                .is_some_and(|at| at <= step)
        })
        .collect();
    write_atomically(path, |file| {
        kept.iter().try_for_each(|line| writeln!(file, "{line}"))
    })
}

/// Removes the events of an earlier run, which TensorBoard would merge into the same curves.
fn remove_events(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry
            .file_name()
            .to_string_lossy()
            .starts_with(super::events::PREFIX)
        {
            let _ = fs::remove_file(entry.path());
        }
    }
}
