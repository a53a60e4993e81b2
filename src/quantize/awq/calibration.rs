//! Calibration pages → inputs of the first decoder layer.

use sha2::{Digest, Sha256};
use tch::{Device, Kind};

use super::{decoder::Rotary, layer::Prompt};
use crate::checkpoint::ModelFolder;
use crate::data::CalibrationPage;
use crate::fs::hex;
use crate::quantize::{Source, Watch, accuracy::PageEncoder};
use crate::qwen2_5_vl::{Config, InputEmbedder};
use crate::{Error, Result};

/// Embeds the pages and their answers: vision tower and token embeddings.
pub fn prompts(
    source: &Source,
    config: &Config,
    pages: &[CalibrationPage],
    device: Device,
    watch: Watch<'_>,
) -> Result<Vec<Prompt>> {
    let encoder = PageEncoder::new(&ModelFolder::new(source.dir()), config)?;
    let embedder = InputEmbedder::load(source.checkpoint(), config, Kind::Float, device)?;
    pages
        .iter()
        .map(|page| {
            let encoded = encoder.encode(page, &page.prompt)?;
            let pixels = encoded.pixels.f_to_device(device)?;
            let (states, positions) = embedder.embed(&encoded.ids, Some(&pixels), &[encoded.grid])?;
            if states.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
                return Err(Error::NonFinite(
                    "the vision tower returns non-finite values (NaN/Inf) for a calibration page: the model is damaged"
                        .to_owned(),
                ));
            }
            watch.done(1)?;
            Ok(Prompt {
                states,
                rotary: Rotary::new(&positions, &config.text, device)?,
            })
        })
        .collect()
}

/// sha256 over the calibration pages.
pub fn pages_digest(pages: &[CalibrationPage]) -> String {
    let mut hasher = Sha256::new();
    for page in pages {
        for part in [
            &page.image.pixels[..],
            page.prompt.as_bytes(),
            page.text.as_bytes(),
        ] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.update(page.image.width.to_le_bytes());
    }
    hex(&hasher.finalize())
}
