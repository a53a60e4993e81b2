//! `benchmarks/training_metrics.json`: the result of `finetune_lora`.

use serde::{Deserialize, Serialize};

use super::Extra;

/// Figures of a training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingMetrics {
    /// Duration, seconds.
    pub training_time_seconds: Option<f64>,
    /// Training loss at the end.
    pub final_loss: Option<f64>,
    /// Epochs.
    pub epochs_completed: Option<f64>,
    /// Peak learning rate.
    pub learning_rate: Option<f64>,
    /// LoRA's r.
    pub lora_rank: Option<u64>,
    /// LoRA's alpha.
    pub lora_alpha: Option<f64>,
    /// Number of trained weights.
    pub trainable_params: Option<u64>,
    /// Number of all weights.
    pub total_params: Option<u64>,
    /// Share of trained weights, percent.
    pub trainable_pct: Option<f64>,
    /// Samples per micro-batch and device.
    pub batch_size: Option<u64>,
    /// Gradient accumulation steps.
    pub grad_accum_steps: Option<u64>,
    /// Samples per optimizer step.
    pub effective_batch_size: Option<u64>,
    /// Maximum tokens of a sample.
    pub max_seq_length: Option<u64>,
    /// Samples trained on.
    pub training_samples: Option<u64>,
    /// Samples validated on.
    pub val_samples: Option<u64>,
    /// Samples available.
    pub total_training_samples_available: Option<u64>,
    /// Why some were left out.
    pub subsample_note: Option<String>,
    /// The trainer's own figures.
    pub metrics: Option<TrainerMetrics>,
    /// Loss by step, for the loss plot and the report's initial loss; not in the contract.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loss_history: Vec<LossPoint>,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The trainer's figures, by transformers' names.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainerMetrics {
    /// Seconds.
    pub train_runtime: Option<f64>,
    /// Samples per second.
    pub train_samples_per_second: Option<f64>,
    /// Optimizer steps per second.
    pub train_steps_per_second: Option<f64>,
    /// Floating-point operations.
    pub total_flos: Option<f64>,
    /// Mean training loss.
    pub train_loss: Option<f64>,
    /// Epochs.
    pub epoch: Option<f64>,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The loss at one optimizer step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LossPoint {
    /// Number of the step, from 1.
    pub step: u64,
    /// Training loss.
    pub loss: f64,
}
