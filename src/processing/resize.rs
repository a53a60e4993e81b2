//! Target size of an image, its grid of patches, and the scaling.

use std::borrow::Cow;

use tch::{Device, Kind, Tensor};

use super::RgbPage;
use crate::Result;
use crate::error::ImageError;

/// Patches of one image: `t` frames of `h` x `w` patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Temporal patches; 1 for a still image.
    pub t: usize,
    /// Patch rows.
    pub h: usize,
    /// Patch columns.
    pub w: usize,
}

impl Grid {
    /// Number of patches.
    pub fn patches(&self) -> usize {
        self.t * self.h * self.w
    }

    /// Number of tokens in the language model, after merging `merge` x `merge` patches.
    pub fn tokens(&self, merge: usize) -> usize {
        self.patches() / (merge * merge)
    }
}

/// Maximum ratio of an image's sides.
const MAX_ASPECT_RATIO: f64 = 200.0;

/// Returns `(height, width)` scaled to multiples of `factor`, with `min_pixels <= height * width <= max_pixels` if the aspect ratio
/// allows it.
///
/// # Errors
/// [`ImageError::AspectRatio`] above 200; [`ImageError::Undecodable`] for a side or factor of 0.
///
/// Reference: [`smart_resize`](https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/models/qwen2_vl/image_processing_qwen2_vl.py#L62-L88).
pub fn smart_resize(
    height: u32,
    width: u32,
    factor: u32,
    min_pixels: u64,
    max_pixels: u64,
) -> Result<(u32, u32), ImageError> {
    if height == 0 || width == 0 || factor == 0 {
        return Err(ImageError::Undecodable);
    }
    let (h, w, step) = (f64::from(height), f64::from(width), f64::from(factor));
    if h.max(w) / h.min(w) > MAX_ASPECT_RATIO {
        return Err(ImageError::AspectRatio { width, height });
    }
    let (min, max) = (min_pixels as f64, max_pixels as f64);
    // Python rounds halves to even.
    let nearest = |side: f64| (side / step).round_ties_even() * step;
    let (mut out_h, mut out_w) = (nearest(h), nearest(w));
    if out_h * out_w > max {
        let beta = (h * w / max).sqrt();
        let shrink = |side: f64| ((side / beta / step).floor() * step).max(step);
        (out_h, out_w) = (shrink(h), shrink(w));
    } else if out_h * out_w < min {
        let beta = (min / (h * w)).sqrt();
        let grow = |side: f64| (side * beta / step).ceil() * step;
        (out_h, out_w) = (grow(h), grow(w));
    }
    Ok((out_h as u32, out_w as u32))
}

/// Scales the page to `height` x `width`, `[height, width, 3]`: bicubic with antialiasing, by the kernel that torchvision calls
/// for 8-bit images, which rounds and clips between its two passes. A page of that size is returned as it is.
pub(super) fn resize(page: &RgbPage, height: u32, width: u32) -> Result<Cow<'_, [u8]>> {
    if (page.height, page.width) == (height, width) {
        return Ok(Cow::Borrowed(&page.pixels));
    }
    let mut scaled = vec![0; height as usize * width as usize * 3];
    // SAFETY: `page.pixels` is only read; both buffers outlive both tensors, and no other reference to `scaled` is used
    // while `target` exists.
    let (source, target) = unsafe {
        (
            interleaved(page.pixels.as_ptr(), page.pixels.len(), page.height, page.width)?,
            interleaved(scaled.as_mut_ptr(), scaled.len(), height, width)?,
        )
    };
    let size = [i64::from(height), i64::from(width)];
    let _ = source.f_internal_upsample_bicubic2d_aa_out(&target, size, false, None, None)?;
    Ok(Cow::Owned(scaled))
}

/// A `[1, 3, height, width]` view of interleaved bytes, in channels-last format, which libtorch need not convert.
///
/// # Safety
/// `length` bytes at `bytes` must outlive the tensor, and be writable if it is written.
unsafe fn interleaved(bytes: *const u8, length: usize, height: u32, width: u32) -> Result<Tensor> {
    let (height, width) = (i64::from(height), i64::from(width));
    let (shape, strides) = ([1, 3, height, width], [height * width * 3, 1, width * 3, 3]);
    if i64::try_from(length) != Ok(strides[0]) || length == 0 {
        return Err(ImageError::Undecodable.into());
    }
    // SAFETY: shape and strides cover exactly `length` bytes; the caller ensures the rest.
    Ok(unsafe { Tensor::f_from_blob(bytes, &shape, &strides, Kind::Uint8, Device::Cpu)? })
}
