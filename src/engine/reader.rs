//! A loaded model folder: from pages and a prompt to text.

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::backend::Backend;
use super::kv_budget::{KvBudget, free_bytes, kv_budget_bytes, kv_bytes_per_token};
use super::prefix_cache::{PrefixCache, PrefixKey};
use super::request::{ImageSize, ModelInfo, OnStep, ReadRequest, Reading, Variant};
use crate::blackwell_compat::Reductions;
use crate::checkpoint::{Checkpoint, ModelFolder};
use crate::device::{Precision, device_name, kind_name};
use crate::error::PromptError;
use crate::generation::GenerationOptions;
use crate::lora::Adapter;
use crate::processing::{Content, Grid, ImageProcessor, PREPROCESSOR_CONFIG, PixelBounds, TextProcessor};
use crate::project::model_folder_name;
use crate::quant::Quantization;
use crate::qwen2_5_vl::{AdapterIndex, Config, FIRST_ADAPTER, KvPrefix, LogitsToKeep, Model, ModelOptions};
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
    /// Folder of a LoRA adapter to attach: the default of requests.
    pub adapter: Option<PathBuf>,
    /// Further adapters, by name and folder, that a request can choose.
    pub named_adapters: Vec<(String, PathBuf)>,
    /// How integer products are computed; `None`: by the device.
    pub reductions: Option<Reductions>,
    /// Memory for keys and values of all answers that run, bytes; `None`: [`kv_budget_bytes`] of what is free once the model is loaded.
    pub kv_cache_bytes: Option<u64>,
    /// Whether keys and values of pages are kept for further questions about them, in an eighth of that memory.
    pub prefix_cache: bool,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            device: tch::Device::Cpu,
            precision: Precision::Auto,
            min_pixels: None,
            max_pixels: None,
            adapter: None,
            named_adapters: Vec::new(),
            reductions: None,
            kv_cache_bytes: None,
            prefix_cache: false,
        }
    }
}

/// A loaded model folder.
pub struct Reader {
    variants: Vec<Variant>,
    /// Adapter and image processor of each variant.
    parts: Vec<(AdapterIndex, ImageProcessor)>,
    pub(super) text: TextProcessor,
    pub(super) options: GenerationOptions,
    pub(super) model: Model,
    pub(super) kv: Arc<KvBudget>,
    pub(super) prefixes: Option<PrefixCache>,
    warnings: Vec<String>,
}

/// Maximum length in characters of the prompt about one page; programs and forms reject a longer one before any work.
pub const MAX_PROMPT_CHARACTERS: usize = 8192;

/// A request after preprocessing: inputs of the model.
pub(super) struct ModelInputs {
    pub(super) input_ids: Vec<i64>,
    /// Maximum number of generated tokens.
    pub(super) max_new_tokens: usize,
    /// Patches of all images, concatenated.
    pub(super) pixel_values: Option<Tensor>,
    pub(super) grids: Vec<Grid>,
    pub(super) sizes: Vec<ImageSize>,
    pub(super) adapter: AdapterIndex,
    /// What the prompt begins with, if prefixes are kept.
    pub(super) prefix: Option<PrefixKey>,
    /// Its keys and values, if they are kept; there are no patches then.
    pub(super) kept: Option<Arc<KvPrefix>>,
}

impl ModelInputs {
    /// Tokens of prompt and answer.
    pub(super) fn tokens(&self) -> usize {
        self.input_ids.len() + self.max_new_tokens
    }
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
        let named = options.named_adapters.iter();
        let named: Vec<Adapter> = named
            .map(|(_, folder)| Adapter::read(folder))
            .collect::<Result<_>>()?;
        let adapters: Vec<&Adapter> = adapter.into_iter().chain(&named).collect();
        let processor = |adapter: Option<&Adapter>| -> Result<ImageProcessor> {
            let (images, settings) = image_processor(dir, options, adapter)?;
            check_patches(&settings, &config, &images)?;
            Ok(images)
        };
        // The default first, then the base, then the named adapters.
        let mut parts = vec![(adapter.and(FIRST_ADAPTER), processor(adapter)?)];
        if adapter.is_some_and(|adapter| adapter.replaced.is_empty()) {
            parts.push((None, processor(None)?));
        }
        for (i, named) in named.iter().enumerate() {
            parts.push((Some(i + usize::from(adapter.is_some())), processor(Some(named))?));
        }
        text.check_template()?;
        let generation = GenerationOptions::from_folder(&folder)?;
        let device = options.device;
        let kind = options.precision.checked_kind(device)?;
        let quantization = Quantization::from_json(folder.config()?)?;
        let model_options = ModelOptions {
            adapters: &adapters,
            reductions: options.reductions.unwrap_or_else(|| Reductions::on(device)),
            ..ModelOptions::new(kind, device)
        };
        let model = Model::load(&Checkpoint::open(dir)?, &config, &quantization, &model_options)?;
        let per_token = kv_bytes_per_token(&config.text, kind);
        let kv_bytes = options
            .kv_cache_bytes
            .unwrap_or_else(|| kv_budget_bytes(free_bytes(device), per_token));
        let kept_bytes = if options.prefix_cache { kv_bytes / 8 } else { 0 };
        let kv = KvBudget::new(kv_bytes - kept_bytes, per_token);
        tracing::info!(
            tokens = kv.tokens(),
            mib = kv_bytes >> 20,
            "memory for keys and values"
        );
        let mut warnings = model.warnings().to_vec();
        warnings.extend(GenerationOptions::warnings(&folder)?);
        let names: Vec<String> = adapter
            .map(adapter_name)
            .into_iter()
            .chain(options.named_adapters.iter().map(|(name, _)| name.clone()))
            .collect();
        let model_name = model_folder_name(dir);
        check_names(&names, &model_name)?;
        let variants = parts.iter().map(|(adapter, images)| Variant {
            info: ModelInfo {
                model_name: model_name.clone(),
                precision: quantization.precision().unwrap_or(kind_name(kind)).to_owned(),
                lora_adapter: adapter.map(|index| names[index].clone()),
                device: device_name(device),
            },
            bounds: Some(images.bounds()),
        });
        Ok(Self {
            variants: variants.collect(),
            parts,
            text,
            options: generation,
            model,
            kv,
            prefixes: options.prefix_cache.then(|| PrefixCache::new(kept_bytes)),
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

    /// The default's image processor.
    pub fn images(&self) -> &ImageProcessor {
        &self.parts[0].1
    }

    /// Metadata of the default: the model with the adapter that was attached by itself, if any.
    pub fn info(&self) -> &ModelInfo {
        &self.variants[0].info
    }

    /// What a request can choose between, the default first.
    pub fn variants(&self) -> &[Variant] {
        &self.variants
    }

    /// Answers one request; `on_step` receives the answer as it is generated and cancels with `Break`.
    ///
    /// It is called for every token, and without text between the layers of the prefill.
    pub fn read(&self, request: &ReadRequest, on_step: &mut OnStep<'_>) -> Result<Reading> {
        let prompt = Backend::prepare(self, request)?;
        let mut sequence = match self.begin(prompt, on_step)? {
            ControlFlow::Continue(sequence) => sequence,
            ControlFlow::Break(reading) => return Ok(reading),
        };
        loop {
            for result in self.step(&mut [&mut sequence]) {
                result?;
            }
            if let Some(reading) = self.push(&mut sequence, on_step)? {
                return Ok(reading);
            }
        }
    }

    /// Tensors of one request by stage, for parity checks: ids i64, the rest f32, all on the CPU.
    pub fn trace(&self, request: &ReadRequest) -> Result<Vec<(String, Tensor)>> {
        let prepared = self.inputs(request, 1)?;
        let ids = &prepared.input_ids;
        let mut stages = vec![("input_ids".to_owned(), Tensor::f_from_slice(ids)?)];
        let mut cache = self.model.cache_with(ids.len() + 1, prepared.adapter)?;
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
            let f = self.model.image_features_cancellable(
                pixels,
                &prepared.grids,
                prepared.adapter,
                &mut || ControlFlow::Continue(()),
            )?;
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
        let logits = self.model.logits_with(&prefill.hidden, prepared.adapter)?;
        stages.push(("logits".to_owned(), logits));
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

    /// Checks that the request fits the context, then computes token ids and patches.
    pub(super) fn inputs(&self, request: &ReadRequest, new_tokens: usize) -> Result<ModelInputs> {
        let Some((adapter, images)) = self.parts.get(request.variant) else {
            return Err(Error::Internal(format!(
                "there is no variant {}",
                request.variant
            )));
        };
        let images = request.images.iter().map(|picture| {
            let processor = match picture.bounds {
                Some(bounds) => Cow::Owned(images.clone().with_bounds(bounds)),
                None => Cow::Borrowed(images),
            };
            (picture, processor)
        });
        let images: Vec<_> = images.collect();
        let sizes = images.iter().map(|(picture, processor)| {
            let (height, width) = picture.page.original_size();
            let grid = processor.grid(height, width)?;
            let (patch, merge) = (processor.patch_size(), processor.merge_size());
            let size = ImageSize {
                width,
                height,
                resized_width: (grid.w * patch) as u32,
                resized_height: (grid.h * patch) as u32,
                tokens: grid.patches() / (merge * merge),
            };
            Ok((grid, size))
        });
        let (grids, sizes): (Vec<_>, Vec<_>) = sizes.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let context = self.model.config().text.max_position_embeddings;
        let overflow = |prompt_tokens: usize, is_exact| PromptError::ContextOverflow {
            is_exact,
            needed: prompt_tokens.saturating_add(new_tokens),
            prompt_tokens,
            new_tokens,
            context,
        };
        // Before any work on a text that cannot fit.
        let bytes: usize = request
            .messages
            .iter()
            .flat_map(|message| &message.content)
            .map(text_bytes)
            .sum();
        let image_tokens: usize = sizes.iter().map(|size| size.tokens).sum();
        let least = image_tokens + self.text.least_tokens(bytes);
        if least > context {
            return Err(overflow(least, false).into());
        }
        let input_ids = self.text.encode_chat(&request.messages, &grids)?;
        let room = context.saturating_sub(input_ids.len());
        if room == 0 || new_tokens > room && !request.fit_context {
            return Err(overflow(input_ids.len(), true).into());
        }
        let max_new_tokens = new_tokens.min(room);
        let memory = self.kv.tokens();
        let fits = memory.saturating_sub(input_ids.len());
        if fits == 0 || max_new_tokens > fits && !request.fit_context {
            let prompt_tokens = input_ids.len();
            return Err(PromptError::MemoryOverflow {
                needed: prompt_tokens + max_new_tokens,
                prompt_tokens,
                new_tokens: max_new_tokens,
                memory,
            }
            .into());
        }
        let prefix = self.prefixes.as_ref().and_then(|_| {
            let images = images
                .iter()
                .map(|(picture, _)| *picture)
                .zip(grids.iter().copied());
            PrefixKey::new(&input_ids, self.model.config().image_token_id, *adapter, images)
        });
        let kept = prefix.and_then(|key| self.prefixes.as_ref()?.find(&key));
        let patches = images
            .iter()
            .filter(|_| kept.is_none())
            .map(|(picture, processor)| Ok(processor.process(&picture.page)?.pixel_values));
        let patches = patches.collect::<Result<Vec<_>>>()?;
        let pixel_values = match patches.len() {
            0 => None,
            _ => Some(Tensor::f_cat(&patches, 0)?),
        };
        Ok(ModelInputs {
            input_ids,
            max_new_tokens: max_new_tokens.min(fits),
            pixel_values,
            grids,
            sizes,
            adapter: *adapter,
            prefix,
            kept,
        })
    }
}

fn text_bytes(content: &Content) -> usize {
    match content {
        Content::Text(text) => text.len(),
        Content::Image => 0,
    }
}

/// Checks that requests can tell the adapters apart, and from the model.
fn check_names(adapters: &[String], model: &str) -> Result<()> {
    for (i, name) in adapters.iter().enumerate() {
        if adapters[..i].contains(name) {
            return Err(Error::option(
                "adapter",
                format!("two adapters are named \"{name}\""),
            ));
        }
        if name == model {
            let reason = format!("\"{name}\" is the model's name: choose another name for the adapter");
            return Err(Error::option("adapter", reason));
        }
    }
    Ok(())
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
