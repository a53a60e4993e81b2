//! RGB → normalised patches in merge order.

use std::mem::MaybeUninit;
use std::path::Path;

use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

use super::processor_config::{PIXEL_BOUND, ProcessorConfig};
use super::resize::resize;
use super::{Grid, ImageError, PromptError, RgbPage, smart_resize};
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
pub struct ImageProcessor {
    config: ProcessorConfig,
    /// By channel, what each 8-bit level becomes.
    normalised: Box<[[f32; 256]; 3]>,
}

impl ImageProcessor {
    /// Reads the image part of `processor_config.json`, or else `preprocessor_config.json`, of a model folder. A value
    /// that asks for something this processor does not do is an error that names file and key.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let config = ProcessorConfig::from_dir(dir)?;
        // As transformers fuses rescaling into normalising: both constants scaled in f32, one subtraction, one division.
        let scale = (1.0 / config.rescale_factor) as f32;
        let mut normalised = Box::new([[0.0; 256]; 3]);
        for (channel, levels) in normalised.iter_mut().enumerate() {
            let (mean, std) = (
                config.image_mean[channel] as f32 * scale,
                config.image_std[channel] as f32 * scale,
            );
            for (level, value) in levels.iter_mut().enumerate() {
                *value = (level as f32 - mean) / std;
            }
        }
        Ok(Self { config, normalised })
    }

    /// Same processor with other bounds of height x width after resizing (`None` keeps the folder's).
    pub fn with_pixel_bounds(mut self, min_pixels: Option<u64>, max_pixels: Option<u64>) -> Result<Self> {
        let checked = |option, pixels| {
            if (1..PIXEL_BOUND).contains(&pixels) {
                return Ok(pixels);
            }
            let reason = format!("must be from 1 to {}", PIXEL_BOUND - 1);
            Err(PromptError::Option { option, reason })
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
            return Err(PromptError::Option { option, reason }.into());
        }
        Ok(self)
    }

    /// Side of a square patch, pixels.
    pub fn patch_size(&self) -> usize {
        self.config.patch_size as usize
    }

    /// Frames a patch spans; a still image is repeated.
    pub fn temporal_patch_size(&self) -> usize {
        self.config.temporal_patch_size as usize
    }

    /// Patches a side that are merged to one token.
    pub fn merge_size(&self) -> usize {
        self.config.merge_size as usize
    }

    /// The grid that an image of this size becomes.
    pub fn grid(&self, height: u32, width: u32) -> Result<Grid> {
        let (height, width) = self.resized(height, width)?;
        let patch = self.config.patch_size;
        let (h, w) = ((height / patch) as usize, (width / patch) as usize);
        Ok(Grid { t: 1, h, w })
    }

    fn resized(&self, height: u32, width: u32) -> Result<(u32, u32)> {
        let config = &self.config;
        let factor = config.patch_size * config.merge_size;
        Ok(smart_resize(
            height,
            width,
            factor,
            config.min_pixels,
            config.max_pixels,
        )?)
    }

    /// Resizes, normalises and cuts one page, whose sides must fit its number of bytes.
    pub fn process(&self, page: &RgbPage) -> Result<ImagePatches> {
        let bytes = (u64::from(page.width) * u64::from(page.height)).checked_mul(3);
        if bytes != Some(page.pixels.len() as u64) {
            return Err(ImageError::Undecodable.into());
        }
        let (height, width) = self.resized(page.height, page.width)?;
        let grid = self.grid(page.height, page.width)?;
        let pixels = resize(page, height, width)?;
        let pixel_values = self.cut(&pixels, grid)?;
        Ok(ImagePatches { pixel_values, grid })
    }

    /// Normalises pixels that fill the grid and writes them patch by patch: rows of blocks of `merge` x `merge` patches,
    /// each patch as channel, frame, row, column.
    fn cut(&self, pixels: &[u8], grid: Grid) -> Result<Tensor> {
        let (patch, merge, frames) = (self.patch_size(), self.merge_size(), self.temporal_patch_size());
        let length = 3 * frames * patch * patch;
        let shape = [grid.patches() as i64, length as i64];
        let tensor = Tensor::f_empty(shape, (Kind::Float, Device::Cpu))?;
        // SAFETY: a fresh contiguous f32 tensor of that many elements, which nothing else refers to.
        let values: &mut [MaybeUninit<f32>] =
            unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), grid.patches() * length) };
        let stride = grid.w * patch * 3;
        // One chunk of patches and one of pixels: `merge` rows of patches.
        let patches = values.par_chunks_exact_mut(grid.w * merge * length);
        let pixels = pixels.par_chunks_exact(merge * patch * stride);
        patches.zip_eq(pixels).for_each(|(patches, pixels)| {
            for (index, values) in patches.chunks_exact_mut(length).enumerate() {
                let (block, row, column) = (index / (merge * merge), index / merge % merge, index % merge);
                let corner = row * patch * stride + (block * merge + column) * patch * 3;
                self.write_patch(&pixels[corner..], stride, values);
            }
        });
        Ok(tensor)
    }

    /// Writes all values of one patch, whose top left pixel is the first of `pixels`.
    fn write_patch(&self, pixels: &[u8], stride: usize, values: &mut [MaybeUninit<f32>]) {
        let patch = self.patch_size();
        let frame_length = patch * patch;
        let channels = values.chunks_exact_mut(self.temporal_patch_size() * frame_length);
        for (channel, (frames, levels)) in channels.zip(self.normalised.iter()).enumerate() {
            let (frame, repeats) = frames.split_at_mut(frame_length);
            for (row, values) in frame.chunks_exact_mut(patch).enumerate() {
                let (colours, _) = pixels[row * stride..][..patch * 3].as_chunks::<3>();
                for (value, colour) in values.iter_mut().zip(colours) {
                    value.write(levels[usize::from(colour[channel])]);
                }
            }
            for repeat in repeats.chunks_exact_mut(frame_length) {
                repeat.copy_from_slice(frame);
            }
        }
    }
}
