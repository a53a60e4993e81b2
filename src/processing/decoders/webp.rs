//! WebP, with what its chunks claim checked first.

use std::io::Cursor;

use image::codecs::webp::WebPDecoder;

use super::{Stored, finish, refusal};
use crate::processing::{DecodeLimits, ImageError};

/// Decodes a lossy or lossless WebP, or the first frame of an animated one.
pub(super) fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<Stored, ImageError> {
    let whole = check(bytes, limits)?;
    finish(WebPDecoder::new(Cursor::new(whole)).map_err(refusal)?, limits)
}

/// The WebP file without what follows it, once every size and length in it has been checked: the decoder allocates
/// what a chunk's header claims, and decodes a frame before comparing its size with the canvas.
fn check<'a>(bytes: &'a [u8], limits: &DecodeLimits) -> Result<&'a [u8], ImageError> {
    let [_, _, _, _, length @ ..] = *bytes.first_chunk::<8>().ok_or(ImageError::Undecodable)?;
    let end = (u32::from_le_bytes(length) as usize).saturating_add(8);
    let whole = bytes.get(..end).ok_or(ImageError::Undecodable)?;
    for chunk in chunks(whole.get(12..).ok_or(ImageError::Undecodable)?) {
        let (name, body) = chunk?;
        check_chunk(name, body, limits)?;
        if name == b"ANMF" {
            for chunk in chunks(body.get(16..).ok_or(ImageError::Undecodable)?) {
                let (name, body) = chunk?;
                check_chunk(name, body, limits)?;
            }
        }
    }
    Ok(whole)
}

/// A chunk's name and body.
type Chunk<'a> = (&'a [u8], &'a [u8]);

/// The chunks one after another; an error ends them where one is not whole.
fn chunks(mut bytes: &[u8]) -> impl Iterator<Item = Result<Chunk<'_>, ImageError>> {
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
fn check_chunk(name: &[u8], body: &[u8], limits: &DecodeLimits) -> Result<(), ImageError> {
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
