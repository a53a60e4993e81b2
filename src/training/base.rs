//! The base model of a run.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::options::{BaseKind, TrainingOptions};
use crate::checkpoint::Checkpoint;
use crate::fs::{CONFIG_BYTES, MANIFEST, hex, read_bounded, revision};
use crate::processing::ImageProcessor;
use crate::project::{NF4_SUFFIX, Project, model_folder_name};
use crate::quant::Quantization;
use crate::qwen2_5_vl::Config;
use crate::{Error, Result};

/// The base model, whose weights are frozen.
pub(super) struct Base {
    pub(super) dir: PathBuf,
    pub(super) config: Config,
}

impl Base {
    /// Finds the base of `model` in the number format of the settings.
    pub(super) fn find(project: &Project, model: &Path, options: &TrainingOptions) -> Result<Self> {
        let dir = match (Quantization::from_dir(model)?, options.base) {
            (Quantization::None, BaseKind::Nf4) => project.derived_model(model, NF4_SUFFIX),
            _ => model.to_owned(),
        };
        if !dir.is_dir() {
            return Err(Error::not_found(
                dir,
                "no 4-bit base model yet: run quantize_base, or train on the unquantized model with --base bf16",
            ));
        }
        Ok(Self {
            config: Config::from_dir(&dir)?,
            dir,
        })
    }

    /// The base's image processor, with the settings' lower bound of the page size.
    pub(super) fn image_processor(&self, options: &TrainingOptions) -> Result<ImageProcessor> {
        let images = ImageProcessor::from_dir(&self.dir)?.with_pixel_bounds(options.min_pixels, None)?;
        images.with_max_enlargement(options.min_pixels.map(|_| options.max_enlargement))
    }

    /// sha256 that identifies the weights.
    pub(super) fn revision(&self) -> Result<String> {
        // The manifest of a quantized folder lists the hashes of its files.
        let manifest = self.dir.join(MANIFEST);
        if let Ok(text) = read_bounded(&manifest, CONFIG_BYTES << 4) {
            return Ok(hex(&Sha256::digest(text)));
        }
        revision(&Checkpoint::open(&self.dir)?.files())
    }

    /// Name of its folder.
    pub(super) fn name(&self) -> String {
        model_folder_name(&self.dir)
    }

    /// Number of parameters, also where they are quantized.
    pub(super) fn parameters(&self) -> Result<u64> {
        let mut sum = 0;
        for tensor in Checkpoint::open(&self.dir)?.stored() {
            let values: usize = tensor.shape.iter().product();
            let name = tensor.canonical.as_str();
            let quantization_state = [
                ".absmax",
                ".quant_map",
                ".nested_absmax",
                ".nested_quant_map",
                ".qzeros",
                ".scales",
            ];
            if quantization_state.iter().any(|suffix| name.ends_with(suffix))
                || name.contains(".quant_state.")
            {
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
