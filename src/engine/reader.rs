//! A loaded model folder: from pages and a prompt to text.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::output_stream::OutputStream;
use crate::blackwell_compat::Reductions;
use crate::checkpoint::{Checkpoint, ModelFolder};
use crate::device::{Precision, device_name, kind_name};
use crate::error::PromptError;
use crate::generation::{FinishReason, GenerationOptions, GenerationOverrides, Sampler};
use crate::lora::Adapter;
use crate::processing::{
    Content, Grid, ImageProcessor, Message, PREPROCESSOR_CONFIG, PixelBounds, RgbPage, Role, TextProcessor,
};
use crate::project::model_folder_name;
use crate::quant::Quantization;
use crate::qwen2_5_vl::{CancelCheck, Config, KvCache, LogitsToKeep, Model, ModelOptions, Prefill};
use crate::{Error, Result};

/// How to load a model folder.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Device of the model.
    pub device: tch::Device,
    /// Dtype of activations.
    pub precision: Precision,
    /// Minimum `width * height` after resizing; `None` keeps the folder's.
    pub min_pixels: Option<u64>,
    /// Maximum `width * height` after resizing; `None` keeps the folder's.
    pub max_pixels: Option<u64>,
    /// Folder of a LoRA adapter to attach.
    pub adapter: Option<PathBuf>,
    /// How integer products are computed; `None`: by the device.
    pub reductions: Option<Reductions>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            device: tch::Device::Cpu,
            precision: Precision::Auto,
            min_pixels: None,
            max_pixels: None,
            adapter: None,
            reductions: None,
        }
    }
}

/// Model metadata, returned with every response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "pipeline", derive(utoipa::ToSchema))]
pub struct ModelInfo {
    /// Folder name of the model.
    pub model_name: String,
    /// Compute dtype of dense weights ("FP32", "BF16", "FP16"), or the format of quantized ones, such as "NF4 (bitsandbytes)".
    pub precision: String,
    /// Folder name of the adapter, if any; "unsaved adapter" for one that was not read from a folder.
    pub lora_adapter: Option<String>,
    /// "cpu" or "cuda:N".
    pub device: String,
}

/// A request to the model.
#[derive(Clone)]
pub struct ReadRequest {
    /// The conversation; its image placeholders stand for `images`, in order.
    pub messages: Vec<Message>,
    /// The pictures.
    pub images: Vec<RgbPage>,
    /// Overrides of the folder's `generation_config.json`.
    pub overrides: GenerationOverrides,
}

impl ReadRequest {
    /// One page with a prompt.
    pub fn page(prompt: impl Into<String>, page: RgbPage) -> Self {
        Self {
            messages: vec![Message {
                role: Role::User,
                content: vec![Content::Image, Content::Text(prompt.into())],
            }],
            images: vec![page],
            overrides: GenerationOverrides::default(),
        }
    }
}

/// An answer with token counts and timings.
#[derive(Debug, Clone)]
pub struct Reading {
    /// The answer.
    pub text: String,
    /// Token ids of the answer, without the end token.
    pub tokens: Vec<i64>,
    /// Number of tokens of prompt and images.
    pub prompt_tokens: usize,
    /// Number of generated tokens, including the end token.
    pub completion_tokens: usize,
    /// Why the answer ended.
    pub finish_reason: FinishReason,
    /// From image to the first token, seconds.
    pub time_to_first_token_seconds: f64,
    /// From image to the last token, seconds.
    pub latency_seconds: f64,
}

impl Reading {
    /// One that was cancelled before its first token.
    fn cancelled(prompt_tokens: usize, start: Instant) -> Self {
        let seconds = start.elapsed().as_secs_f64();
        Self {
            text: String::new(),
            tokens: Vec::new(),
            prompt_tokens,
            completion_tokens: 0,
            finish_reason: FinishReason::Cancelled,
            time_to_first_token_seconds: seconds,
            latency_seconds: seconds,
        }
    }

    /// Tokens per second after the first token; `None` for answers of one token.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let seconds = self.latency_seconds - self.time_to_first_token_seconds;
        (self.completion_tokens > 1 && seconds > 0.0).then(|| (self.completion_tokens - 1) as f64 / seconds)
    }
}

/// A loaded model folder.
pub struct Reader {
    info: ModelInfo,
    images: ImageProcessor,
    text: TextProcessor,
    options: GenerationOptions,
    model: Model,
    warnings: Vec<String>,
}

/// Maximum prompt length in characters; a longer prompt is rejected before any work.
pub const MAX_PROMPT_CHARACTERS: usize = 8192;

/// A request after preprocessing: inputs of the model.
struct Prepared {
    input_ids: Vec<i64>,
    /// Patches of all images, concatenated.
    pixel_values: Option<Tensor>,
    grids: Vec<Grid>,
}

impl Reader {
    /// Loads the model folder `dir`.
    ///
    /// # Errors
    /// They name the file, key or tensor at fault.
    pub fn load(dir: &Path, options: &LoadOptions) -> Result<Self> {
        let adapter = options.adapter.as_deref().map(Adapter::read).transpose()?;
        Self::build(dir, options, adapter.as_ref())
    }

    /// As [`Reader::load`] with `adapter` instead of `options.adapter`. Tensors of it that require gradients are shared with
    /// the model.
    pub fn load_with(dir: &Path, options: &LoadOptions, adapter: &Adapter) -> Result<Self> {
        Self::build(dir, options, Some(adapter))
    }

    fn build(dir: &Path, options: &LoadOptions, adapter: Option<&Adapter>) -> Result<Self> {
        let folder = ModelFolder::new(dir);
        let config = Config::from_json(folder.config()?)?;
        let text = TextProcessor::from_folder(&folder)?;
        let (images, settings) = image_processor(dir, options, adapter)?;
        check_patches(&settings, &config, &images)?;
        text.check_template()?;
        let generation = GenerationOptions::from_folder(&folder)?;
        let device = options.device;
        let kind = options.precision.checked_kind(device)?;
        let quantization = Quantization::from_json(folder.config()?)?;
        let model_options = ModelOptions {
            adapter,
            reductions: options.reductions.unwrap_or_else(|| Reductions::on(device)),
            ..ModelOptions::new(kind, device)
        };
        let model = Model::load(&Checkpoint::open(dir)?, &config, &quantization, &model_options)?;
        let mut warnings = model.warnings().to_vec();
        warnings.extend(GenerationOptions::warnings(&folder)?);
        let info = ModelInfo {
            model_name: model_folder_name(dir),
            precision: quantization.precision().unwrap_or(kind_name(kind)).to_owned(),
            lora_adapter: adapter.map(adapter_name),
            device: device_name(device),
        };
        Ok(Self {
            info,
            images,
            text,
            options: generation,
            model,
            warnings,
        })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Oddities of model folder and adapter, for the user; they work in spite of them.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Tokenizer and chat template.
    pub fn text(&self) -> &TextProcessor {
        &self.text
    }

    /// The image processor.
    pub fn images(&self) -> &ImageProcessor {
        &self.images
    }

    /// Metadata of the loaded model.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Answers one request; `on_text` receives the text as it is generated and cancels with `Break`.
    ///
    /// It is called for every token, and with an empty text between the layers of the prefill.
    pub fn read(
        &mut self,
        request: &ReadRequest,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Reading> {
        let start = Instant::now();
        let options = self.options.with(&request.overrides)?;
        let prepared = self.prepare(request, options.max_new_tokens)?;
        let prompt_tokens = prepared.input_ids.len();
        let mut cache = self.model.cache(prompt_tokens + options.max_new_tokens)?;
        let prefill = match self.prefill(&prepared, &mut cache, &mut || on_text("")) {
            Err(Error::Cancelled) => return Ok(Reading::cancelled(prompt_tokens, start)),
            other => other?,
        };
        let mut logits = self.model.logits(&prefill.hidden)?;

        let mut sampler = Sampler::new(&options, &prepared.input_ids);
        let mut output = OutputStream::new(&self.text, &options, on_text);
        let mut scores = vec![0f32; self.model.config().text.vocab_size];
        let mut first = None;
        let finish_reason = loop {
            logits
                .f_to_device(Device::Cpu)?
                .f_view([-1])?
                .f_copy_data(&mut scores, logits.numel())?;
            let token = sampler.next(&mut scores)?;
            first.get_or_insert_with(|| start.elapsed());
            if let Some(reason) = output.push(token)? {
                break reason;
            }
            logits = self.model.decode(token, &mut cache)?;
        };
        output.finish(finish_reason)?;
        let latency_seconds = start.elapsed().as_secs_f64();
        Ok(Reading {
            text: output.text,
            tokens: output.tokens,
            prompt_tokens,
            completion_tokens: output.generated,
            finish_reason,
            time_to_first_token_seconds: first.map_or(latency_seconds, |d| d.as_secs_f64()),
            latency_seconds,
        })
    }

    /// Tensors of one request by stage, for parity checks: ids i64, the rest f32, all on the CPU.
    pub fn trace(&mut self, request: &ReadRequest) -> Result<Vec<(String, Tensor)>> {
        let prepared = self.prepare(request, 1)?;
        let ids = &prepared.input_ids;
        let mut stages = vec![("input_ids".to_owned(), Tensor::f_from_slice(ids)?)];
        let mut cache = self.model.cache(ids.len() + 1)?;
        let mut features = None;
        if let Some(pixels) = &prepared.pixel_values {
            let grids: Vec<i64> = prepared
                .grids
                .iter()
                .flat_map(|g| [g.t as i64, g.h as i64, g.w as i64])
                .collect();
            stages.push(("pixel_values".to_owned(), pixels.shallow_clone()));
            stages.push((
                "image_grid_thw".to_owned(),
                Tensor::f_from_slice(&grids)?.f_view([-1, 3])?,
            ));
            let f = self.model.image_features(pixels, &prepared.grids)?;
            stages.push(("image_features".to_owned(), f.shallow_clone()));
            features = Some(f);
        }
        let prefill = self.model.prefill(
            ids,
            features.as_ref(),
            &prepared.grids,
            &mut cache,
            LogitsToKeep::All,
        )?;
        let positions = Tensor::f_from_slice(&prefill.positions.ids.concat())?.f_view([3, -1])?;
        stages.push(("position_ids".to_owned(), positions));
        stages.push(("logits".to_owned(), self.model.logits(&prefill.hidden)?));
        stages
            .into_iter()
            .map(|(name, t)| {
                let kind = if t.kind() == Kind::Int64 {
                    Kind::Int64
                } else {
                    Kind::Float
                };
                Ok((name, t.f_to_device(Device::Cpu)?.f_to_kind(kind)?.f_contiguous()?))
            })
            .collect()
    }

    fn prefill(
        &self,
        prepared: &Prepared,
        cache: &mut KvCache,
        cancel: &mut CancelCheck<'_>,
    ) -> Result<Prefill> {
        let (ids, grids) = (&prepared.input_ids, &prepared.grids);
        let features = match &prepared.pixel_values {
            Some(pixels) => Some(self.model.image_features_cancellable(pixels, grids, cancel)?),
            None => None,
        };
        self.model
            .prefill_cancellable((ids, features.as_ref(), grids), cache, LogitsToKeep::Last, cancel)
    }

    /// Checks the request's limits, then computes token ids and patches.
    fn prepare(&self, request: &ReadRequest, new_tokens: usize) -> Result<Prepared> {
        let characters = request
            .messages
            .iter()
            .flat_map(|m| &m.content)
            .map(|c| match c {
                Content::Text(text) => text.chars().count(),
                Content::Image => 0,
            })
            .sum();
        if characters > MAX_PROMPT_CHARACTERS {
            return Err(PromptError::TooLong {
                characters,
                limit: MAX_PROMPT_CHARACTERS,
            }
            .into());
        }
        let grids = request
            .images
            .iter()
            .map(|page| {
                let (height, width) = page.original_size();
                self.images.grid(height, width)
            })
            .collect::<Result<Vec<_>, _>>()?;
        let input_ids = self.text.encode_chat(&request.messages, &grids)?;
        let (prompt_tokens, context) = (input_ids.len(), self.model.config().text.max_position_embeddings);
        let needed = prompt_tokens.saturating_add(new_tokens);
        if needed > context {
            return Err(PromptError::ContextOverflow {
                needed,
                prompt_tokens,
                new_tokens,
                context,
            }
            .into());
        }
        let patches = request
            .images
            .iter()
            .map(|page| Ok(self.images.process(page)?.pixel_values))
            .collect::<Result<Vec<_>>>()?;
        let pixel_values = match patches.len() {
            0 => None,
            _ => Some(Tensor::f_cat(&patches, 0)?),
        };
        Ok(Prepared {
            input_ids,
            pixel_values,
            grids,
        })
    }
}

/// Page size bounds of a reader of the model in `dir`, without loading it. `options` as for [`Reader::load`].
pub fn page_bounds(dir: &Path, options: &LoadOptions) -> Result<PixelBounds> {
    let own = options
        .adapter
        .as_deref()
        .map(ImageProcessor::from_dir_if_any)
        .transpose()?;
    Ok(bounded(own.flatten(), || ImageProcessor::from_dir(dir), options)?.bounds())
}

/// [`ModelInfo::lora_adapter`] of an adapter that was not read from a folder; its docs, the API's schema, repeat it.
pub const UNSAVED_ADAPTER: &str = "unsaved adapter";

fn adapter_name(adapter: &Adapter) -> String {
    match adapter.file().parent() {
        Some(folder) if folder != Path::new("") => model_folder_name(folder),
        _ => UNSAVED_ADAPTER.to_owned(),
    }
}

/// The image processor, and the file of its settings.
fn image_processor(
    dir: &Path,
    options: &LoadOptions,
    adapter: Option<&Adapter>,
) -> Result<(ImageProcessor, PathBuf)> {
    let own = adapter.and_then(|adapter| Some((adapter.images.clone()?, adapter.file())));
    let settings = match &own {
        Some((_, file)) => file.with_file_name(PREPROCESSOR_CONFIG),
        None => dir.join(PREPROCESSOR_CONFIG),
    };
    let own = own.map(|(images, _)| images);
    let images = bounded(own, || ImageProcessor::from_dir(dir), options)?;
    Ok((images, settings))
}

/// The adapter's image processor or else the model's; bounds in `options` take precedence.
fn bounded(
    own: Option<ImageProcessor>,
    models: impl FnOnce() -> Result<ImageProcessor>,
    options: &LoadOptions,
) -> Result<ImageProcessor> {
    let (mut min, max) = (options.min_pixels, options.max_pixels);
    let images = match own {
        Some(images) => {
            min = min.or(max.filter(|max| *max < images.min_pixels()));
            images
        }
        None => models()?,
    };
    let images = match options.min_pixels {
        Some(_) => images.with_max_enlargement(None)?,
        None => images,
    };
    images.with_pixel_bounds(min, max)
}

/// Checks that the processor's patches are those of the vision tower.
fn check_patches(settings: &Path, config: &Config, images: &ImageProcessor) -> Result<()> {
    let vision = &config.vision;
    let pairs = [
        ("patch_size", vision.patch_size, images.patch_size()),
        (
            "temporal_patch_size",
            vision.temporal_patch_size,
            images.temporal_patch_size(),
        ),
        (
            "spatial_merge_size",
            vision.spatial_merge_size,
            images.merge_size(),
        ),
        ("in_channels", vision.in_channels, 3),
    ];
    match pairs.iter().find(|(_, model, processor)| model != processor) {
        None => Ok(()),
        Some((key, model, processor)) => Err(Error::invalid_file(
            settings,
            format!("the processor's {key} is {processor}, but config.json's vision_config asks for {model}"),
        )),
    }
}
