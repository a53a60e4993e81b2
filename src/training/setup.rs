//! Everything a training needs, looked at before anything is computed.

use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};
use tch::Device;

use super::{
    options::{BaseKind, TrainingOptions},
    samples::{Encoder, LeftOut, Samples, max_tokens},
};
use crate::checkpoint::Checkpoint;
use crate::console::{self, Level};
use crate::device::{gpu_memory, host_memory};
use crate::error::TrainingError;
use crate::fs::{CONFIG_BYTES, MANIFEST, hex, read_bounded, revision};
use crate::lora::{Adapter, LoraConfig, Targets};
use crate::processing::{ImageProcessor, TextProcessor};
use crate::project::{LORA_SUFFIX, NF4_SUFFIX, Project, model_folder_name};
use crate::quant::Quantization;
use crate::qwen2_5_vl::Config;
use crate::records::paths;
use crate::{Error, Result};

/// Bound of a page's width x height after resizing where nobody says otherwise: about what 900x1100 has room in.
const DEFAULT_MAX_PIXELS: u64 = 1_254_400;
/// Part of the free memory that a pass may take.
const MEMORY_PART: f64 = 0.6;

/// The base that an adapter is trained on.
pub(super) struct Base {
    pub(super) dir: PathBuf,
    pub(super) config: Config,
}

impl Base {
    /// The base that `options` ask for, of the model in `model`.
    pub(super) fn find(project: &Project, model: &Path, options: &TrainingOptions) -> Result<Self> {
        let dir = match (Quantization::from_dir(model)?, options.base) {
            (Quantization::None, BaseKind::Nf4) => project.derived_model(model, NF4_SUFFIX),
            _ => model.to_owned(),
        };
        if !dir.is_dir() {
            return Err(TrainingError::NoBase {
                path: dir,
                reason: "there is no four-bit base yet: run quantize_base, or train on the model as it is with --base bf16"
                    .to_owned(),
            }
            .into());
        }
        Ok(Self {
            config: Config::from_dir(&dir)?,
            dir,
        })
    }

    /// sha256 that tells bases apart.
    pub(super) fn revision(&self) -> Result<String> {
        // A folder that this program made says itself what it holds.
        let manifest = self.dir.join(MANIFEST);
        if let Ok(text) = read_bounded(&manifest, CONFIG_BYTES << 4) {
            return Ok(hex(&Sha256::digest(text)));
        }
        revision(&Checkpoint::open(&self.dir)?.files())
    }

    pub(super) fn name(&self) -> String {
        model_folder_name(&self.dir)
    }

    /// Weights of the base, however they are stored.
    pub(super) fn parameters(&self) -> Result<u64> {
        let mut sum = 0;
        for tensor in Checkpoint::open(&self.dir)?.stored() {
            let values: usize = tensor.shape.iter().product();
            let name = tensor.canonical.as_str();
            let part_of_a_weight = [
                ".absmax",
                ".quant_map",
                ".nested_absmax",
                ".nested_quant_map",
                ".qzeros",
                ".scales",
            ];
            if part_of_a_weight.iter().any(|part| name.ends_with(part)) || name.contains(".quant_state.") {
                continue;
            }
            sum += match tensor.dtype {
                safetensors::Dtype::U8 => 2 * values as u64,
                safetensors::Dtype::I32 => 8 * values as u64,
                _ => values as u64,
            };
        }
        Ok(sum)
    }
}

/// The splits as the model takes them.
pub(super) struct Data {
    pub(super) train: Samples,
    /// `None` where there is nothing to validate on.
    pub(super) validation: Option<Samples>,
    pub(super) max_tokens: usize,
    pub(super) max_pixels: u64,
}

impl Data {
    pub(super) fn read(project: &Project, base: &Base, options: &TrainingOptions) -> Result<Self> {
        let text = TextProcessor::from_dir(&base.dir)?;
        let max_pixels = options.max_pixels.unwrap_or(DEFAULT_MAX_PIXELS);
        let images = images(base, options)?.with_pixel_bounds(None, Some(max_pixels))?;
        let max_tokens = max_tokens(options, base.config.text.max_position_embeddings);
        let encoder = Encoder {
            text: &text,
            images: &images,
            max_tokens,
            max_response_characters: options.max_response_characters.map(|most| most as usize),
        };
        let train = encoder.read(project, paths::TRAIN, options.max_samples as usize)?;
        say_left_out("training", &train.left_out, max_tokens);
        let validation = match options.max_val_samples {
            0 => None,
            most => match encoder.read(project, paths::VAL, most as usize) {
                Ok(samples) => Some(samples),
                Err(Error::Training(error @ TrainingError::NoSamples { .. })) => {
                    console::say(Level::WARN, &format!("training without validation: {error}"));
                    None
                }
                Err(error) => return Err(error),
            },
        };
        if let Some(samples) = &validation {
            say_left_out("validation", &samples.left_out, max_tokens);
        }
        Ok(Self {
            train,
            validation,
            max_tokens,
            max_pixels,
        })
    }
}

fn say_left_out(split: &str, left_out: &LeftOut, max_tokens: usize) {
    let mut parts = Vec::new();
    if left_out.too_long > 0 {
        parts.push(format!(
            "{} of more than {max_tokens} tokens (--max-seq-length)",
            left_out.too_long
        ));
    }
    if left_out.broken_page > 0 {
        parts.push(format!(
            "{} whose page is missing or broken",
            left_out.broken_page
        ));
    }
    if left_out.empty_answer > 0 {
        parts.push(format!("{} without an answer", left_out.empty_answer));
    }
    if !parts.is_empty() {
        console::say(
            Level::WARN,
            &format!("{split} samples left out: {}", parts.join(", ")),
        );
    }
}

/// A new adapter by the settings, with the values of another where they name one.
pub(super) fn new_adapter(project: &Project, base: &Base, options: &TrainingOptions) -> Result<Adapter> {
    let config = LoraConfig {
        r: options.lora_rank as usize,
        lora_alpha: options.lora_alpha,
        use_rslora: options.rslora,
        lora_dropout: options.lora_dropout,
        target_modules: Targets::Suffixes(options.target_modules.clone()),
        exclude_modules: options
            .freeze_vision
            .then(|| Targets::Pattern(r".*visual\..*".to_owned())),
        base_model_name_or_path: Some(base.dir.display().to_string()),
        ..LoraConfig::default()
    };
    let mut adapter = Adapter::initial(config, &base.config.linear_modules(), options.seed)?;
    if options.min_pixels.is_some() {
        adapter.images = Some(images(base, options)?);
    }
    if let Some(choice) = &options.init_adapter {
        take_values(&mut adapter, project.adapter_folder(choice)?)?;
    }
    Ok(adapter)
}

/// Takes the values of the adapter in `path`, which must have the very pairs of this one.
fn take_values(adapter: &mut Adapter, path: PathBuf) -> Result<()> {
    let mut other = Adapter::read(&path)?.pairs;
    let mut difference = None;
    for (name, pair) in &mut adapter.pairs {
        match other.remove(name) {
            None => difference = Some(format!("it has nothing for \"{name}\"")),
            Some(found) if found.sizes() != pair.sizes() || found.scale != pair.scale => {
                let text = |(rank, inputs, outputs), scale| {
                    format!("{inputs} inputs, {outputs} outputs, rank {rank}, scale {scale}")
                };
                let (theirs, ours) = (text(found.sizes(), found.scale), text(pair.sizes(), pair.scale));
                difference = Some(format!("\"{name}\" has {theirs}, here {ours}"));
            }
            Some(found) => *pair = found,
        }
        if difference.is_some() {
            break;
        }
    }
    let left = other.into_keys().next().filter(|_| difference.is_none());
    match difference.or(left.map(|name| format!("it has \"{name}\" beside what is to be trained"))) {
        Some(reason) => Err(TrainingError::OtherAdapter { path, reason }.into()),
        None => Ok(()),
    }
}

/// The base's image processor, which enlarges small pages as the settings say.
fn images(base: &Base, options: &TrainingOptions) -> Result<ImageProcessor> {
    let images = ImageProcessor::from_dir(&base.dir)?.with_pixel_bounds(options.min_pixels, None)?;
    images.with_max_enlargement(options.min_pixels.map(|_| options.max_enlargement))
}

/// Settings that change what is learnt.
pub(super) fn decisive(options: &TrainingOptions) -> Value {
    let mut settings = serde_json::to_value(options).unwrap_or_default();
    if let Value::Object(map) = &mut settings {
        for indifferent in [
            "checkpoint_steps",
            "keep_checkpoints",
            "gradient_checkpointing",
            "eval_documents",
        ] {
            map.remove(indifferent);
        }
    }
    settings
}

/// Where checkpoints lie while an adapter is made.
pub(super) fn checkpoint_folder(adapter: &Path) -> PathBuf {
    let name = adapter.file_name().unwrap_or_default().to_string_lossy();
    adapter.with_file_name(format!("{name}.training"))
}

/// The adapter's folder.
pub(super) fn adapter_folder(project: &Project, model: &Path) -> PathBuf {
    project.derived_model(model, LORA_SUFFIX)
}

/// Tokens that may be computed at once, and whether layers must be computed again for the longest sample to fit.
pub(super) fn memory_plan(
    base: &Base,
    options: &TrainingOptions,
    device: Device,
    longest: usize,
) -> (u64, bool) {
    let fixed = options.max_batch_tokens;
    let Some(free) = free_bytes(device) else {
        return (fixed.unwrap_or(8192), options.gradient_checkpointing);
    };
    let width = if device == Device::Cpu { 4.0 } else { 2.0 };
    let tokens = |recompute| (free * MEMORY_PART / token_bytes(base, options, recompute, width)) as u64;
    let recompute = options.gradient_checkpointing || tokens(false) < longest as u64;
    if recompute && !options.gradient_checkpointing {
        console::say(
            Level::INFO,
            &format!(
                "layers are computed again in the backward pass: the memory does not hold {longest} tokens otherwise"
            ),
        );
    }
    (
        fixed.unwrap_or_else(|| tokens(recompute).max(longest as u64)),
        recompute,
    )
}

fn free_bytes(device: Device) -> Option<f64> {
    match device {
        Device::Cuda(index) => {
            let memory = gpu_memory(index).ok()?;
            Some(memory.total_bytes.saturating_sub(memory.used_bytes) as f64)
        }
        _ => Some(host_memory()?.available_bytes as f64),
    }
}

/// What a token keeps until the backward pass, about.
fn token_bytes(base: &Base, options: &TrainingOptions, recompute: bool, width: f64) -> f64 {
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
    let kept = match (options.freeze_vision, recompute) {
        (true, _) => 0.0,
        (false, true) => patches * (v.depth * v.hidden_size) as f64,
        (false, false) => block * (v.depth - 1) as f64,
    };
    let vision = block + kept;
    (text + vision) * width
}
