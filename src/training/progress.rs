//! The progress of a training run: what its checkpoints, logs and record say of it.

use serde::{Deserialize, Serialize};

use super::plan::MemoryPlan;
use crate::records::LossPoint;

/// Metrics of one validation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// Optimizer steps done.
    pub step: u64,
    /// Mean loss per token.
    pub loss: f64,
    /// Teacher-forced top-1 token accuracy, percent.
    pub token_accuracy_pct: f64,
    /// Character accuracy of greedy answers, percent; `None` if none were generated.
    pub document_accuracy_pct: Option<f64>,
}

/// Progress of a training run: the part of a checkpoint that is not tensors.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Optimizer steps done, including skipped ones: the position in the data.
    pub step: u64,
    /// Updates of the parameters: steps that were not skipped.
    pub updates: u64,
    /// Steps skipped because of non-finite gradients.
    pub skipped: u64,
    /// Consecutive skipped steps up to now.
    pub skipped_in_a_row: u64,
    /// Maximum tokens per forward pass. Fixed for the whole run: it determines the order of summation.
    pub batch_tokens: u64,
    /// Gradient checkpointing is on.
    pub recompute: bool,
    /// Samples trained on.
    pub samples: u64,
    /// Tokens of pages, prompts and answers.
    pub tokens: u64,
    /// Label tokens, which have a loss.
    pub label_tokens: u64,
    /// Training time, seconds, including the runs before a resume.
    pub seconds: f64,
    /// Mean training loss per token, by step.
    pub losses: Vec<LossPoint>,
    /// All validations.
    pub validations: Vec<Validation>,
    /// The validation with the lowest loss.
    pub best: Option<Validation>,
    /// Validations since the best one.
    pub without_gain: u64,
}

impl Progress {
    /// The beginning of a run.
    pub(super) fn new(memory: MemoryPlan) -> Self {
        Self {
            batch_tokens: memory.batch_tokens,
            recompute: memory.recompute,
            ..Self::default()
        }
    }

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

    /// Adds a validation; whether it is the best one so far.
    pub(super) fn add_validation(&mut self, validation: Validation) -> bool {
        let best = self.best.as_ref().is_none_or(|best| validation.loss < best.loss);
        if best {
            self.best = Some(validation.clone());
            self.without_gain = 0;
        } else {
            self.without_gain += 1;
        }
        self.validations.push(validation);
        best
    }
}

/// Metrics of one optimizer step.
#[derive(Debug, Clone, Copy)]
pub struct StepReport {
    /// From 1.
    pub step: u64,
    /// Epochs done, with their fraction.
    pub epoch: f64,
    /// Mean loss per token.
    pub loss: f64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Gradient norm before clipping.
    pub gradient_norm: f64,
    /// Throughput.
    pub tokens_per_second: f64,
    /// Time of the step spent waiting for the data loader.
    pub data_wait_seconds: f64,
    /// The gradients were not finite: the parameters did not change.
    pub skipped: bool,
}
