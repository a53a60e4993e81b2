//! Image bytes → 8-bit RGB.

use super::ImageError;

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

/// Decodes one image to 8-bit RGB (EXIF orientation applied, alpha composited on white).
pub fn decode(_bytes: &[u8], _limits: &DecodeLimits) -> Result<RgbPage, ImageError> {
    Err(ImageError::UnsupportedFormat)
}
