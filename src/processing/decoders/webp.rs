//! WebP; the sizes in its chunks are checked first.
//!
//! Both codecs refer to all pixels decoded so far, so the image is in memory: a lossy one as YUV 4:2:0, 1.5 bytes per pixel, any
//! other with four bytes per pixel.

use std::io::{self, BufRead, Cursor, Read, Seek, SeekFrom};

use image::codecs::webp::WebPDecoder;
use image_webp::vp8::{Frame, Vp8Decoder};

use super::{Alpha, Decoded, RowSink, WHOLE, whole_image};
use crate::error::ImageError;
use crate::processing::DecodeLimits;

const UNSUPPORTED: &str = "a WebP of this kind";

/// Decodes a lossy or lossless WebP, or the first frame of an animated one.
pub(super) fn decode(
    bytes: &[u8],
    limits: &DecodeLimits,
    alpha: Alpha,
    sink: &mut dyn RowSink,
) -> Result<Decoded, ImageError> {
    let (whole, _) = check(bytes, limits)?;
    match Kind::of(whole)? {
        Kind::Lossy(frame) => decode_lossy(frame, limits, sink),
        Kind::Opaque(flag, bit) => {
            // The decoder writes four bytes per pixel. With the alpha bit set it does not copy them to three.
            whole_image::decode(
                open(WithBit::new(whole, flag, bit))?,
                UNSUPPORTED,
                limits,
                Alpha::Ignored,
                sink,
            )
        }
        Kind::Other => whole_image::decode(open(Cursor::new(whole))?, UNSUPPORTED, limits, alpha, sink),
    }
}

/// Bytes that decoding holds, by the chunk headers alone.
pub(super) fn memory(bytes: &[u8], limits: &DecodeLimits) -> Result<u64, ImageError> {
    let (whole, pixels) = check(bytes, limits)?;
    Ok(match Kind::of(whole)? {
        Kind::Lossy(_) => pixels * 3 / 2,
        Kind::Opaque(..) => pixels * 4,
        Kind::Other => pixels * 8,
    })
}

fn open<R: BufRead + Seek>(whole: R) -> Result<WebPDecoder<R>, ImageError> {
    WebPDecoder::new(whole).map_err(|error| whole_image::decode_error(error, UNSUPPORTED))
}

/// A file that is read with additional bits set in one byte.
struct WithBit<'a> {
    file: Cursor<&'a [u8]>,
    at: u64,
    byte: [u8; 1],
}

impl<'a> WithBit<'a> {
    fn new(file: &'a [u8], at: usize, bits: u8) -> Self {
        Self {
            file: Cursor::new(file),
            at: at as u64,
            byte: [file.get(at).map_or(bits, |byte| byte | bits)],
        }
    }
}

impl BufRead for WithBit<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let position = self.file.position();
        let rest = self.file.fill_buf()?;
        if position == self.at && !rest.is_empty() {
            return Ok(&self.byte);
        }
        let before = usize::try_from(self.at.saturating_sub(position)).unwrap_or(usize::MAX);
        Ok(&rest[..if before == 0 {
            rest.len()
        } else {
            before.min(rest.len())
        }])
    }

    fn consume(&mut self, bytes: usize) {
        self.file.consume(bytes);
    }
}

impl Read for WithBit<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(into)?;
        self.consume(read);
        Ok(read)
    }
}

impl Seek for WithBit<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

/// How a file is decoded.
enum Kind<'a> {
    /// One lossy frame without alpha: its chunk.
    Lossy(&'a [u8]),
    /// One lossless frame without alpha: offset and mask of the alpha bit.
    Opaque(usize, u8),
    /// Alpha, or an animation.
    Other,
}

impl<'a> Kind<'a> {
    fn of(whole: &'a [u8]) -> Result<Self, ImageError> {
        const FIRST_BODY: usize = 20;
        const ALPHA: u8 = 0x10;
        let (mut kind, mut extended) = (Self::Other, None);
        for chunk in chunks(whole.get(12..).unwrap_or_default()) {
            match chunk? {
                (b"VP8X", [flags, ..]) => extended = Some(*flags),
                (b"VP8 ", body) => kind = Self::Lossy(body),
                // The bit after the signature byte and 14 bits each of width and height.
                (b"VP8L", [_, _, _, _, last, ..]) if last & ALPHA == 0 => {
                    kind = Self::Opaque(FIRST_BODY + 4, ALPHA)
                }
                (b"ALPH" | b"ANMF", _) => return Ok(Self::Other),
                _ => {}
            }
        }
        Ok(match (kind, extended) {
            (_, Some(flags)) if flags & ALPHA != 0 => Self::Other,
            // An extended header takes precedence.
            (Self::Opaque(..), Some(_)) => Self::Opaque(FIRST_BODY, ALPHA),
            (kind, _) => kind,
        })
    }
}

fn decode_lossy(frame: &[u8], limits: &DecodeLimits, sink: &mut dyn RowSink) -> Result<Decoded, ImageError> {
    let frame = Vp8Decoder::decode_frame(Cursor::new(frame)).map_err(|_| ImageError::Undecodable)?;
    let (width, height) = (u32::from(frame.width), u32::from(frame.height));
    limits.check(width, height)?;
    sink.begin(width, height)?;
    let mut rgb = vec![0; width as usize * 3];
    for y in 0..height as usize {
        lossy_row(&frame, y, &mut rgb).ok_or(ImageError::Undecodable)?;
        sink.row(&rgb)?;
    }
    Ok(WHOLE)
}

/// Converts one row as libwebp does: chroma is interpolated from the four nearest samples.
fn lossy_row(frame: &Frame, y: usize, rgb: &mut [u8]) -> Option<()> {
    let stride = usize::from(frame.width).next_multiple_of(16);
    let (columns, rows) = (frame.width.div_ceil(2).into(), frame.height.div_ceil(2).into());
    // The nearest chroma sample and the one on the other side of the pixel; the same at an edge.
    let neighbours = |at: usize, count: usize| {
        let near = at / 2;
        let next = if at % 2 == 1 {
            near + 1
        } else {
            near.saturating_sub(1)
        };
        (near, next.min(count - 1))
    };
    let (near, next) = neighbours(y, rows);
    let row = |samples: &'_ [u8], row: usize| -> Option<Vec<u8>> {
        Some(samples.get(row * stride / 2..)?.get(..columns)?.to_vec())
    };
    let (u, v) = (&frame.ubuf, &frame.vbuf);
    let chroma = [row(u, near)?, row(u, next)?, row(v, near)?, row(v, next)?];
    let luma = frame.ybuf.get(y * stride..)?;
    for (x, (pixel, luma)) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(luma).enumerate() {
        let (near, next) = neighbours(x, columns);
        let mixed = |close: &[u8], far: &[u8]| {
            let [a, b, c, d] = [close[near], close[next], far[near], far[next]].map(u32::from);
            ((9 * a + 3 * b + 3 * c + d + 8) / 16) as i32
        };
        let (u, v) = (mixed(&chroma[0], &chroma[1]), mixed(&chroma[2], &chroma[3]));
        *pixel = yuv_to_rgb(i32::from(*luma), u, v);
    }
    Some(())
}

/// libwebp's fixed point (src/dsp/yuv.h).
fn yuv_to_rgb(y: i32, u: i32, v: i32) -> [u8; 3] {
    let scaled = |value: i32, factor: i32| (value * factor) >> 8;
    let luma = scaled(y, 19_077);
    [
        luma + scaled(v, 26_149) - 14_234,
        luma - scaled(u, 6_419) - scaled(v, 13_320) + 8_708,
        luma + scaled(u, 33_050) - 17_685,
    ]
    .map(|value| (value >> 6).clamp(0, 255) as u8)
}

/// Checks every size and length in the file. Returns the file without trailing bytes, and the pixels of its largest picture:
/// the canvas, or the frame without one.
///
/// The decoder allocates what a chunk's header claims, and decodes a frame before comparing its size with the canvas.
fn check<'a>(bytes: &'a [u8], limits: &DecodeLimits) -> Result<(&'a [u8], u64), ImageError> {
    let mut pixels = 0;
    let [_, _, _, _, length @ ..] = *bytes.first_chunk::<8>().ok_or(ImageError::Undecodable)?;
    let end = (u32::from_le_bytes(length) as usize).saturating_add(8);
    let whole = bytes.get(..end).ok_or(ImageError::Undecodable)?;
    for chunk in chunks(whole.get(12..).ok_or(ImageError::Undecodable)?) {
        let (name, body) = chunk?;
        pixels = pixels.max(check_chunk(name, body, limits)?);
        if name == b"ANMF" {
            for chunk in chunks(body.get(16..).ok_or(ImageError::Undecodable)?) {
                let (name, body) = chunk?;
                pixels = pixels.max(check_chunk(name, body, limits)?);
            }
        }
    }
    Ok((whole, pixels))
}

/// A chunk's name and body.
type Chunk<'a> = (&'a [u8], &'a [u8]);

/// Iterates over the chunks; an incomplete one is an error and ends the iteration.
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

/// Checks the size that a chunk claims and returns its pixels; 0 for a chunk without a size.
fn check_chunk(name: &[u8], body: &[u8], limits: &DecodeLimits) -> Result<u64, ImageError> {
    let number = |range: std::ops::Range<usize>| {
        let bytes = body.get(range).ok_or(ImageError::Undecodable)?;
        Ok(bytes
            .iter()
            .rev()
            .fold(0, |sum, byte| sum << 8 | u32::from(*byte)))
    };
    let (width, height) = match name {
        b"VP8 " => (number(6..8)? & 0x3fff, number(8..10)? & 0x3fff),
        b"VP8L" => (1 + (number(1..5)? & 0x3fff), 1 + (number(1..5)? >> 14 & 0x3fff)),
        b"VP8X" => (1 + number(4..7)?, 1 + number(7..10)?),
        b"ANMF" => (1 + number(6..9)?, 1 + number(9..12)?),
        _ => return Ok(0),
    };
    limits.check(width, height)?;
    Ok(u64::from(width) * u64::from(height))
}
