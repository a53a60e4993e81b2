//! The record of a run, and its summary for the user.

use std::path::Path;

use serde_json::{Value, json};
use tch::Device;

use super::{log::FOLDER, options::TrainingOptions, progress::Progress, samples::Samples};
use crate::engine::ModelInfo;
use crate::records::{Extra, GpuMemory, TrainerMetrics, TrainingMetrics, round_to, seconds};

/// Maximum number of steps over which the initial and the final loss are averaged.
const EDGE: usize = 10;

/// A finished run.
pub(super) struct FinishedRun<'a> {
    pub(super) options: &'a TrainingOptions,
    pub(super) progress: &'a Progress,
    pub(super) train: &'a Samples,
    pub(super) validation: Option<&'a Samples>,
    pub(super) max_tokens: usize,
    pub(super) max_pixels: u64,
    pub(super) steps_per_epoch: u64,
    pub(super) trained: u64,
    pub(super) base_parameters: u64,
    pub(super) base: &'a Path,
    pub(super) adapter: &'a Path,
    pub(super) model: &'a ModelInfo,
    pub(super) processes: usize,
    pub(super) device: Device,
    /// Duration of each step; sorted by [`metrics`].
    pub(super) step_seconds: &'a mut [f64],
}

/// The record.
pub(super) fn metrics(run: &mut FinishedRun<'_>) -> TrainingMetrics {
    run.step_seconds.sort_by(f64::total_cmp);
    let run = &*run;
    let FinishedRun {
        options,
        progress,
        train,
        ..
    } = run;
    let epochs = progress.step as f64 / run.steps_per_epoch as f64;
    let total = run.base_parameters + run.trained;
    let rate = |count: u64| (progress.seconds > 0.0).then(|| round_to(count as f64 / progress.seconds, 4));
    let losses: Vec<f64> = progress.losses.iter().map(|point| point.loss).collect();
    let edge = losses.len().div_ceil(4).min(EDGE);
    TrainingMetrics {
        training_time_seconds: Some(seconds(progress.seconds)),
        final_loss: mean(&losses[losses.len() - edge..]),
        epochs_completed: Some(round_to(epochs, 4)),
        learning_rate: Some(options.learning_rate),
        lora_rank: Some(options.lora_rank),
        lora_alpha: Some(options.lora_alpha),
        trainable_params: Some(run.trained),
        total_params: Some(total),
        trainable_pct: Some(round_to(run.trained as f64 / total as f64 * 100.0, 4)),
        batch_size: Some(options.batch_size),
        grad_accum_steps: Some(options.grad_accum_steps),
        effective_batch_size: Some(options.step_samples() * run.processes as u64),
        max_seq_length: Some(run.max_tokens as u64),
        training_samples: Some(train.samples.len() as u64),
        val_samples: Some(run.validation.map_or(0, |samples| samples.samples.len() as u64)),
        total_training_samples_available: Some(train.available as u64),
        subsample_note: note(run),
        metrics: Some(TrainerMetrics {
            train_runtime: Some(seconds(progress.seconds)),
            train_samples_per_second: rate(progress.samples),
            train_steps_per_second: rate(progress.updates),
            total_flos: Some(6.0 * total as f64 * progress.tokens as f64),
            train_loss: mean(&losses),
            epoch: Some(round_to(epochs, 4)),
            extra: Extra::new(),
        }),
        loss_history: progress.losses.clone(),
        extra: extra(run, mean(&losses[..edge]), rate(progress.tokens)),
    }
}

fn extra(run: &FinishedRun<'_>, initial_loss: Option<f64>, tokens_per_second: Option<f64>) -> Extra {
    let progress = run.progress;
    let value = json!({
        "initial_loss": initial_loss,
        "base_model_dir": run.base.display().to_string(),
        "adapter_dir": run.adapter.display().to_string(),
        "model_name": run.model.model_name,
        "precision": run.model.precision,
        "device": run.model.device,
        "min_pixels": run.options.min_pixels,
        "max_enlargement": run.options.min_pixels.map(|_| run.options.max_enlargement),
        "max_pixels": run.max_pixels,
        "max_batch_tokens": progress.batch_tokens,
        "gradient_checkpointing": progress.recompute,
        "steps": progress.step,
        "skipped_steps": progress.skipped,
        "tokens": progress.tokens,
        "label_tokens": progress.label_tokens,
        "tokens_per_second": tokens_per_second,
        "median_step_seconds": run.step_seconds.get(run.step_seconds.len() / 2),
        "gpu_memory": GpuMemory::of(run.device),
        "processes": run.processes,
        "left_out": run.train.skipped,
        "validations": progress.validations,
        "best_validation": progress.best,
        "log_dir": FOLDER,
        "options": run.options,
    });
    match value {
        Value::Object(map) => map,
        _ => Extra::new(),
    }
}

fn note(run: &FinishedRun<'_>) -> Option<String> {
    let (taken, available) = (run.train.samples.len(), run.train.available);
    (taken < available).then(|| {
        let skipped = run.train.skipped;
        format!(
            "{taken} of {available} training samples: the first {}, of which {} are too long, {} have no readable page and \
             {} no answer",
            run.options.max_samples.min(available as u64),
            skipped.too_long,
            skipped.broken_page,
            skipped.empty_answer
        )
    })
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| round_to(values.iter().sum::<f64>() / values.len() as f64, 6))
}

/// Summary of the run, a few lines.
pub fn summary(record: &TrainingMetrics) -> String {
    let number = |value: Option<f64>, decimals: usize| {
        value.map_or_else(|| "n/a".to_owned(), |value| format!("{value:.decimals$}"))
    };
    let text = |key: &str| {
        record
            .extra
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let figure = |key: &str| record.extra.get(key).and_then(Value::as_f64);
    let mut lines = format!(
        "adapter: {}\n  {} of {} parameters trained ({} %), on {}\n  {} samples, {} epochs, {} s, {} tokens/s\n  training loss \
         {} -> {}\n",
        text("adapter_dir"),
        record.trainable_params.unwrap_or_default(),
        record.total_params.unwrap_or_default(),
        number(record.trainable_pct, 2),
        text("base_model_dir"),
        record.training_samples.unwrap_or_default(),
        number(record.epochs_completed, 2),
        number(record.training_time_seconds, 1),
        number(figure("tokens_per_second"), 0),
        number(figure("initial_loss"), 4),
        number(record.final_loss, 4),
    );
    let best = record.extra.get("best_validation").filter(|best| !best.is_null());
    if let Some(best) = best {
        lines += &format!(
            "  best validation: loss {}, {} % of tokens, after step {}; this adapter was written\n",
            number(best["loss"].as_f64(), 4),
            number(best["token_accuracy_pct"].as_f64(), 2),
            best["step"]
        );
    }
    if let Some(skipped) = figure("skipped_steps").filter(|&skipped| skipped > 0.0) {
        lines += &format!("  {skipped} steps skipped: gradients not finite\n");
    }
    lines + &format!("  logs: {}\n", text("log_dir"))
}
