//! Image bytes → 8-bit RGB.
//!
//! Colour rules: palettes and 1, 2 and 4-bit samples are expanded, grey is replicated, 16-bit samples become
//! `(v + 128) / 257`, alpha (and what a GIF's first frame leaves uncovered) is composited on white, the EXIF orientation
//! is applied, embedded colour profiles are not.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

use ::image::DynamicImage;
use ::image::metadata::Orientation;

use super::ImageError;
use super::decoders::{self, Format};

/// One page as 8-bit RGB.
#[derive(Clone, PartialEq, Eq)]
pub struct RgbPage {
    /// Pixels a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// `height * width * 3` bytes, row by row, R G B.
    pub pixels: Vec<u8>,
}

impl std::fmt::Debug for RgbPage {
    /// The size alone: pixels are the document.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RgbPage({}x{})", self.width, self.height)
    }
}

/// What is checked before a decoder is let at the bytes.
#[derive(Debug, Clone, Copy)]
pub struct DecodeLimits {
    /// Most pixels (width x height) of the image as stored.
    pub max_pixels: u64,
}

impl Default for DecodeLimits {
    fn default() -> Self {
        Self {
            max_pixels: 40_000_000,
        }
    }
}

impl DecodeLimits {
    /// Refuses a size that a header claims.
    pub(super) fn check(&self, width: u32, height: u32) -> Result<(), ImageError> {
        if width == 0 || height == 0 {
            return Err(ImageError::Undecodable);
        }
        if u64::from(width) * u64::from(height) > self.max_pixels {
            return Err(ImageError::TooManyPixels {
                width,
                height,
                limit: self.max_pixels,
            });
        }
        Ok(())
    }
}

/// Decodes one PNG, JPEG, WebP, TIFF, BMP or GIF (first frame or page) to 8-bit RGB, by its first bytes and whatever
/// its name; a truncated file is an error. Memory stays proportional to the pixels the header claims, once those have
/// passed `limits`.
pub fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<RgbPage, ImageError> {
    if bytes.is_empty() {
        return Err(ImageError::Empty);
    }
    let format = Format::of(bytes).ok_or(ImageError::UnsupportedFormat)?;
    contain_panics(|| {
        let (stored, orientation) = decoders::decode(format, bytes, limits)?;
        upright(stored, orientation)
    })
}

/// Runs a decoder; its panics become [`ImageError::Undecodable`], without a message, which could echo the input.
///
/// Unwind safety: `work` reads bytes and makes new values, so nothing half-written outlives a panic.
fn contain_panics<T>(work: impl FnOnce() -> Result<T, ImageError>) -> Result<T, ImageError> {
    thread_local!(static DECODING: Cell<bool> = const { Cell::new(false) });
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            if !DECODING.try_with(Cell::get).unwrap_or(false) {
                previous(panic);
            }
        }));
    });
    DECODING.set(true);
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    DECODING.set(false);
    result.unwrap_or(Err(ImageError::Undecodable))
}

/// The stored picture as RGB, turned as its EXIF orientation asks.
fn upright(stored: DynamicImage, orientation: Orientation) -> Result<RgbPage, ImageError> {
    let (width, height) = (stored.width(), stored.height());
    let rgb = ::image::RgbImage::from_raw(width, height, to_rgb(stored)).ok_or(ImageError::Undecodable)?;
    let mut picture = DynamicImage::ImageRgb8(rgb);
    picture.apply_orientation(orientation);
    Ok(RgbPage {
        width: picture.width(),
        height: picture.height(),
        pixels: picture.into_rgb8().into_raw(),
    })
}

fn to_rgb(stored: DynamicImage) -> Vec<u8> {
    let wide = |v: u16| ((u32::from(v) + 128) / 257) as u8;
    match stored {
        DynamicImage::ImageRgb8(i) => i.into_raw(),
        DynamicImage::ImageLuma8(i) => grey_to_rgb(&i, |v| v),
        DynamicImage::ImageLumaA8(i) => grey_alpha_to_rgb(&i, |v| v),
        DynamicImage::ImageRgba8(i) => rgba_to_rgb(&i, |v| v),
        DynamicImage::ImageLuma16(i) => grey_to_rgb(&i, wide),
        DynamicImage::ImageLumaA16(i) => grey_alpha_to_rgb(&i, wide),
        DynamicImage::ImageRgb16(i) => i.iter().map(|v| wide(*v)).collect(),
        DynamicImage::ImageRgba16(i) => rgba_to_rgb(&i, wide),
        floats if floats.color().has_alpha() => rgba_to_rgb(&floats.into_rgba8(), |v| v),
        floats => floats.into_rgb8().into_raw(),
    }
}

fn grey_to_rgb<T: Copy>(samples: &[T], to_u8: impl Fn(T) -> u8) -> Vec<u8> {
    let mut rgb = vec![0; samples.len() * 3];
    for (pixel, sample) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(samples) {
        *pixel = [to_u8(*sample); 3];
    }
    rgb
}

fn grey_alpha_to_rgb<T: Copy>(samples: &[T], to_u8: impl Fn(T) -> u8) -> Vec<u8> {
    let mut rgb = vec![0; samples.len() / 2 * 3];
    for (pixel, [grey, alpha]) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(samples.as_chunks().0) {
        *pixel = [on_white(to_u8(*grey), to_u8(*alpha)); 3];
    }
    rgb
}

fn rgba_to_rgb<T: Copy>(samples: &[T], to_u8: impl Fn(T) -> u8) -> Vec<u8> {
    let mut rgb = vec![0; samples.len() / 4 * 3];
    for (pixel, [r, g, b, alpha]) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(samples.as_chunks().0) {
        let alpha = to_u8(*alpha);
        *pixel = [r, g, b].map(|colour| on_white(to_u8(*colour), alpha));
    }
    rgb
}

/// One sample composited on white, rounded.
fn on_white(colour: u8, alpha: u8) -> u8 {
    let (colour, alpha) = (u32::from(colour), u32::from(alpha));
    ((colour * alpha + 255 * (255 - alpha) + 127) / 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_a_decoder_is_an_error_without_a_message() {
        let caught: Result<(), _> = contain_panics(|| panic!("a canary"));
        assert_eq!(caught, Err(ImageError::Undecodable));
    }
}
