//! `benchmarks/training_metrics.json`: what `finetune_lora` measured.

use serde::{Deserialize, Serialize};

use super::Extra;

/// One training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingMetrics {
    /// How long it took, seconds.
    pub training_time_seconds: Option<f64>,
    /// Training loss at the end.
    pub final_loss: Option<f64>,
    /// Epochs done.
    pub epochs_completed: Option<f64>,
    /// Highest learning rate.
    pub learning_rate: Option<f64>,
    /// LoRA's r.
    pub lora_rank: Option<u64>,
    /// LoRA's alpha.
    pub lora_alpha: Option<f64>,
    /// Weights that were trained.
    pub trainable_params: Option<u64>,
    /// All weights.
    pub total_params: Option<u64>,
    /// The trained ones' share, percent.
    pub trainable_pct: Option<f64>,
    /// Samples a step and device.
    pub batch_size: Option<u64>,
    /// Steps an update.
    pub grad_accum_steps: Option<u64>,
    /// Samples an update.
    pub effective_batch_size: Option<u64>,
    /// Most tokens of a sample.
    pub max_seq_length: Option<u64>,
    /// Samples trained on.
    pub training_samples: Option<u64>,
    /// Samples validated on.
    pub val_samples: Option<u64>,
    /// Samples there were.
    pub total_training_samples_available: Option<u64>,
    /// Why not all were taken.
    pub subsample_note: Option<String>,
    /// The trainer's own figures.
    pub metrics: Option<TrainerMetrics>,
    /// Loss by step, ours: what the loss plot and the report's initial loss come from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loss_history: Vec<LossPoint>,
    /// Keys that no field knows.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The trainer's figures, by transformers' names.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainerMetrics {
    /// Seconds.
    pub train_runtime: Option<f64>,
    /// Samples a second.
    pub train_samples_per_second: Option<f64>,
    /// Updates a second.
    pub train_steps_per_second: Option<f64>,
    /// Floating-point operations.
    pub total_flos: Option<f64>,
    /// Mean training loss.
    pub train_loss: Option<f64>,
    /// Epochs done.
    pub epoch: Option<f64>,
    /// Keys that no field knows.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The loss at one update.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LossPoint {
    /// The update's number, from 1.
    pub step: u64,
    /// Training loss.
    pub loss: f64,
}
