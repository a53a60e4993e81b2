//! JPEG, without the image crate's decoder, which fills what is missing of a truncated file with grey.

use image::metadata::Orientation;
use image::{DynamicImage, GrayImage, RgbImage};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::{bytestream::ZCursor, colorspace::ColorSpace, options::DecoderOptions};

use super::Stored;
use crate::processing::{DecodeLimits, ImageError};

/// Decodes a baseline or progressive JPEG.
pub(super) fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<Stored, ImageError> {
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
