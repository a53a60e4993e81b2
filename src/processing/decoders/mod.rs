//! The six formats: recognising them, and decoding each with its sizes checked first.

mod jpeg;
mod tiff;
mod webp;

use std::io::Cursor;

use image::codecs::{bmp::BmpDecoder, gif::GifDecoder, png::PngDecoder};
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, Limits};

use super::{DecodeLimits, ImageError};

/// Memory a decoder may take beside the picture: palettes, tables, metadata.
const EXTRA_BYTES: u64 = 16 << 20;

/// A picture as it is stored, and how it is to be turned.
pub(super) type Stored = (DynamicImage, Orientation);

/// The formats that are decoded; no other decoder is ever reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Png,
    Jpeg,
    WebP,
    Tiff,
    Bmp,
    Gif,
}

impl Format {
    /// The format that the first bytes tell.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some(Self::Png),
            [0xff, 0xd8, 0xff, ..] => Some(Self::Jpeg),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(Self::WebP),
            [b'I', b'I', 42, 0, ..] | [b'M', b'M', 0, 42, ..] => Some(Self::Tiff),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(Self::Gif),
            // Two letters are too few to know a file by: the size of the second header is one of seven.
            [b'B', b'M', ..] => {
                let header = u32::from_le_bytes(*bytes.get(14..)?.first_chunk()?);
                matches!(header, 12 | 40 | 52 | 56 | 64 | 108 | 124).then_some(Self::Bmp)
            }
            _ => None,
        }
    }
}

/// Decodes the first picture of a file.
pub(super) fn decode(format: Format, bytes: &[u8], limits: &DecodeLimits) -> Result<Stored, ImageError> {
    let reader = Cursor::new(bytes);
    match format {
        Format::Png => {
            let mut extra = Limits::no_limits();
            extra.max_alloc = Some(EXTRA_BYTES);
            finish(PngDecoder::with_limits(reader, extra).map_err(refusal)?, limits)
        }
        Format::Jpeg => jpeg::decode(bytes, limits),
        Format::WebP => webp::decode(bytes, limits),
        Format::Tiff => tiff::decode(bytes, limits),
        Format::Bmp => finish(BmpDecoder::new(reader).map_err(refusal)?, limits),
        Format::Gif => finish(GifDecoder::new(reader).map_err(refusal)?, limits),
    }
}

/// Checks the size that the header claims, then decodes.
fn finish(mut decoder: impl ImageDecoder, limits: &DecodeLimits) -> Result<Stored, ImageError> {
    let (width, height) = decoder.dimensions();
    limits.check(width, height)?;
    let mut memory = Limits::no_limits();
    memory.max_alloc = Some(
        decoder
            .total_bytes()
            .saturating_mul(2)
            .saturating_add(EXTRA_BYTES),
    );
    decoder.set_limits(memory).map_err(refusal)?;
    // Broken metadata is no reason to refuse a picture.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let picture = DynamicImage::from_decoder(decoder).map_err(refusal)?;
    Ok((picture, orientation))
}

/// Drops the decoder's own words.
fn refusal(error: image::ImageError) -> ImageError {
    match error {
        image::ImageError::Unsupported(_) => ImageError::UnsupportedVariant,
        _ => ImageError::Undecodable,
    }
}
