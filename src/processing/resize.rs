//! The size an image is scaled to, and the grid of patches it becomes.

use super::ImageError;

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

    /// Number of tokens the language model sees: patches after `merge` x `merge` merging.
    pub fn tokens(&self, merge: usize) -> usize {
        self.patches() / (merge * merge)
    }
}

/// `(height, width)` scaled to multiples of `factor` with `min_pixels <= height * width <= max_pixels`.
pub fn smart_resize(
    _height: u32,
    _width: u32,
    _factor: u32,
    _min_pixels: u64,
    _max_pixels: u64,
) -> Result<(u32, u32), ImageError> {
    Err(ImageError::Undecodable)
}
