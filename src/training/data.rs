//! The training and validation samples of a run.

use super::{
    base::Base,
    options::TrainingOptions,
    samples::{Encoder, Samples, SkippedSamples},
};
use crate::console::{Level, Notify};
use crate::error::TrainingError;
use crate::processing::{ImageProcessor, TextProcessor};
use crate::project::Project;
use crate::records::paths;
use crate::{Error, Result};

/// Default maximum page size in pixels (width x height), about that of a page of 900x1100.
const DEFAULT_MAX_PIXELS: u64 = 1_254_400;
/// Default maximum sequence length.
const DEFAULT_MAX_TOKENS: u64 = 4096;

/// Both splits, tokenized, and the image processor of their pages.
pub(super) struct Data {
    pub(super) train: Samples,
    /// `None` without validation.
    pub(super) validation: Option<Samples>,
    /// Resizes the pages: the samples' grids and the patches of every batch come from it.
    pub(super) images: ImageProcessor,
    /// Maximum sequence length.
    pub(super) max_tokens: usize,
    /// Maximum page size in pixels.
    pub(super) max_pixels: u64,
}

impl Data {
    /// Reads the splits; `images` are bounded by `max_pixels`.
    pub(super) fn read(
        project: &Project,
        base: &Base,
        options: &TrainingOptions,
        images: ImageProcessor,
        notify: Notify<'_>,
    ) -> Result<Self> {
        let text = TextProcessor::from_dir(&base.dir)?;
        let max_pixels = options.max_pixels.unwrap_or(DEFAULT_MAX_PIXELS);
        let images = images.with_pixel_bounds(None, Some(max_pixels))?;
        let context = base.config.text.max_position_embeddings;
        let max_tokens = (options.max_seq_length.unwrap_or(DEFAULT_MAX_TOKENS) as usize).min(context);
        let encoder = Encoder {
            text: &text,
            images: &images,
            max_tokens,
            max_response_characters: options.max_response_characters.map(|most| most as usize),
        };
        let notify_skipped = |split: &str, skipped: &SkippedSamples| {
            if let Some(reasons) = skipped.reasons(max_tokens) {
                notify(Level::WARN, &format!("{split} samples skipped: {reasons}"));
            }
        };
        let train = encoder.read(project, paths::TRAIN, options.max_samples as usize)?;
        notify_skipped("training", &train.skipped);
        let validation = match options.max_val_samples {
            0 => None,
            most => match encoder.read(project, paths::VAL, most as usize) {
                Ok(samples) => Some(samples),
                Err(Error::Training(error @ TrainingError::NoSamples { .. })) => {
                    notify(Level::WARN, &format!("training without validation: {error}"));
                    None
                }
                Err(error) => return Err(error),
            },
        };
        if let Some(samples) = &validation {
            notify_skipped("validation", &samples.skipped);
        }
        Ok(Self {
            train,
            validation,
            images,
            max_tokens,
            max_pixels,
        })
    }
}
