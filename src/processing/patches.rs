//! RGB → normalised patches in merge order.

use std::mem::MaybeUninit;
use std::path::Path;

use rayon::prelude::*;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use super::{
    Grid, RgbPage,
    processor_config::{ENLARGEMENT, PIXEL_BOUND, PREPROCESSOR_CONFIG, ProcessorConfig},
    resize::resize,
    smart_resize,
};
use crate::error::ImageError;
use crate::torch::upload;
use crate::{Error, Result};

/// One image as input of the vision tower.
pub struct ImagePatches {
    /// `[grid.patches(), channels * temporal_patch * patch * patch]`, f32, CPU.
    pub pixel_values: Tensor,
    /// The patches' grid.
    pub grid: Grid,
}

/// One image as 8-bit values, stored once per patch instead of once per frame: an eighth of the bytes of [`ImagePatches`] for the
/// copy to a GPU.
pub struct LevelPatches {
    /// `[grid.patches(), channels * patch * patch]`, u8, CPU.
    pub levels: Tensor,
    /// The patches' grid.
    pub grid: Grid,
}

/// `preprocessor_config.json`: resize, rescale, normalise, cut into patches.
///
/// Reference: [`Qwen2VLImageProcessor`](https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/models/qwen2_vl/image_processing_qwen2_vl.py#L92-L255).
#[derive(Debug, Clone)]
pub struct ImageProcessor {
    config: ProcessorConfig,
    /// Per channel, in units of 8-bit values.
    mean: [f32; 3],
    std: [f32; 3],
    /// Per channel: the normalised value of each 8-bit value.
    normalised: Box<[[f32; 256]; 3]>,
}

/// Bounds of the sizes that pages are scaled to: multiples of a block of merged patches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PixelBounds {
    /// Side of a block of merged patches, pixels.
    pub factor: u32,
    /// Minimum height x width.
    pub min_pixels: u64,
    /// Maximum height x width.
    pub max_pixels: u64,
    /// Maximum upscaling per side to reach `min_pixels`; `None`: unlimited.
    pub max_enlargement: Option<f64>,
}

impl PixelBounds {
    /// These bounds with a request's own. A minimum lifts [`Self::max_enlargement`]; a maximum below the minimum lowers that, too.
    ///
    /// # Errors
    /// [`Error::Option`] with the range, which ends at this maximum, or for a minimum above the maximum.
    pub fn overridden(self, min_pixels: Option<u64>, max_pixels: Option<u64>) -> Result<Self> {
        let (low, high) = (u64::from(self.factor) * u64::from(self.factor), self.max_pixels);
        for (option, pixels) in [("min_pixels", min_pixels), ("max_pixels", max_pixels)] {
            if pixels.is_some_and(|pixels| !(low..=high).contains(&pixels)) {
                return Err(Error::option(option, format!("must be from {low} to {high}")));
            }
        }
        let max = max_pixels.unwrap_or(high);
        let min = min_pixels.unwrap_or(self.min_pixels.min(max));
        if min > max {
            let reason = format!("{min} is more than max_pixels, {max}");
            return Err(Error::option("min_pixels", reason));
        }
        Ok(Self {
            factor: self.factor,
            min_pixels: min,
            max_pixels: max,
            max_enlargement: self.max_enlargement.filter(|_| min_pixels.is_none()),
        })
    }

    /// Height and width that a page of this size is scaled to.
    ///
    /// # Errors
    /// As [`smart_resize`].
    pub fn scaled(&self, height: u32, width: u32) -> Result<(u32, u32), ImageError> {
        let min = self.max_enlargement.map_or(self.min_pixels, |most| {
            let area = f64::from(height) * f64::from(width);
            self.min_pixels.min((area * most * most) as u64)
        });
        smart_resize(height, width, self.factor, min, self.max_pixels)
    }
}

/// The identity, for 8-bit output.
static UNCHANGED: [[u8; 256]; 3] = [unchanged(); 3];

const fn unchanged() -> [u8; 256] {
    let mut levels = [0; 256];
    let mut level = 0;
    while level < 256 {
        levels[level] = level as u8;
        level += 1;
    }
    levels
}

impl ImageProcessor {
    /// Reads the image part of `processor_config.json`, or else `preprocessor_config.json`, of a model folder.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::InvalidFile`] names the key of an invalid or unsupported value; [`Error::Io`].
    pub fn from_dir(dir: &Path) -> Result<Self> {
        Self::from_dir_if_any(dir)?.ok_or_else(|| {
            Error::not_found(
                dir.join(PREPROCESSOR_CONFIG),
                "not found; the model folder is incomplete: fetch this file from where the model came from",
            )
        })
    }

    /// As [`Self::from_dir`]; `None` if the folder has neither file, as most adapters' folders.
    pub fn from_dir_if_any(dir: &Path) -> Result<Option<Self>> {
        Ok(ProcessorConfig::from_dir(dir)?.map(Self::new))
    }

    fn new(config: ProcessorConfig) -> Self {
        // transformers fuses rescaling and normalising: both constants are scaled in f32, then one subtraction and one division.
        let scale = (1.0 / config.rescale_factor) as f32;
        let scaled = |values: [f64; 3]| values.map(|value| value as f32 * scale);
        let (mean, std) = (scaled(config.image_mean), scaled(config.image_std));
        let normalised = std::array::from_fn(|channel| {
            std::array::from_fn(|level| (level as f32 - mean[channel]) / std[channel])
        });
        Self {
            config,
            mean,
            std,
            normalised: Box::new(normalised),
        }
    }

    /// Content of a `preprocessor_config.json` for this processor.
    pub fn settings(&self) -> Value {
        self.config.to_json()
    }

    /// Sets the bounds of height x width after resizing; `None` keeps the folder's.
    ///
    /// # Errors
    /// [`Error::Option`] for a bound out of range.
    pub fn with_pixel_bounds(mut self, min_pixels: Option<u64>, max_pixels: Option<u64>) -> Result<Self> {
        let checked = |option, pixels| {
            if (1..PIXEL_BOUND).contains(&pixels) {
                return Ok(pixels);
            }
            let reason = format!("must be from 1 to {}", PIXEL_BOUND - 1);
            Err(Error::option(option, reason))
        };
        if let Some(pixels) = min_pixels {
            self.config.min_pixels = checked("min_pixels", pixels)?;
        }
        if let Some(pixels) = max_pixels {
            self.config.max_pixels = checked("max_pixels", pixels)?;
        }
        if self.config.min_pixels > self.config.max_pixels {
            let reason = format!(
                "{} is more than max_pixels, {}",
                self.config.min_pixels, self.config.max_pixels
            );
            let option = "min_pixels";
            return Err(Error::option(option, reason));
        }
        Ok(self)
    }

    /// Sets the maximum upscaling per side to reach `min_pixels`; `None`: unlimited.
    ///
    /// # Errors
    /// [`Error::Option`] for a value out of range.
    pub fn with_max_enlargement(mut self, most: Option<f64>) -> Result<Self> {
        if most.is_some_and(|most| !ENLARGEMENT.contains(&most)) {
            let (low, high) = ENLARGEMENT.into_inner();
            let reason = format!("must be a number from {low} to {high}");
            let option = "max_enlargement";
            return Err(Error::option(option, reason));
        }
        self.config.max_enlargement = most;
        Ok(self)
    }

    /// This processor with other bounds; their factor must be its own.
    pub fn with_bounds(mut self, bounds: PixelBounds) -> Self {
        debug_assert_eq!(bounds.factor, self.bounds().factor);
        self.config.min_pixels = bounds.min_pixels;
        self.config.max_pixels = bounds.max_pixels;
        self.config.max_enlargement = bounds.max_enlargement;
        self
    }

    /// Minimum height x width; smaller pages are enlarged.
    pub fn min_pixels(&self) -> u64 {
        self.config.min_pixels
    }

    /// Side of a square patch, pixels.
    pub fn patch_size(&self) -> usize {
        self.config.patch_size as usize
    }

    /// Frames per patch; a still image is repeated.
    pub fn temporal_patch_size(&self) -> usize {
        self.config.temporal_patch_size as usize
    }

    /// Patches per side of a token.
    pub fn merge_size(&self) -> usize {
        self.config.merge_size as usize
    }

    /// Grid of an image of this size.
    pub fn grid(&self, height: u32, width: u32) -> Result<Grid> {
        let (height, width) = self.bounds().scaled(height, width)?;
        let patch = self.config.patch_size;
        let (h, w) = ((height / patch) as usize, (width / patch) as usize);
        Ok(Grid { t: 1, h, w })
    }

    /// Bounds of the sizes that pages are scaled to.
    pub fn bounds(&self) -> PixelBounds {
        PixelBounds {
            factor: self.config.patch_size * self.config.merge_size,
            min_pixels: self.config.min_pixels,
            max_pixels: self.config.max_pixels,
            max_enlargement: self.config.max_enlargement,
        }
    }

    /// Resizes and normalises one page and splits it into patches.
    ///
    /// # Errors
    /// [`ImageError`] for a page whose size contradicts its number of bytes, or with sides of too different lengths.
    pub fn process(&self, page: &RgbPage) -> Result<ImagePatches> {
        let (levels, frames) = (&*self.normalised, self.temporal_patch_size());
        let (pixel_values, grid) = self.cut(page, levels, frames, Kind::Float)?;
        Ok(ImagePatches { pixel_values, grid })
    }

    /// As [`Self::process`] without normalising, which [`Self::normalise`] does on any device.
    pub fn process_levels(&self, page: &RgbPage) -> Result<LevelPatches> {
        let (levels, grid) = self.cut(page, &UNCHANGED, 1, Kind::Uint8)?;
        Ok(LevelPatches { levels, grid })
    }

    /// Normalises [`LevelPatches::levels`] on their device; bit-identical to [`ImagePatches::pixel_values`].
    pub fn normalise(&self, levels: &Tensor) -> Result<Tensor> {
        let (patches, frames) = (levels.size()[0], self.temporal_patch_size() as i64);
        let by_channel = |values: &[f32; 3]| -> Result<Tensor> {
            Ok(upload(values, levels.device())?.f_view([1, 3, 1, 1])?)
        };
        let values = levels.f_view([patches, 3, 1, -1])?.f_to_kind(Kind::Float)?;
        let values = values
            .f_sub(&by_channel(&self.mean)?)?
            .f_div(&by_channel(&self.std)?)?;
        Ok(values
            .f_expand([-1, -1, frames, -1], false)?
            .f_reshape([patches, -1])?)
    }

    /// Scales a page to its grid and writes it patch by patch: rows of blocks of `merge` x `merge` patches, each patch as channel,
    /// frame, row, column. `levels`: per channel, the output of dtype `kind` for each 8-bit value.
    fn cut<T: Copy + Send + Sync>(
        &self,
        page: &RgbPage,
        levels: &[[T; 256]; 3],
        frames: usize,
        kind: Kind,
    ) -> Result<(Tensor, Grid)> {
        let bytes = (u64::from(page.width) * u64::from(page.height)).checked_mul(3);
        if bytes != Some(page.pixels.len() as u64) {
            return Err(ImageError::Undecodable.into());
        }
        let (height, width) = page.original_size();
        let grid = self.grid(height, width)?;
        let (height, width) = self.bounds().scaled(height, width)?;
        let pixels = resize(page, height, width)?;
        let (patch, merge) = (self.patch_size(), self.merge_size());
        let length = 3 * frames * patch * patch;
        let tensor = Tensor::f_empty([grid.patches() as i64, length as i64], (kind, Device::Cpu))?;
        assert_eq!(kind.elt_size_in_bytes(), size_of::<T>());
        // SAFETY: a new contiguous tensor of that many elements of T's size, with no other reference.
        let values: &mut [MaybeUninit<T>] =
            unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), grid.patches() * length) };
        let stride = grid.w * patch * 3;
        // A chunk of patches and its chunk of pixels: `merge` rows of patches.
        let patches = values.par_chunks_exact_mut(grid.w * merge * length);
        let pixels = pixels.par_chunks_exact(merge * patch * stride);
        patches.zip_eq(pixels).for_each(|(patches, pixels)| {
            for (index, values) in patches.chunks_exact_mut(length).enumerate() {
                let (block, row, column) = (index / (merge * merge), index / merge % merge, index % merge);
                let corner = row * patch * stride + (block * merge + column) * patch * 3;
                write_patch(&pixels[corner..], stride, patch, levels, values);
            }
        });
        Ok((tensor, grid))
    }
}

/// Writes the values of the patch whose top left pixel is the first of `pixels`; all frames are equal.
fn write_patch<T: Copy>(
    pixels: &[u8],
    stride: usize,
    patch: usize,
    levels: &[[T; 256]; 3],
    values: &mut [MaybeUninit<T>],
) {
    let channels = values.chunks_exact_mut(values.len() / 3);
    for (channel, (frames, levels)) in channels.zip(levels).enumerate() {
        let (frame, repeats) = frames.split_at_mut(patch * patch);
        for (row, values) in frame.chunks_exact_mut(patch).enumerate() {
            let (colours, _) = pixels[row * stride..][..patch * 3].as_chunks::<3>();
            for (value, colour) in values.iter_mut().zip(colours) {
                value.write(levels[usize::from(colour[channel])]);
            }
        }
        for repeat in repeats.chunks_exact_mut(patch * patch) {
            repeat.copy_from_slice(frame);
        }
    }
}
