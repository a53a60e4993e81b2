//! Training settings: defaults, preset, config file, flags; later ones override earlier ones.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use clap::builder::FalseyValueParser;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{PromptError, TrainingError};
use crate::fs::{CONFIG_BYTES, read_text};
use crate::{Error, Result};

/// Settings of a training, all resolved; written to the record and into every checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingOptions {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Number of epochs.
    pub epochs: u64,
    /// Maximum number of optimizer steps; overrides `epochs`.
    pub max_steps: Option<u64>,
    /// Micro-batch size.
    pub batch_size: u64,
    /// Gradient accumulation steps.
    pub grad_accum_steps: u64,
    /// Maximum sequence length; longer samples are skipped. `None`: model limit, at most 4096.
    pub max_seq_length: Option<u64>,
    /// Maximum tokens per forward pass (a single sample may have more). `None`: from available memory.
    pub max_batch_tokens: Option<u64>,
    /// LoRA rank r.
    pub lora_rank: u64,
    /// LoRA alpha.
    pub lora_alpha: f64,
    /// LoRA dropout probability.
    pub lora_dropout: f64,
    /// alpha / sqrt(r) instead of alpha / r.
    pub rslora: bool,
    /// Target modules, by name suffix.
    pub target_modules: Vec<String>,
    /// Freeze the vision tower: no adapter there.
    pub freeze_vision: bool,
    /// Adapter folder to initialize from, with matching settings; `None`: a zero-initialized adapter.
    pub init_adapter: Option<PathBuf>,
    /// Learning-rate schedule after warm-up.
    pub schedule: ScheduleKind,
    /// Warm-up ratio (fraction of total steps).
    pub warmup_ratio: f64,
    /// Final learning rate.
    pub final_learning_rate: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Maximum gradient norm for clipping; 0 disables clipping.
    pub max_grad_norm: f64,
    /// Decay of AdamW's mean of gradients.
    pub adam_beta1: f64,
    /// Decay of AdamW's mean of squares.
    pub adam_beta2: f64,
    /// Added to AdamW's denominator.
    pub adam_epsilon: f64,
    /// Maximum number of training samples.
    pub max_samples: u64,
    /// Maximum number of validation samples.
    pub max_val_samples: u64,
    /// Truncate answers to this many characters; `None`: no limit.
    pub max_response_characters: Option<u64>,
    /// Minimum page size in pixels; smaller pages are upscaled. Saved with the adapter. `None`: from the model.
    pub min_pixels: Option<u64>,
    /// Maximum per-side upscaling to reach `min_pixels`.
    pub max_enlargement: f64,
    /// Maximum page size in pixels (width x height); `None`: from the model, at most 1,254,400.
    pub max_pixels: Option<u64>,
    /// Gradient checkpointing: recompute activations in the backward pass.
    pub gradient_checkpointing: bool,
    /// The base's weights.
    pub base: BaseKind,
    /// Random seed (shuffling, dropout, adapter initialization).
    pub seed: u64,
    /// Optimizer steps between validations; `None`: a tenth of the run.
    pub eval_steps: Option<u64>,
    /// Validation samples to generate answers for, scored by character accuracy.
    pub eval_documents: u64,
    /// Early stopping: end after this many validations without improvement; 0 disables it.
    pub patience: u64,
    /// Optimizer steps between checkpoints; `None`: same as `eval_steps`.
    pub checkpoint_steps: Option<u64>,
    /// Checkpoints to keep.
    pub keep_checkpoints: u64,
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

/// The weights that an adapter is trained on.
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

impl Default for TrainingOptions {
    fn default() -> Self {
        let targets = [
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ];
        Self {
            learning_rate: 2e-4,
            epochs: 2,
            max_steps: None,
            batch_size: 4,
            grad_accum_steps: 4,
            max_seq_length: None,
            max_batch_tokens: None,
            lora_rank: 64,
            lora_alpha: 128.0,
            lora_dropout: 0.05,
            rslora: false,
            target_modules: targets.map(str::to_owned).to_vec(),
            freeze_vision: false,
            init_adapter: None,
            schedule: ScheduleKind::Linear,
            warmup_ratio: 0.05,
            final_learning_rate: 0.0,
            weight_decay: 0.01,
            max_grad_norm: 1.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_samples: 1000,
            max_val_samples: 64,
            max_response_characters: None,
            min_pixels: None,
            max_enlargement: 1.5,
            max_pixels: None,
            gradient_checkpointing: false,
            base: BaseKind::Nf4,
            seed: 42,
            eval_steps: None,
            eval_documents: 2,
            patience: 0,
            checkpoint_steps: None,
            keep_checkpoints: 2,
        }
    }
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

    /// Samples an optimizer step, in one process.
    pub fn step_samples(&self) -> u64 {
        self.batch_size * self.grad_accum_steps
    }

    /// The error that names a setting which makes no sense.
    fn check(&self) -> Result<()> {
        let part = |value: f64| (0.0..1.0).contains(&value);
        let positive = |value: f64| value > 0.0 && value.is_finite();
        let faults: [(&'static str, bool, &str); 16] = [
            ("learning_rate", positive(self.learning_rate), "must be above 0"),
            (
                "epochs",
                (1..=10_000).contains(&self.epochs),
                "must be from 1 to 10000",
            ),
            ("max_steps", self.max_steps != Some(0), "must be 1 or more"),
            (
                "batch_size",
                (1..=4096).contains(&self.batch_size),
                "must be from 1 to 4096",
            ),
            (
                "grad_accum_steps",
                (1..=4096).contains(&self.grad_accum_steps),
                "must be from 1 to 4096",
            ),
            (
                "lora_rank",
                (1..=4096).contains(&self.lora_rank),
                "must be from 1 to 4096",
            ),
            ("lora_alpha", positive(self.lora_alpha), "must be above 0"),
            (
                "lora_dropout",
                part(self.lora_dropout),
                "must be from 0 to below 1",
            ),
            (
                "target_modules",
                !self.target_modules.is_empty(),
                "must name a module",
            ),
            (
                "warmup_ratio",
                part(self.warmup_ratio),
                "must be from 0 to below 1",
            ),
            (
                "final_learning_rate",
                (0.0..=self.learning_rate).contains(&self.final_learning_rate),
                "must be from 0 to the learning rate",
            ),
            (
                "weight_decay",
                (0.0..=1.0).contains(&self.weight_decay),
                "must be from 0 to 1",
            ),
            ("max_grad_norm", self.max_grad_norm >= 0.0, "must be 0 or above"),
            (
                "adam_beta1",
                part(self.adam_beta1) && part(self.adam_beta2),
                "must be from 0 to below 1, as adam_beta2",
            ),
            ("adam_epsilon", positive(self.adam_epsilon), "must be above 0"),
            (
                "keep_checkpoints",
                self.keep_checkpoints >= 1,
                "must be 1 or more",
            ),
        ];
        match faults.into_iter().find(|(_, fine, _)| !fine) {
            None => Ok(()),
            Some((option, _, reason)) => Err(PromptError::Option {
                option,
                reason: reason.to_owned(),
            }
            .into()),
        }
    }
}

/// The flags of `finetune_lora`, each by the name of its setting.
#[derive(Debug, Clone, Default, clap::Args, Serialize)]
pub struct TrainArgs {
    /// YAML or TOML file with any of these settings; flags override it
    #[arg(long, value_name = "FILE", env = "MVP_CONFIG", hide_env_values = true)]
    #[serde(skip)]
    config: Option<PathBuf>,

    /// Base settings
    #[arg(long, value_name = "NAME", env = "MVP_PRESET", hide_env_values = true)]
    #[serde(skip)]
    preset: Option<Preset>,

    /// Resume from the latest checkpoint; settings must match
    #[arg(long, env = "MVP_RESUME", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    #[serde(skip)]
    pub resume: bool,

    /// Base weights: nf4 (from quantize_base) or bf16 (as published) [default: nf4]
    #[arg(long, value_name = "KIND", env = "MVP_BASE", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    base: Option<BaseKind>,

    /// Peak learning rate [default: 2e-4]
    #[arg(long, value_name = "RATE", env = "MVP_LEARNING_RATE", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    learning_rate: Option<f64>,

    /// Number of epochs [default: 2]
    #[arg(long, value_name = "N", env = "MVP_EPOCHS", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    epochs: Option<u64>,

    /// Maximum number of optimizer steps; overrides --epochs
    #[arg(long, value_name = "N", env = "MVP_MAX_STEPS", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_steps: Option<u64>,

    /// Micro-batch size [default: 4]
    #[arg(long, value_name = "N", env = "MVP_BATCH_SIZE", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    batch_size: Option<u64>,

    /// Gradient accumulation steps [default: 4]
    #[arg(long, value_name = "N", env = "MVP_GRAD_ACCUM_STEPS", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    grad_accum_steps: Option<u64>,

    /// Maximum sequence length (page and answer); longer samples are skipped and counted [default: model limit, at most 4096]
    #[arg(long, value_name = "N", env = "MVP_MAX_SEQ_LENGTH", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_seq_length: Option<u64>,

    /// Maximum tokens per forward pass; larger batches are split, with identical results [default: from available memory]
    #[arg(long, value_name = "N", env = "MVP_MAX_BATCH_TOKENS", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_batch_tokens: Option<u64>,

    /// LoRA rank r [default: 64]
    #[arg(long, value_name = "R", env = "MVP_LORA_RANK", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    lora_rank: Option<u64>,

    /// LoRA alpha [default: 128]
    #[arg(long, value_name = "A", env = "MVP_LORA_ALPHA", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    lora_alpha: Option<f64>,

    /// LoRA dropout probability [default: 0.05]
    #[arg(long, value_name = "P", env = "MVP_LORA_DROPOUT", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    lora_dropout: Option<f64>,

    /// Rank-stabilized LoRA: scale by alpha / sqrt(r) instead of alpha / r
    #[arg(long, env = "MVP_RSLORA", num_args = 0..=1, default_missing_value = "true", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    rslora: Option<bool>,

    /// Target modules, by name suffix [default: q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj]
    #[arg(
        long,
        value_name = "NAME,...",
        env = "MVP_TARGET_MODULES",
        value_delimiter = ',',
        hide_env_values = true
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    target_modules: Vec<String>,

    /// Freeze the vision tower: no adapter there
    #[arg(long, env = "MVP_FREEZE_VISION", num_args = 0..=1, default_missing_value = "true", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    freeze_vision: Option<bool>,

    /// Initialize from this adapter (folder, or its name under models/); rank, alpha and target modules must match
    #[arg(long, value_name = "DIR", env = "MVP_INIT_ADAPTER", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    init_adapter: Option<PathBuf>,

    /// Learning-rate schedule after warm-up [default: linear]
    #[arg(long, value_name = "KIND", env = "MVP_SCHEDULE", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    schedule: Option<ScheduleKind>,

    /// Warm-up ratio (fraction of total steps) [default: 0.05]
    #[arg(long, value_name = "P", env = "MVP_WARMUP_RATIO", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    warmup_ratio: Option<f64>,

    /// Final learning rate [default: 0]
    #[arg(
        long,
        value_name = "LR",
        env = "MVP_FINAL_LEARNING_RATE",
        hide_env_values = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    final_learning_rate: Option<f64>,

    /// Decoupled weight decay [default: 0.01]
    #[arg(long, value_name = "W", env = "MVP_WEIGHT_DECAY", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    weight_decay: Option<f64>,

    /// Maximum gradient norm for clipping; 0 disables clipping [default: 1]
    #[arg(long, value_name = "N", env = "MVP_MAX_GRAD_NORM", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_grad_norm: Option<f64>,

    /// Maximum number of training samples [default: 1000]
    #[arg(long, value_name = "N", env = "MVP_MAX_SAMPLES", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_samples: Option<u64>,

    /// Maximum number of validation samples; 0 disables validation [default: 64]
    #[arg(long, value_name = "N", env = "MVP_MAX_VAL_SAMPLES", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_val_samples: Option<u64>,

    /// Truncate answers to this many characters [default: no limit]
    #[arg(
        long,
        value_name = "N",
        env = "MVP_MAX_RESPONSE_CHARACTERS",
        hide_env_values = true
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_response_characters: Option<u64>,

    /// Minimum page size in pixels, for small print; smaller pages are upscaled. Saved with the adapter [default: from the model]
    #[arg(long, value_name = "N", env = "MVP_TRAIN_MIN_PIXELS", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    min_pixels: Option<u64>,

    /// Maximum per-side upscaling for --min-pixels, so that labels stay close to normal text size [default: 1.5]
    #[arg(long, value_name = "F", env = "MVP_MAX_ENLARGEMENT", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_enlargement: Option<f64>,

    /// Maximum page size in pixels (width x height); larger pages are downscaled [default: from the model, at most 1254400]
    #[arg(long, value_name = "N", env = "MVP_TRAIN_MAX_PIXELS", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_pixels: Option<u64>,

    /// Gradient checkpointing: recompute activations in the backward pass; less memory, about a third more time
    #[arg(long, env = "MVP_GRADIENT_CHECKPOINTING", num_args = 0..=1, default_missing_value = "true", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    gradient_checkpointing: Option<bool>,

    /// Random seed (shuffling, dropout, adapter initialization) [default: 42]
    #[arg(long, value_name = "N", env = "MVP_SEED", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,

    /// Optimizer steps between validations [default: a tenth of the run]
    #[arg(long, value_name = "N", env = "MVP_EVAL_STEPS", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    eval_steps: Option<u64>,

    /// Validation samples to generate answers for, scored by character accuracy [default: 2]
    #[arg(long, value_name = "N", env = "MVP_EVAL_DOCUMENTS", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    eval_documents: Option<u64>,

    /// Early stopping: end after this many validations without improvement; 0 disables it [default: 0]
    #[arg(long, value_name = "N", env = "MVP_PATIENCE", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    patience: Option<u64>,

    /// Optimizer steps between checkpoints [default: same as --eval-steps]
    #[arg(long, value_name = "N", env = "MVP_CHECKPOINT_STEPS", hide_env_values = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint_steps: Option<u64>,
}

impl TrainArgs {
    /// The settings: the preset's, then the file's, then the flags'.
    pub fn resolve(&self) -> Result<TrainingOptions> {
        let file = match &self.config {
            Some(path) => read_config(path)?,
            None => Map::new(),
        };
        let path = self.config.as_deref().unwrap_or(Path::new("command line"));
        let mut file = file;
        let preset = match (self.preset, file.remove("preset")) {
            (Some(preset), _) => preset,
            (None, Some(name)) => serde_json::from_value(name)
                .map_err(|error| Error::record(path, format!("\"preset\": {error}")))?,
            (None, None) => Preset::Default,
        };
        let mut settings = object(&TrainingOptions::preset(preset));
        settings.extend(file);
        settings.extend(object(self));
        let options: TrainingOptions = serde_path_to_error::deserialize(Value::Object(settings))
            .map_err(|error| Error::record(path, format!("\"{}\": {}", error.path(), error.inner())))?;
        options.check()?;
        Ok(options)
    }
}

fn object(value: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(value) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

/// A file of settings; by its name TOML, else YAML, which JSON is too.
fn read_config(path: &Path) -> Result<Map<String, Value>> {
    let text = read_text(path, CONFIG_BYTES).map_err(|error| Error::io(path, error))?;
    let value: Value = if path.extension().is_some_and(|extension| extension == "toml") {
        toml::from_str(&text).map_err(|error| Error::record(path, format!("not TOML: {error}")))?
    } else {
        serde_saphyr::from_str(&text).map_err(|error| Error::record(path, format!("not YAML: {error}")))?
    };
    match value {
        Value::Object(map) => Ok(map),
        Value::Null => Ok(Map::new()),
        _ => Err(TrainingError::Settings {
            path: path.to_owned(),
        }
        .into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        train: TrainArgs,
    }

    fn resolve(flags: &[&str]) -> Result<TrainingOptions> {
        Program::try_parse_from(std::iter::once("program").chain(flags.iter().copied()))
            .unwrap_or_else(|error| panic!("{error}"))
            .train
            .resolve()
    }

    #[test]
    fn every_flag_is_a_setting_and_has_a_variable() {
        let settings = object(&TrainingOptions::default());
        for flag in Program::command().get_arguments() {
            let name = flag.get_id().as_str();
            let special = ["config", "preset", "resume", "help"].contains(&name);
            assert!(special || settings.contains_key(name), "{name}");
            assert!(name == "help" || flag.get_env().is_some(), "{name}");
        }
    }

    #[test]
    fn the_defaults_are_the_contract_s() {
        let options = resolve(&[]).unwrap();
        assert_eq!(
            (options.lora_rank, options.lora_alpha, options.lora_dropout),
            (64, 128.0, 0.05)
        );
        assert_eq!(
            (options.batch_size, options.grad_accum_steps, options.epochs),
            (4, 4, 2)
        );
        assert_eq!((options.learning_rate, options.weight_decay), (2e-4, 0.01));
        assert_eq!(
            (options.max_seq_length, options.max_response_characters),
            (None, None)
        );
        let original = resolve(&["--preset", "original"]).unwrap();
        assert_eq!(original.max_seq_length, Some(512));
        assert_eq!(original.max_response_characters, Some(600));
        assert_eq!(original.max_pixels, Some(65536));
    }

    #[test]
    fn flags_go_before_the_file_and_the_file_before_the_preset() {
        let folder = tempfile::tempdir().unwrap();
        let (yaml, toml) = (folder.path().join("a.yaml"), folder.path().join("a.toml"));
        std::fs::write(
            &yaml,
            "preset: original\nlora_rank: 8\nepochs: 3\nschedule: cosine\ntarget_modules: [q_proj, v_proj]\n",
        )
        .unwrap();
        std::fs::write(
            &toml,
            "preset = \"original\"\nlora_rank = 8\nepochs = 3\nschedule = \"cosine\"\ntarget_modules = [\"q_proj\", \"v_proj\"]\n",
        )
        .unwrap();
        for path in [yaml, toml] {
            let path = path.to_str().unwrap();
            let options = resolve(&["--config", path, "--epochs", "5", "--freeze-vision"]).unwrap();
            assert_eq!((options.lora_rank, options.epochs), (8, 5));
            assert_eq!(options.max_seq_length, Some(512));
            assert_eq!(options.schedule, ScheduleKind::Cosine);
            assert_eq!(options.target_modules, ["q_proj", "v_proj"]);
            assert!(options.freeze_vision);
        }
    }

    #[test]
    fn wrong_settings_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("settings.yaml");
        let name = path.to_str().unwrap();
        for (text, word) in [
            ("lora_rnak: 8", "lora_rnak"),
            ("lora_rank: many", "lora_rank"),
            ("lora_rank: [", "YAML"),
            ("- 8", "settings.yaml"),
            ("lora_dropout: 1.5", "lora_dropout"),
            ("learning_rate: .nan", "learning_rate"),
            ("batch_size: 0", "batch_size"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = resolve(&["--config", name]).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
        let error = resolve(&["--config", "absent.yaml"]).unwrap_err().to_string();
        assert!(error.contains("absent.yaml"), "{error}");
        for (flag, word) in [
            ("--warmup-ratio", "warmup_ratio"),
            ("--final-learning-rate", "final_learning_rate"),
        ] {
            let error = resolve(&[flag, "1"]).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
