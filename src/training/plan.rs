//! What a run will do: number of steps, batches, learning-rate schedule; and how much memory a batch may take.

use tch::Device;

use super::{base::Base, batches::Batching, options::TrainingOptions, schedule::Schedule};
use crate::console::{Level, Notify};
use crate::device::{gpu_memory, host_memory};

/// Number of validations per run without `eval_steps`.
const DEFAULT_VALIDATIONS: u64 = 10;
/// Maximum tokens per forward pass where the available memory is unknown.
const DEFAULT_BATCH_TOKENS: u64 = 8192;
/// Fraction of the available memory that the activations of a batch may take.
const MEMORY_FRACTION: f64 = 0.6;

/// Steps of a run, by its settings and the number of samples.
pub(super) struct Plan {
    pub(super) batching: Batching,
    pub(super) schedule: Schedule,
    pub(super) steps_per_epoch: u64,
    /// Optimizer steps of the whole run.
    pub(super) steps: u64,
    /// Steps between validations.
    pub(super) eval_steps: u64,
    /// Steps between checkpoints.
    pub(super) checkpoint_steps: u64,
}

impl Plan {
    /// The plan for `samples` training samples in `processes` processes, with at most `batch_tokens` tokens per forward pass.
    pub(super) fn new(
        options: &TrainingOptions,
        samples: usize,
        processes: usize,
        batch_tokens: usize,
    ) -> Self {
        let batching = Batching {
            step_samples: options.step_samples() as usize * processes,
            batch_size: options.batch_size as usize,
            batch_tokens,
            seed: options.seed,
        };
        let steps_per_epoch = batching.steps_per_epoch(samples);
        let all = options.epochs * steps_per_epoch;
        let steps = options.max_steps.map_or(all, |max_steps| max_steps.min(all));
        let eval_steps = options
            .eval_steps
            .unwrap_or(steps.div_ceil(DEFAULT_VALIDATIONS))
            .max(1);
        Self {
            batching,
            schedule: Schedule::new(options, steps),
            steps_per_epoch,
            steps,
            eval_steps,
            checkpoint_steps: options.checkpoint_steps.unwrap_or(eval_steps).max(1),
        }
    }
}

/// Memory use of a forward and backward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MemoryPlan {
    /// Maximum tokens per forward pass.
    pub(super) batch_tokens: u64,
    /// Gradient checkpointing.
    pub(super) recompute: bool,
}

impl MemoryPlan {
    /// Determines what fits into the available memory of `device`, where the longest sample has `longest` tokens.
    ///
    /// Gradient checkpointing is enabled, with a message to `notify`, if the longest sample does not fit without it.
    pub(super) fn new(
        base: &Base,
        options: &TrainingOptions,
        device: Device,
        longest: usize,
        notify: Notify<'_>,
    ) -> Self {
        let Some(available) = available_bytes(device) else {
            return Self {
                batch_tokens: options.max_batch_tokens.unwrap_or(DEFAULT_BATCH_TOKENS),
                recompute: options.gradient_checkpointing,
            };
        };
        let value_bytes = if device == Device::Cpu { 4.0 } else { 2.0 };
        let tokens = |recompute| {
            let token_bytes = value_bytes * values_per_token(base, options, recompute);
            (available * MEMORY_FRACTION / token_bytes) as u64
        };
        let recompute = options.gradient_checkpointing || tokens(false) < longest as u64;
        if recompute && !options.gradient_checkpointing {
            notify(
                Level::INFO,
                &format!("gradient checkpointing enabled: {longest} tokens do not fit in memory without it"),
            );
        }
        let fitting = || tokens(recompute).max(longest as u64);
        Self {
            batch_tokens: options.max_batch_tokens.unwrap_or_else(fitting),
            recompute,
        }
    }
}

fn available_bytes(device: Device) -> Option<f64> {
    match device {
        Device::Cuda(index) => {
            let memory = gpu_memory(index).ok()?;
            Some(memory.total_bytes.saturating_sub(memory.used_bytes) as f64)
        }
        _ => Some(host_memory()?.available_bytes as f64),
    }
}

/// Estimated number of activations per token that are saved for the backward pass.
fn values_per_token(base: &Base, options: &TrainingOptions, recompute: bool) -> f64 {
    let (t, v) = (&base.config.text, &base.config.vision);
    let kv = t.num_key_value_heads * t.head_dim;
    let layer = |hidden: usize, inner: usize, kv: usize| (7 * hidden + 2 * kv + 3 * inner) as f64;
    let text_layer = layer(t.hidden_size, t.intermediate_size, kv);
    let text = if recompute {
        text_layer + (t.num_hidden_layers * t.hidden_size) as f64
    } else {
        text_layer * t.num_hidden_layers as f64
    };
    let patches = (v.spatial_merge_size * v.spatial_merge_size) as f64;
    let block = patches * layer(v.hidden_size, v.intermediate_size, v.hidden_size);
    let saved = match (options.freeze_vision, recompute) {
        (true, _) => 0.0,
        (false, true) => patches * (v.depth * v.hidden_size) as f64,
        (false, false) => block * (v.depth - 1) as f64,
    };
    text + block + saved
}
