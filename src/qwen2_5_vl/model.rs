//! The whole model: image features, prefill, decode.

use std::ops::ControlFlow;
use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::{
    Config,
    decode_cuda::CudaStep,
    input_samples::InputSamples,
    inputs::{image_rows, scatter_images},
    kv_cache::KvCache,
    language::{LanguageModel, LogitsToKeep},
    linear::Scratch,
    lora::{AdapterIndex, DropoutSeed, FIRST_ADAPTER},
    mrope::{Positions, rope_positions},
    vision::VisionTower,
    weight_tying::Tying,
    weights::Weights,
};
use crate::blackwell_compat::Reductions;
use crate::checkpoint::Checkpoint;
use crate::lora::Adapter;
use crate::processing::Grid;
use crate::quant::Quantization;
use crate::{Error, Result};

/// Qwen2.5-VL.
pub struct Model {
    pub(super) config: Config,
    pub(super) vision: VisionTower,
    pub(super) language: LanguageModel,
    pub(super) dropout_seed: DropoutSeed,
    warnings: Vec<String>,
}

/// Result of a prefill.
pub struct Prefill {
    /// Hidden states of the requested tokens before the final norm, `[rows, hidden]`.
    pub hidden: Tensor,
    /// M-RoPE positions of the prompt.
    pub positions: Positions,
}

/// Polled between layers; `Break` cancels the pass.
pub type CancelCheck<'a> = dyn FnMut() -> ControlFlow<()> + 'a;

/// For a pass that cannot be cancelled.
pub(super) fn never_cancel() -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Returns [`Error::Cancelled`] if `cancel` breaks.
pub(super) fn check_cancelled(cancel: &mut CancelCheck<'_>) -> Result<()> {
    match cancel() {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Cancelled),
    }
}

/// How a [`Model`] is built.
pub struct ModelOptions<'a> {
    /// Dtype of the computation.
    pub kind: Kind,
    /// Device of the computation.
    pub device: Device,
    /// LoRA adapters, applied unmerged; each pass chooses one. Their tensors are shared if device and dtype allow it; tensors
    /// that require gradients are always shared, so that training them trains the model.
    pub adapters: &'a [&'a Adapter],
    /// Records some of the linear layers' inputs.
    pub samples: Option<Arc<InputSamples>>,
    /// How integer products are computed.
    pub reductions: Reductions,
}

impl ModelOptions<'_> {
    /// A model that computes in `kind` on `device`, without adapters.
    pub fn new(kind: Kind, device: Device) -> Self {
        Self {
            kind,
            device,
            adapters: &[],
            samples: None,
            reductions: Reductions::on(device),
        }
    }
}

impl Model {
    /// Builds the model of `config` from the weights in `checkpoint`, whose linear layers are stored as `quantization`.
    ///
    /// # Errors
    /// [`Error::Tensor`] names a tensor that is missing or does not fit; [`Error::Unsuitable`] an adapter of another model.
    pub fn load(
        checkpoint: &Checkpoint,
        config: &Config,
        quantization: &Quantization,
        options: &ModelOptions<'_>,
    ) -> Result<Self> {
        let &ModelOptions {
            kind,
            device,
            adapters,
            ..
        } = options;
        let (tying, warning) = Tying::of(checkpoint, config)?;
        let mut warnings = checkpoint.warnings().to_vec();
        warnings.extend(warning);
        for adapter in adapters {
            adapter.check(&config.adaptable_modules())?;
            if adapters.len() > 1
                && let Some(name) = adapter.replaced.keys().next()
            {
                return Err(Error::unsuitable(
                    adapter.file(),
                    format!(
                        "stores \"{name}\" in place of the base's, so that no other adapter can be attached beside it: \
                         attach it alone, or merge it with `medvision merge`"
                    ),
                ));
            }
            warnings.extend(adapter.warnings(&config.adaptable_modules())?);
        }
        let weights = Weights {
            checkpoint,
            kind,
            device,
            scratch: Scratch::new(kind, device)?,
            quantization,
            samples: options.samples.clone(),
            adapters,
            dropout_seed: DropoutSeed::default(),
            reductions: options.reductions,
        };
        let _guard = tch::no_grad_guard();
        Ok(Self {
            vision: VisionTower::load(&weights, &config.vision)?,
            language: LanguageModel::load(&weights, &config.text, tying)?,
            config: config.clone(),
            dropout_seed: weights.dropout_seed.clone(),
            warnings,
        })
    }

    /// The model's configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Oddities of the checkpoint and the adapter, for the user; the model works in spite of them.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// How it computes integer products.
    pub fn reductions(&self) -> Reductions {
        self.vision.token_grids.reductions()
    }

    /// The device that it computes on.
    pub fn device(&self) -> Device {
        self.language.device
    }

    /// pixel_values `[patches, patch_values]` of all images, concatenated → image features `[merged tokens, hidden]`, with the
    /// first adapter.
    pub fn image_features(&self, pixel_values: &Tensor, grids: &[Grid]) -> Result<Tensor> {
        self.image_features_cancellable(pixel_values, grids, FIRST_ADAPTER, &mut never_cancel)
    }

    /// As [`Model::image_features`], with `adapter`; `cancel` is polled before every block.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if `cancel` breaks.
    pub fn image_features_cancellable(
        &self,
        pixel_values: &Tensor,
        grids: &[Grid],
        adapter: AdapterIndex,
        cancel: &mut CancelCheck<'_>,
    ) -> Result<Tensor> {
        tch::no_grad(|| self.vision.forward(pixel_values, grids, adapter, false, cancel))
    }

    /// An empty cache for `capacity` tokens of a sequence with the first adapter.
    pub fn cache(&self, capacity: usize) -> Result<KvCache> {
        self.cache_with(capacity, FIRST_ADAPTER)
    }

    /// As [`Model::cache`], for a sequence with `adapter`.
    pub fn cache_with(&self, capacity: usize, adapter: AdapterIndex) -> Result<KvCache> {
        self.language.cache(capacity, adapter)
    }

    /// Runs a prompt on an empty cache; `image_features` replace the embeddings of its image tokens.
    ///
    /// # Errors
    /// [`Error::ImageTokens`] if `image_features` or `grids` do not match the image tokens.
    pub fn prefill(
        &self,
        input_ids: &[i64],
        image_features: Option<&Tensor>,
        grids: &[Grid],
        cache: &mut KvCache,
        keep: LogitsToKeep,
    ) -> Result<Prefill> {
        self.prefill_cancellable((input_ids, image_features, grids), cache, keep, &mut never_cancel)
    }

    /// As [`Model::prefill`] of (ids, image features, grids), on a cache that is empty or holds the first of the ids, up to all images;
    /// `cancel` is polled before every layer. A cancelled pass leaves the cache unusable.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if `cancel` breaks.
    pub fn prefill_cancellable(
        &self,
        (input_ids, image_features, grids): (&[i64], Option<&Tensor>, &[Grid]),
        cache: &mut KvCache,
        keep: LogitsToKeep,
        cancel: &mut CancelCheck<'_>,
    ) -> Result<Prefill> {
        let image = self.config.image_token_id;
        let positions = rope_positions(input_ids, image, &self.vision.token_grids.of(grids)?)?;
        let left = cache.len()..input_ids.len();
        let left_ids = input_ids.get(left.clone()).unwrap_or_default();
        if left_ids.is_empty() {
            return Err(Error::Internal("a prompt without a token to read".into()));
        }
        tch::no_grad(|| {
            let embeddings = self.language.embed(left_ids, cache.adapter)?;
            let x = scatter_images(embeddings, &image_rows(left_ids, image), image_features)?;
            let at = positions.ids.each_ref().map(|axis| axis[left.clone()].to_vec());
            let hidden = self.language.forward(x, &at, cache, keep, cancel)?;
            cache.next_position = positions.next;
            Ok(Prefill { hidden, positions })
        })
    }

    /// Hidden states `[rows, hidden]` → logits `[rows, vocab]` f32, with the first adapter.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.logits_with(hidden, FIRST_ADAPTER)
    }

    /// As [`Model::logits`], with `adapter`.
    pub fn logits_with(&self, hidden: &Tensor, adapter: AdapterIndex) -> Result<Tensor> {
        tch::no_grad(|| self.language.logits(hidden, adapter))
    }

    /// Runs one more token; returns the next token's logits, `[1, vocab]` f32.
    pub fn decode(&self, token: i64, cache: &mut KvCache) -> Result<Tensor> {
        self.decode_together(&mut [(token, cache)])
    }

    /// Runs one more token of each sequence, `(token, cache)`; returns the next tokens' logits, `[sequences, vocab]` f32. A
    /// sequence gets what it gets alone; where a step serves several, the weights are read once for all of them.
    pub fn decode_together(&self, sequences: &mut [(i64, &mut KvCache)]) -> Result<Tensor> {
        tch::no_grad(|| {
            if self.language.steps_on_cpu() {
                return self.language.step(sequences);
            }
            let alike = sequences.iter().all(|(_, cache)| self.step_for(cache).is_some());
            let logits: Vec<Tensor> = match self.language.cuda_step.as_ref().filter(|_| alike) {
                Some(step) => sequences
                    .chunks_mut(step.max_sequences())
                    .map(|some| step.run(&self.language, some))
                    .collect::<Result<_>>()?,
                None => sequences
                    .iter_mut()
                    .map(|(token, cache)| self.decode_alone(*token, cache))
                    .collect::<Result<_>>()?,
            };
            Ok(Tensor::f_cat(&logits, 0)?)
        })
    }

    fn decode_alone(&self, token: i64, cache: &mut KvCache) -> Result<Tensor> {
        if let Some(step) = self.step_for(cache) {
            return step.run(&self.language, &mut [(token, cache)]);
        }
        let position = cache.next_position;
        cache.next_position += 1;
        let x = self.language.embed(&[token], cache.adapter)?;
        let at = [vec![position], vec![position], vec![position]];
        let hidden = self
            .language
            .forward(x, &at, cache, LogitsToKeep::Last, &mut never_cancel)?;
        self.language.logits(&hidden, cache.adapter)
    }

    /// Sequences that one step serves.
    pub fn sequences_per_step(&self) -> usize {
        self.language
            .cuda_step
            .as_ref()
            .map_or(1, CudaStep::max_sequences)
    }

    /// Whether one kernel of a GPU decodes a token of the sequence.
    pub fn steps_in_one_kernel(&self, cache: &KvCache) -> bool {
        self.step_for(cache).is_some()
    }

    fn step_for(&self, cache: &KvCache) -> Option<&CudaStep> {
        let step = self.language.cuda_step.as_ref()?;
        step.serves(cache.adapter, cache.capacity()).then_some(step)
    }
}
