//! Inputs of the decoder layers: token embeddings, with the images' features at the image tokens.

use tch::{Device, Kind, Tensor};

use super::{
    Config,
    linear::Scratch,
    lora::DropoutSeed,
    model::never_cancel,
    mrope::{Positions, rope_positions},
    vision::VisionTower,
    weight_tying::Tying,
    weights::Weights,
};
use crate::blackwell_compat::Reductions;
use crate::checkpoint::{Checkpoint, EMBEDDING};
use crate::processing::Grid;
use crate::quant::Quantization;
use crate::torch::upload;
use crate::{Error, Result};

/// Rows of the image tokens in `input_ids`.
pub(super) fn image_rows(input_ids: &[i64], image_token_id: i64) -> Vec<i64> {
    let rows = input_ids.iter().zip(0i64..);
    rows.filter(|(id, _)| **id == image_token_id)
        .map(|(_, row)| row)
        .collect()
}

/// Embeddings `[rows, hidden]` with `features` `[image tokens, hidden]` at `image_rows`, in the embeddings' dtype.
///
/// Reference: [`Qwen2_5_VLModel.forward`](https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/models/qwen2_5_vl/modeling_qwen2_5_vl.py#L1196-L1264).
///
/// # Errors
/// [`Error::ImageTokens`] if the two differ in number.
pub(super) fn scatter_images(
    embeddings: Tensor,
    image_rows: &[i64],
    features: Option<&Tensor>,
) -> Result<Tensor> {
    let found = features.map_or(0, |features| features.size()[0]) as usize;
    if found != image_rows.len() {
        return Err(Error::ImageTokens {
            tokens: image_rows.len(),
            features: found,
        });
    }
    match features.filter(|_| found > 0) {
        None => Ok(embeddings),
        Some(features) => {
            let at = upload(image_rows, embeddings.device())?;
            Ok(embeddings.f_index_copy(0, &at, &features.f_to_kind(embeddings.kind())?)?)
        }
    }
}

/// Vision tower and token embeddings without decoder layers, for work that loads one layer at a time.
pub struct InputEmbedder {
    config: Config,
    vision: VisionTower,
    embed: Tensor,
}

impl InputEmbedder {
    /// Builds it from the dense weights in `checkpoint`; they are computed with in `kind` on `device`.
    pub fn load(checkpoint: &Checkpoint, config: &Config, kind: Kind, device: Device) -> Result<Self> {
        let weights = Weights {
            checkpoint,
            kind,
            device,
            scratch: Scratch::new(kind, device)?,
            quantization: &Quantization::None,
            samples: None,
            adapters: &[],
            dropout_seed: DropoutSeed::default(),
            reductions: Reductions::on(device),
        };
        let table = match Tying::of(checkpoint, config)?.0 {
            Tying::One(name) => name,
            Tying::Apart => EMBEDDING,
        };
        let shape = [config.text.vocab_size, config.text.hidden_size];
        tch::no_grad(|| {
            Ok(Self {
                vision: VisionTower::load(&weights, &config.vision)?,
                embed: weights.tensor(table, &shape)?,
                config: config.clone(),
            })
        })
    }

    /// Returns the input of the first decoder layer, `[rows, hidden]`, and the positions of its rows.
    ///
    /// `pixel_values`: patches of all images, `[patches, patch_values]`, in the order of `grids`.
    pub fn embed(
        &self,
        input_ids: &[i64],
        pixel_values: Option<&Tensor>,
        grids: &[Grid],
    ) -> Result<(Tensor, Positions)> {
        let image = self.config.image_token_id;
        let positions = rope_positions(input_ids, image, &self.vision.token_grids.of(grids)?)?;
        tch::no_grad(|| {
            let ids = upload(input_ids, self.embed.device())?;
            let embeddings = self.embed.f_index_select(0, &ids)?;
            let features = match pixel_values {
                Some(pixels) => Some(
                    self.vision
                        .forward(pixels, grids, None, false, &mut never_cancel)?,
                ),
                None => None,
            };
            let x = scatter_images(embeddings, &image_rows(input_ids, image), features.as_ref())?;
            Ok((x, positions))
        })
    }
}
