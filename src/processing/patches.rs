//! RGB → normalised patches in merge order.

use std::path::Path;

use tch::Tensor;

use super::{Grid, RgbPage};
use crate::Result;

/// One image as the vision tower wants it.
pub struct ImagePatches {
    /// `[grid.patches(), channels * temporal_patch * patch * patch]`, f32, CPU.
    pub pixel_values: Tensor,
    /// The patches' grid.
    pub grid: Grid,
}

/// `preprocessor_config.json`: resize, rescale, normalise, cut into patches.
#[derive(Debug, Clone)]
pub struct ImageProcessor {}

impl ImageProcessor {
    /// Reads `preprocessor_config.json` of a model folder.
    pub fn from_dir(_dir: &Path) -> Result<Self> {
        Ok(Self {})
    }

    /// Same processor with other pixel bounds (`None` keeps the folder's).
    pub fn with_pixel_bounds(self, _min_pixels: Option<u64>, _max_pixels: Option<u64>) -> Result<Self> {
        Ok(self)
    }

    /// Resizes, normalises and cuts one page.
    pub fn process(&self, _page: &RgbPage) -> Result<ImagePatches> {
        Err(super::ImageError::Undecodable.into())
    }
}
