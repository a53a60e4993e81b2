//! BMP.

use std::io::Cursor;

use image::ImageDecoder;
use image::codecs::bmp::BmpDecoder;

use super::{Alpha, Decoded, RowSink, whole_image};
use crate::error::ImageError;
use crate::processing::DecodeLimits;

const UNSUPPORTED: &str = "a BMP of this kind";

/// Decodes a BMP of any header and depth.
pub(super) fn decode(
    bytes: &[u8],
    limits: &DecodeLimits,
    alpha: Alpha,
    sink: &mut dyn RowSink,
) -> Result<Decoded, ImageError> {
    whole_image::decode(open(bytes)?, UNSUPPORTED, limits, alpha, sink)
}

/// Bytes of the whole image, three or four per pixel.
pub(super) fn memory(bytes: &[u8], limits: &DecodeLimits) -> Result<u64, ImageError> {
    let decoder = open(bytes)?;
    let (width, height) = decoder.dimensions();
    limits.check(width, height)?;
    Ok(decoder.total_bytes())
}

fn open(bytes: &[u8]) -> Result<BmpDecoder<Cursor<&[u8]>>, ImageError> {
    BmpDecoder::new(Cursor::new(bytes)).map_err(|error| whole_image::decode_error(error, UNSUPPORTED))
}
