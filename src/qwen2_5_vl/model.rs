//! The whole model: image features into the prompt, prompt into the cache, token after token out.

use std::ops::ControlFlow;
use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::{
    Config,
    language::{KvCache, LanguageModel, Wanted},
    layers::Weights,
    linear::{InputSamples, Scratch},
    positions::{Positions, rope_positions},
    recorded::DropoutSeed,
    tying::Tying,
    vision::VisionTower,
};
use crate::blackwell_compat::Reductions;
use crate::checkpoint::Checkpoint;
use crate::error::PromptError;
use crate::lora::Adapter;
use crate::processing::Grid;
use crate::quant::Quantization;
use crate::torch::upload;
use crate::{Error, Result};

/// Qwen2.5-VL.
pub struct Model {
    pub(super) config: Config,
    pub(super) vision: VisionTower,
    pub(super) language: LanguageModel,
    pub(super) dropout_seed: DropoutSeed,
    warnings: Vec<String>,
}

/// A prompt after its pass through the model.
pub struct Prefill {
    /// `[rows, hidden]`: hidden states of the prompt's tokens that were wanted, before the final norm.
    pub hidden: Tensor,
    /// Rotary positions of the prompt.
    pub positions: Positions,
}

/// Asked between layers whether a pass shall go on.
pub type GoOn<'a> = dyn FnMut() -> ControlFlow<()> + 'a;

/// For a pass that nobody ends.
pub(super) fn to_the_end() -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Ends the pass with an error where `go_on` breaks.
pub(super) fn ask(go_on: &mut GoOn<'_>) -> Result<()> {
    match go_on() {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Interrupted),
    }
}

impl Model {
    /// Builds the model of `config` from `checkpoint`; weights become `kind` on `device`.
    ///
    /// `adapter` stays beside the weights. Its tensors are shared where device and dtype allow it; tensors that require
    /// gradients are always shared, so that who trains them trains the model.
    pub fn load(
        checkpoint: &Checkpoint,
        config: &Config,
        kind: Kind,
        device: Device,
        adapter: Option<&Adapter>,
    ) -> Result<Self> {
        Self::load_counting(
            checkpoint,
            config,
            (kind, device),
            adapter,
            Reductions::on(device),
        )
    }

    /// The same, with another way to multiply integers up than the device asks for.
    pub fn load_counting(
        checkpoint: &Checkpoint,
        config: &Config,
        place: (Kind, Device),
        adapter: Option<&Adapter>,
        reductions: Reductions,
    ) -> Result<Self> {
        Self::load_with(checkpoint, config, place, (adapter, None), reductions)
    }

    /// The same without an adapter; its linear layers leave some of what they read in `samples`.
    pub fn load_sampled(
        checkpoint: &Checkpoint,
        config: &Config,
        kind: Kind,
        device: Device,
        samples: Arc<InputSamples>,
    ) -> Result<Self> {
        let reductions = Reductions::on(device);
        Self::load_with(
            checkpoint,
            config,
            (kind, device),
            (None, Some(samples)),
            reductions,
        )
    }

    fn load_with(
        checkpoint: &Checkpoint,
        config: &Config,
        (kind, device): (Kind, Device),
        (adapter, samples): (Option<&Adapter>, Option<Arc<InputSamples>>),
        reductions: Reductions,
    ) -> Result<Self> {
        let (tying, warning) = Tying::of(checkpoint, config)?;
        let mut warnings = checkpoint.warnings().to_vec();
        warnings.extend(warning);
        if let Some(adapter) = adapter {
            adapter.check(&config.adaptable_modules())?;
            warnings.extend(adapter.warnings(&config.adaptable_modules())?);
        }
        let weights = Weights {
            checkpoint,
            kind,
            device,
            scratch: Scratch::new(kind, device)?,
            quantization: Quantization::from_dir(checkpoint.dir())?,
            samples,
            adapter,
            dropout_seed: DropoutSeed::default(),
            reductions,
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

    /// The model's sizes.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What of the folders should be mended, though they are used: for the person who loads them.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// How it multiplies integers up.
    pub fn reductions(&self) -> Reductions {
        self.vision.extents.reductions()
    }

    /// Where it computes.
    pub fn device(&self) -> Device {
        self.language.device
    }

    /// pixel_values `[patches, patch_values]` of all images one after the other → `[merged tokens, hidden]`.
    pub fn image_features(&self, pixel_values: &Tensor, grids: &[Grid]) -> Result<Tensor> {
        self.image_features_while(pixel_values, grids, &mut to_the_end)
    }

    /// As [`Model::image_features`]; `go_on` is asked before every block and may end the pass.
    ///
    /// # Errors
    /// [`Error::Interrupted`] where `go_on` breaks.
    pub fn image_features_while(
        &self,
        pixel_values: &Tensor,
        grids: &[Grid],
        go_on: &mut GoOn<'_>,
    ) -> Result<Tensor> {
        tch::no_grad(|| self.vision.forward(pixel_values, grids, false, go_on))
    }

    /// An empty cache for `capacity` tokens.
    pub fn cache(&self, capacity: usize) -> Result<KvCache> {
        self.language.cache(capacity)
    }

    /// Runs a prompt; `image_features` replace the embeddings of its image tokens, whose number must match `grids`.
    pub fn prefill(
        &self,
        input_ids: &[i64],
        image_features: Option<&Tensor>,
        grids: &[Grid],
        cache: &mut KvCache,
        wanted: Wanted,
    ) -> Result<Prefill> {
        self.prefill_while((input_ids, image_features, grids), cache, wanted, &mut to_the_end)
    }

    /// As [`Model::prefill`] of (ids, image features, grids); `go_on` is asked before every layer and may end the pass, after
    /// which the cache is of no use.
    ///
    /// # Errors
    /// [`Error::Interrupted`] where `go_on` breaks.
    pub fn prefill_while(
        &self,
        (input_ids, image_features, grids): (&[i64], Option<&Tensor>, &[Grid]),
        cache: &mut KvCache,
        wanted: Wanted,
        go_on: &mut GoOn<'_>,
    ) -> Result<Prefill> {
        let image = self.config.image_token_id;
        let positions = rope_positions(input_ids, image, &self.vision.extents.of(grids)?)?;
        let places: Vec<i64> = (0..input_ids.len() as i64)
            .filter(|&i| input_ids[i as usize] == image)
            .collect();
        let rows = image_features.map_or(0, |f| f.size()[0]) as usize;
        if rows != places.len() {
            return Err(PromptError::ImageCount {
                places: places.len(),
                images: rows,
            }
            .into());
        }
        tch::no_grad(|| {
            let mut x = self.language.embed(input_ids)?;
            if let Some(features) = image_features.filter(|_| !places.is_empty()) {
                let at = upload(&places, x.device())?;
                x = x.f_index_copy(0, &at, &features.f_to_kind(x.kind())?)?;
            }
            let hidden = self.language.forward(x, &positions.ids, cache, wanted, go_on)?;
            cache.next_position = positions.next;
            Ok(Prefill { hidden, positions })
        })
    }

    /// Hidden states `[rows, hidden]` → logits `[rows, vocab]` f32.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        tch::no_grad(|| self.language.logits(hidden))
    }

    /// Runs one more token; logits `[1, vocab]` f32 of what follows it.
    pub fn decode(&self, token: i64, cache: &mut KvCache) -> Result<Tensor> {
        tch::no_grad(|| {
            let position = cache.next_position;
            cache.next_position += 1;
            if self.language.steps_on_cpu() {
                return self.language.step(token, position, cache);
            }
            let x = self.language.embed(&[token])?;
            let at = [vec![position], vec![position], vec![position]];
            let hidden = self
                .language
                .forward(x, &at, cache, Wanted::Last, &mut to_the_end)?;
            self.language.logits(&hidden)
        })
    }
}
