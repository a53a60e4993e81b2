//! What a training tells while it runs: a line of JSON a step, TensorBoard's events, and the loss as a picture.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{curve, events::Events};
use crate::fs::write_atomically;
use crate::project::Project;
use crate::records::LossPoint;
use crate::{Error, Result};

/// Folder of the logs, below the project's.
pub const FOLDER: &str = "benchmarks/training";
const LINES: &str = "metrics.jsonl";
const CURVE: &str = "loss.svg";

/// One validation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// Optimizer steps done.
    pub step: u64,
    /// Mean loss of a token.
    pub loss: f64,
    /// Likeliest next token right, percent.
    pub token_accuracy_pct: f64,
    /// Letters right in greedy answers, percent; `None` where none were asked for.
    pub document_accuracy_pct: Option<f64>,
}

/// Where a training stands: what a checkpoint holds beside tensors.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Optimizer steps done, skipped ones among them: the position in the data.
    pub step: u64,
    /// Steps of the optimizer itself.
    pub updates: u64,
    /// Steps whose gradient was not finite.
    pub skipped: u64,
    /// Skipped steps since the last good one.
    pub skipped_in_a_row: u64,
    /// Tokens computed at once, at most: decided once, since it changes the order of sums.
    pub batch_tokens: u64,
    /// Layers are computed again in the backward pass.
    pub recompute: bool,
    /// Samples trained on.
    pub samples: u64,
    /// Tokens computed: pages, prompts and answers.
    pub tokens: u64,
    /// Tokens learnt.
    pub label_tokens: u64,
    /// Time of training, of all runs together.
    pub seconds: f64,
    /// Mean training loss of a token by step.
    pub losses: Vec<LossPoint>,
    /// Validations so far.
    pub validations: Vec<Validation>,
    /// The best one.
    pub best: Option<Validation>,
    /// Validations since the best one.
    pub without_gain: u64,
}

impl Progress {
    /// Counts a step.
    pub(super) fn count(&mut self, loss: f64, skipped: bool) {
        self.step += 1;
        if skipped {
            self.skipped += 1;
            self.skipped_in_a_row += 1;
            return;
        }
        self.skipped_in_a_row = 0;
        self.updates += 1;
        let step = self.step;
        self.losses.push(LossPoint { step, loss });
    }
}

/// One optimizer step.
#[derive(Debug, Clone, Copy)]
pub struct StepReport {
    /// From 1.
    pub step: u64,
    /// Passes over the data so far.
    pub epoch: f64,
    /// Mean loss of a token.
    pub loss: f64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Before clipping.
    pub gradient_norm: f64,
    /// Tokens computed a second.
    pub tokens_per_second: f64,
    /// Of the step's time, waiting for pages to be read.
    pub data_wait_seconds: f64,
    /// The gradient was not finite, and nothing was changed.
    pub skipped: bool,
}

/// The log files of one training.
pub struct Log {
    folder: PathBuf,
    lines: File,
    events: Events,
}

impl Log {
    /// Opens the logs; of an earlier run of the same training the lines up to `step` stay.
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

    /// A step's figures.
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

    /// A validation's figures.
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

    /// Draws the loss so far.
    pub fn draw(&self, progress: &Progress) -> Result<()> {
        let Some(svg) = curve::draw(&progress.losses, &progress.validations) else {
            return Ok(());
        };
        write_atomically(&self.folder.join(CURVE), |file| file.write_all(svg.as_bytes()))
    }

    fn line(&mut self, value: &Value) -> Result<()> {
        writeln!(self.lines, "{value}").map_err(|error| Error::io(self.folder.join(LINES), error))
    }
}

/// JSON has no word for what is no number.
fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

/// Leaves the lines of steps up to `step`; a line that a killed run left half is none.
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

/// Events of an earlier training, which TensorBoard would draw into the same curves.
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
