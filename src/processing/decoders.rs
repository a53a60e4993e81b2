//! The six formats: recognising them, and decoding each with its sizes checked first.

use std::io::Cursor;

use image::codecs::{
    bmp::BmpDecoder, gif::GifDecoder, png::PngDecoder, tiff::TiffDecoder, webp::WebPDecoder,
};
use image::metadata::Orientation;
use image::{DynamicImage, GrayImage, ImageDecoder, Limits, RgbImage};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::{bytestream::ZCursor, colorspace::ColorSpace, options::DecoderOptions};

use super::{DecodeLimits, ImageError};

/// Memory a decoder may take beside the picture: palettes, tables, metadata.
const EXTRA_BYTES: u64 = 16 << 20;

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

/// Decodes the first picture of a file; also gives how it is to be turned.
pub(super) fn decode(
    format: Format,
    bytes: &[u8],
    limits: &DecodeLimits,
) -> Result<(DynamicImage, Orientation), ImageError> {
    let reader = Cursor::new(bytes);
    match format {
        Format::Png => {
            let mut extra = Limits::no_limits();
            extra.max_alloc = Some(EXTRA_BYTES);
            finish(PngDecoder::with_limits(reader, extra).map_err(refusal)?, limits)
        }
        Format::Jpeg => decode_jpeg(bytes, limits),
        Format::WebP => {
            let whole = check_webp(bytes, limits)?;
            finish(WebPDecoder::new(Cursor::new(whole)).map_err(refusal)?, limits)
        }
        Format::Tiff => finish(TiffDecoder::new(reader).map_err(refusal)?, limits),
        Format::Bmp => finish(BmpDecoder::new(reader).map_err(refusal)?, limits),
        Format::Gif => finish(GifDecoder::new(reader).map_err(refusal)?, limits),
    }
}

/// Checks the size that the header claims, then decodes.
fn finish(
    mut decoder: impl ImageDecoder,
    limits: &DecodeLimits,
) -> Result<(DynamicImage, Orientation), ImageError> {
    let (width, height) = decoder.dimensions();
    limits.check(width, height)?;
    let mut memory = Limits::no_limits();
    memory.max_alloc = Some(2 * decoder.total_bytes() + EXTRA_BYTES);
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

/// JPEG without the image crate, which fills what is missing of a truncated file with grey.
fn decode_jpeg(bytes: &[u8], limits: &DecodeLimits) -> Result<(DynamicImage, Orientation), ImageError> {
    let any_size = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX));
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), any_size);
    decoder.decode_headers().map_err(|_| ImageError::Undecodable)?;
    let (width, height) = decoder.dimensions().ok_or(ImageError::Undecodable)?;
    let (width, height) = (width as u32, height as u32);
    limits.check(width, height)?;
    let grey = decoder.input_colorspace() == Some(ColorSpace::Luma);
    let colours = if grey { ColorSpace::Luma } else { ColorSpace::RGB };
    // A second header among the scans cannot claim more than the first.
    decoder.set_options(
        any_size
            .set_max_width(width as usize)
            .set_max_height(height as usize)
            .jpeg_set_out_colorspace(colours),
    );
    let orientation = decoder.exif().and_then(|exif| Orientation::from_exif_chunk(exif));
    let pixels = decoder.decode().map_err(|_| ImageError::Undecodable)?;
    if !ends_whole(bytes) {
        return Err(ImageError::Undecodable);
    }
    let picture = if grey {
        GrayImage::from_raw(width, height, pixels).map(DynamicImage::ImageLuma8)
    } else {
        RgbImage::from_raw(width, height, pixels).map(DynamicImage::ImageRgb8)
    };
    let picture = picture.ok_or(ImageError::Undecodable)?;
    Ok((picture, orientation.unwrap_or(Orientation::NoTransforms)))
}

/// Whether a JPEG's scans are followed by the end marker: the decoder does not miss it when only the last rows are lost.
fn ends_whole(jpeg: &[u8]) -> bool {
    const START_OF_SCAN: u8 = 0xda;
    let mut rest = jpeg.get(2..).unwrap_or_default();
    loop {
        rest = match rest {
            [0xff, START_OF_SCAN, scans @ ..] => {
                return scans.windows(2).rev().any(|pair| pair == [0xff, 0xd9]);
            }
            // Markers without a body.
            [0xff, 0x01 | 0xd0..=0xd8, rest @ ..] => rest,
            [0xff, 0x02..=0xfe, high, low, ..] => {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                rest.get(2 + length..).unwrap_or_default()
            }
            // Fill bytes.
            [_, rest @ ..] => rest,
            [] => return false,
        };
    }
}

/// The WebP file without what follows it, once every size and length in it has been checked: the decoder allocates
/// what a chunk's header claims, and decodes a frame before comparing its size with the canvas.
fn check_webp<'a>(bytes: &'a [u8], limits: &DecodeLimits) -> Result<&'a [u8], ImageError> {
    let [_, _, _, _, length @ ..] = *bytes.first_chunk::<8>().ok_or(ImageError::Undecodable)?;
    let end = (u32::from_le_bytes(length) as usize).saturating_add(8);
    let whole = bytes.get(..end).ok_or(ImageError::Undecodable)?;
    for chunk in webp_chunks(whole.get(12..).ok_or(ImageError::Undecodable)?) {
        let (name, body) = chunk?;
        check_webp_chunk(name, body, limits)?;
        if name == b"ANMF" {
            for chunk in webp_chunks(body.get(16..).ok_or(ImageError::Undecodable)?) {
                let (name, body) = chunk?;
                check_webp_chunk(name, body, limits)?;
            }
        }
    }
    Ok(whole)
}

/// A chunk's name and body.
type Chunk<'a> = (&'a [u8], &'a [u8]);

/// The chunks one after another; an error ends them where one is not whole.
fn webp_chunks(mut bytes: &[u8]) -> impl Iterator<Item = Result<Chunk<'_>, ImageError>> {
    std::iter::from_fn(move || {
        let (header, rest) = bytes.split_first_chunk::<8>()?;
        let (name, length) = header.split_at(4);
        let length = length
            .iter()
            .rev()
            .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
        // Bodies are padded to even lengths; the last one may lack the padding.
        bytes = rest.get(length + length % 2..).unwrap_or_default();
        Some(
            rest.get(..length)
                .map(|body| (name, body))
                .ok_or(ImageError::Undecodable),
        )
    })
}

/// Checks the size that a chunk claims, if it is of a kind that does.
fn check_webp_chunk(name: &[u8], body: &[u8], limits: &DecodeLimits) -> Result<(), ImageError> {
    let number = |range: std::ops::Range<usize>| {
        let bytes = body.get(range).ok_or(ImageError::Undecodable)?;
        Ok(bytes
            .iter()
            .rev()
            .fold(0, |sum, byte| sum << 8 | u32::from(*byte)))
    };
    match name {
        b"VP8 " => limits.check(number(6..8)? & 0x3fff, number(8..10)? & 0x3fff),
        b"VP8L" => limits.check(1 + (number(1..5)? & 0x3fff), 1 + (number(1..5)? >> 14 & 0x3fff)),
        b"VP8X" => limits.check(1 + number(4..7)?, 1 + number(7..10)?),
        b"ANMF" => limits.check(1 + number(6..9)?, 1 + number(9..12)?),
        _ => Ok(()),
    }
}
