//! What comes before the decoder layers, alone: for work that takes the layers one at a time.

use tch::{Device, Kind, Tensor};

use super::{
    Config,
    layers::Weights,
    linear::Scratch,
    model::to_the_end,
    positions::{Positions, rope_positions},
    recorded::DropoutSeed,
    tying::Tying,
    vision::VisionTower,
};
use crate::Result;
use crate::blackwell_compat::Reductions;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::EMBEDDING;
use crate::error::PromptError;
use crate::processing::Grid;
use crate::quant::Quantization;
use crate::torch::upload;

/// Vision tower and embedding table.
pub struct Front {
    config: Config,
    vision: VisionTower,
    embed: Tensor,
}

impl Front {
    /// Builds it from `checkpoint`; weights become `kind` on `device`.
    pub fn load(checkpoint: &Checkpoint, config: &Config, kind: Kind, device: Device) -> Result<Self> {
        let weights = Weights {
            checkpoint,
            kind,
            device,
            scratch: Scratch::new(kind, device)?,
            quantization: Quantization::None,
            samples: None,
            adapter: None,
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

    /// What the first decoder layer reads, `[rows, hidden]`, and the positions of its rows.
    pub fn embed(
        &self,
        input_ids: &[i64],
        pixel_values: Option<&Tensor>,
        grids: &[Grid],
    ) -> Result<(Tensor, Positions)> {
        let image = self.config.image_token_id;
        let positions = rope_positions(input_ids, image, &self.vision.extents.of(grids)?)?;
        let places: Vec<i64> = (0..input_ids.len() as i64)
            .filter(|&i| input_ids[i as usize] == image)
            .collect();
        tch::no_grad(|| {
            let ids = upload(input_ids, self.embed.device())?;
            let mut x = self.embed.f_index_select(0, &ids)?;
            if let Some(pixels) = pixel_values {
                let features = self.vision.forward(pixels, grids, false, &mut to_the_end)?;
                let images = features.size()[0] as usize;
                if images != places.len() {
                    return Err(PromptError::ImageCount {
                        places: places.len(),
                        images,
                    }
                    .into());
                }
                let at = upload(&places, x.device())?;
                x = x.f_index_copy(0, &at, &features.f_to_kind(x.kind())?)?;
            }
            Ok((x, positions))
        })
    }
}
