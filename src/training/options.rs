//! The training settings, each declared once; and their values: preset, config file, flags, in this order, the last one wins.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::settings::{POSITIVE, training_settings};
use crate::fs::{CONFIG_BYTES, read_text};
use crate::lora::Targets;
use crate::{Error, Result};

training_settings! {
    /// Settings of a training, all resolved; written to the record and into every checkpoint.
    pub struct TrainingOptions;

    /// Base weights: nf4 (from quantize_base) or bf16 (as published)
    base: BaseKind = BaseKind::Nf4, flag "--base KIND" "MVP_BASE";

    /// Peak learning rate
    learning_rate: f64 = 2e-4, flag "--learning-rate RATE" "MVP_LEARNING_RATE", range POSITIVE;

    /// Number of epochs
    epochs: u64 = 2, flag "--epochs N" "MVP_EPOCHS", range 1..=10_000;

    /// Maximum number of optimizer steps; overrides --epochs
    max_steps: Option<u64> = None, flag "--max-steps N" "MVP_MAX_STEPS", range 1..;

    /// Micro-batch size
    batch_size: u64 = 4, flag "--batch-size N" "MVP_BATCH_SIZE", range 1..=4096;

    /// Gradient accumulation steps
    grad_accum_steps: u64 = 4, flag "--grad-accum-steps N" "MVP_GRAD_ACCUM_STEPS", range 1..=4096;

    /// Maximum sequence length (page and answer); longer samples are skipped and counted
    max_seq_length: Option<u64> = None, flag "--max-seq-length N" "MVP_MAX_SEQ_LENGTH",
        unset "model limit, at most 4096";

    /// Maximum tokens per forward pass; larger batches are split, with identical results
    max_batch_tokens: Option<u64> = None, flag "--max-batch-tokens N" "MVP_MAX_BATCH_TOKENS",
        unset "from available memory";

    /// LoRA rank r
    lora_rank: u64 = 64, flag "--lora-rank R" "MVP_LORA_RANK", range 1..=4096;

    /// LoRA alpha
    lora_alpha: f64 = 128.0, flag "--lora-alpha A" "MVP_LORA_ALPHA", range POSITIVE;

    /// LoRA dropout probability
    lora_dropout: f64 = 0.05, flag "--lora-dropout P" "MVP_LORA_DROPOUT", range 0.0..1.0;

    /// Rank-stabilized LoRA: scale by alpha / sqrt(r) instead of alpha / r
    rslora: bool = false, flag "--rslora BOOL" "MVP_RSLORA";

    /// Target modules, by name suffix
    target_modules: Vec<String> = decoder_projections(), flag "--target-modules NAME,..." "MVP_TARGET_MODULES";

    /// Freeze the vision tower: no adapter there
    freeze_vision: bool = false, flag "--freeze-vision BOOL" "MVP_FREEZE_VISION";

    /// Initialize from this adapter (folder, or its name under models/); rank, alpha and target modules must match
    init_adapter: Option<PathBuf> = None, flag "--init-adapter DIR" "MVP_INIT_ADAPTER";

    /// Learning-rate schedule after warm-up
    schedule: ScheduleKind = ScheduleKind::Linear, flag "--schedule KIND" "MVP_SCHEDULE";

    /// Warm-up ratio (fraction of total steps)
    warmup_ratio: f64 = 0.05, flag "--warmup-ratio P" "MVP_WARMUP_RATIO", range 0.0..1.0;

    /// Final learning rate
    final_learning_rate: f64 = 0.0, flag "--final-learning-rate LR" "MVP_FINAL_LEARNING_RATE";

    /// Decoupled weight decay
    weight_decay: f64 = 0.01, flag "--weight-decay W" "MVP_WEIGHT_DECAY", range 0.0..=1.0;

    /// Maximum gradient norm for clipping; 0 disables clipping
    max_grad_norm: f64 = 1.0, flag "--max-grad-norm N" "MVP_MAX_GRAD_NORM", range 0.0..;

    /// Decay rate of AdamW's first moments
    adam_beta1: f64 = 0.9, range 0.0..1.0;

    /// Decay rate of AdamW's second moments
    adam_beta2: f64 = 0.999, range 0.0..1.0;

    /// Term added to AdamW's denominator for numerical stability
    adam_epsilon: f64 = 1e-8, range POSITIVE;

    /// Maximum number of training samples
    max_samples: u64 = 1000, flag "--max-samples N" "MVP_MAX_SAMPLES";

    /// Maximum number of validation samples; 0 disables validation
    max_val_samples: u64 = 64, flag "--max-val-samples N" "MVP_MAX_VAL_SAMPLES";

    /// Truncate answers to this many characters
    max_response_characters: Option<u64> = None,
        flag "--max-response-characters N" "MVP_MAX_RESPONSE_CHARACTERS", unset "no limit";

    /// Minimum page size in pixels, for small print; smaller pages are upscaled. Saved with the adapter
    min_pixels: Option<u64> = None, flag "--min-pixels N" "MVP_TRAIN_MIN_PIXELS", unset "from the model";

    /// Maximum per-side upscaling for --min-pixels, so that labels stay close to normal text size
    max_enlargement: f64 = 1.5, flag "--max-enlargement F" "MVP_MAX_ENLARGEMENT";

    /// Maximum page size in pixels (width x height); larger pages are downscaled
    max_pixels: Option<u64> = None, flag "--max-pixels N" "MVP_TRAIN_MAX_PIXELS",
        unset "from the model, at most 1254400";

    /// Gradient checkpointing: recompute activations in the backward pass; less memory, about a third more time
    gradient_checkpointing: bool = false, flag "--gradient-checkpointing BOOL" "MVP_GRADIENT_CHECKPOINTING";

    /// Random seed (shuffling, dropout, adapter initialization)
    seed: u64 = 42, flag "--seed N" "MVP_SEED";

    /// Optimizer steps between validations
    eval_steps: Option<u64> = None, flag "--eval-steps N" "MVP_EVAL_STEPS", unset "a tenth of the run";

    /// Validation samples to generate answers for, scored by character accuracy
    eval_documents: u64 = 2, flag "--eval-documents N" "MVP_EVAL_DOCUMENTS";

    /// Early stopping: end after this many validations without improvement; 0 disables it
    patience: u64 = 0, flag "--patience N" "MVP_PATIENCE";

    /// Optimizer steps between checkpoints
    checkpoint_steps: Option<u64> = None, flag "--checkpoint-steps N" "MVP_CHECKPOINT_STEPS",
        unset "same as --eval-steps";

    /// Number of checkpoints to keep
    keep_checkpoints: u64 = 2, range 1..;
}

/// The default of `target_modules`.
fn decoder_projections() -> Vec<String> {
    match Targets::decoder_projections() {
        Targets::Suffixes(names) => names,
        Targets::Pattern(pattern) => vec![pattern],
    }
}

/// Learning-rate schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// Linear decay
    Linear,
    /// Cosine decay
    Cosine,
    /// Constant
    Constant,
}

/// Number format of the base weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum BaseKind {
    /// 4-bit NF4, as written by quantize_base
    Nf4,
    /// The published weights
    Bf16,
}

/// A named set of settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// Legible pages, full answers
    Default,
    /// As the original Python project: 256-pixel pages, 512 tokens, answers truncated at 600 characters
    Original,
}

impl TrainingOptions {
    /// The settings of a preset.
    pub fn preset(preset: Preset) -> Self {
        match preset {
            Preset::Default => Self::default(),
            Preset::Original => Self {
                max_seq_length: Some(512),
                max_response_characters: Some(600),
                max_pixels: Some(256 * 256),
                ..Self::default()
            },
        }
    }

    /// Samples per optimizer step, in one process.
    pub fn step_samples(&self) -> u64 {
        self.batch_size * self.grad_accum_steps
    }

    /// Resolves the settings: the preset's, then those of the config file, then `overrides`; the last one wins.
    ///
    /// A config file may name a preset, too; `preset` goes before it. An unknown key, a wrong type or a value out of
    /// range is an error that names the setting.
    pub fn resolve(
        preset: Option<Preset>,
        config: Option<&Path>,
        overrides: &Map<String, Value>,
    ) -> Result<Self> {
        let path = config.unwrap_or(Path::new("command line"));
        let mut file = config.map_or(Ok(Map::new()), read_config)?;
        let preset = match (preset, file.remove("preset")) {
            (Some(preset), _) => preset,
            (None, Some(name)) => serde_json::from_value(name)
                .map_err(|error| Error::invalid_file(path, format!("\"preset\": {error}")))?,
            (None, None) => Preset::Default,
        };
        let mut settings = object(&Self::preset(preset));
        settings.extend(file);
        settings.extend(overrides.clone());
        let options: Self = serde_path_to_error::deserialize(Value::Object(settings))
            .map_err(|error| Error::invalid_file(path, format!("\"{}\": {}", error.path(), error.inner())))?;
        options.check()?;
        Ok(options)
    }

    /// The error that names the first setting out of range.
    fn check(&self) -> Result<()> {
        self.check_ranges()?;
        if self.target_modules.is_empty() {
            return Err(Error::option("target_modules", "must name a module"));
        }
        if !(0.0..=self.learning_rate).contains(&self.final_learning_rate) {
            return Err(Error::option(
                "final_learning_rate",
                "must be from 0 to the learning rate",
            ));
        }
        Ok(())
    }
}

fn object(value: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(value) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

/// Reads a config file: TOML if its name says so, otherwise YAML, of which JSON is a subset.
fn read_config(path: &Path) -> Result<Map<String, Value>> {
    let text = read_text(path, CONFIG_BYTES).map_err(|error| Error::io(path, error))?;
    let value: Value = if path.extension().is_some_and(|extension| extension == "toml") {
        toml::from_str(&text).map_err(|error| Error::invalid_file(path, format!("not TOML: {error}")))?
    } else {
        serde_saphyr::from_str(&text)
            .map_err(|error| Error::invalid_file(path, format!("not YAML: {error}")))?
    };
    match value {
        Value::Object(map) => Ok(map),
        Value::Null => Ok(Map::new()),
        _ => Err(Error::invalid_file(
            path,
            "expected a mapping of settings, such as \"lora_rank: 16\"",
        )),
    }
}
