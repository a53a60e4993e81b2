//! TIFF: what the directory claims is checked before a decoder believes it, and palettes, 2 and 4-bit grey, grey with
//! alpha and YCbCr, which the image crate leaves out, are read.

use std::io::Cursor;

use ::tiff::ColorType;
use ::tiff::TiffError;
use ::tiff::decoder::{Decoder, DecodingResult, Limits};
use image::codecs::tiff::TiffDecoder;
use image::metadata::Orientation;
use image::{DynamicImage, GrayAlphaImage, GrayImage, RgbImage};

use super::{EXTRA_BYTES, Stored, finish, refusal};
use crate::processing::{DecodeLimits, ImageError};

const IMAGE_WIDTH: u16 = 256;
const IMAGE_LENGTH: u16 = 257;
const COMPRESSION: u16 = 259;
const PHOTOMETRIC: u16 = 262;
const STRIP_OFFSETS: u16 = 273;
const ORIENTATION: u16 = 274;
const ROWS_PER_STRIP: u16 = 278;
const STRIP_BYTE_COUNTS: u16 = 279;
const COLOR_MAP: u16 = 320;
const TILE_WIDTH: u16 = 322;
const TILE_LENGTH: u16 = 323;
const TILE_OFFSETS: u16 = 324;
const TILE_BYTE_COUNTS: u16 = 325;
const JPEG_TABLES: u16 = 347;

/// The tags that tell how pixels are stored, and the most values one of them may have: decoders hold 32 bytes for each.
const STORAGE_TAGS: std::ops::RangeInclusive<u16> = 254..=532;
const MAX_VALUES: usize = 1 << 20;

const JPEG_COMPRESSION: usize = 7;
const BLACK_IS_ZERO: u8 = 1;
const PALETTE: usize = 3;

/// Decodes the first page.
pub(super) fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<Stored, ImageError> {
    let directory = Directory::read(bytes).ok_or(ImageError::Undecodable)?;
    directory.check(limits)?;
    match TiffDecoder::new(Cursor::new(bytes)) {
        Err(image::ImageError::Unsupported(_)) => decode_rare(&directory, limits),
        decoder => finish(decoder.map_err(refusal)?, limits),
    }
}

/// The first directory of a file.
struct Directory<'a> {
    file: &'a [u8],
    big_endian: bool,
    entries: Vec<Entry<'a>>,
}

struct Entry<'a> {
    tag: u16,
    /// Bytes of one value.
    size: usize,
    values: &'a [u8],
    /// Where the value, or where its offset, stands in the file.
    field: usize,
}

impl<'a> Directory<'a> {
    /// `None` if it is not whole, names a tag twice or has values outside the file.
    fn read(file: &'a [u8]) -> Option<Self> {
        let big_endian = file.starts_with(b"MM");
        let number = |bytes| number(bytes, big_endian);
        let at = number(file.get(4..8)?);
        let count = number(file.get(at..at.checked_add(2)?)?);
        let mut entries: Vec<Entry> = Vec::with_capacity(count);
        for entry in 0..count {
            let at = at + 2 + entry * 12;
            let bytes = file.get(at..at + 12)?;
            let size = match number(&bytes[2..4]) {
                3 | 8 => 2,
                4 | 9 | 11 | 13 => 4,
                5 | 10 | 12 | 16..=18 => 8,
                _ => 1,
            };
            let (tag, count) = (number(&bytes[..2]) as u16, number(&bytes[4..8]));
            let length = count.checked_mul(size)?;
            let field = at + 8;
            let start = if length <= 4 { field } else { number(&bytes[8..]) };
            let values = file.get(start..start.checked_add(length)?)?;
            if STORAGE_TAGS.contains(&tag) && count > MAX_VALUES {
                return None;
            }
            entries.push(Entry {
                tag,
                size,
                values,
                field,
            });
        }
        let mut tags: Vec<u16> = entries.iter().map(|entry| entry.tag).collect();
        tags.sort_unstable();
        let unique = tags.windows(2).all(|pair| pair[0] != pair[1]);
        unique.then_some(Self {
            file,
            big_endian,
            entries,
        })
    }

    fn entry(&self, tag: u16) -> Option<&Entry<'a>> {
        self.entries.iter().find(|entry| entry.tag == tag)
    }

    fn values(&self, tag: u16) -> impl Iterator<Item = usize> {
        let values = self.entry(tag).map(|entry| entry.values.chunks_exact(entry.size));
        values
            .into_iter()
            .flatten()
            .map(|bytes| number(bytes, self.big_endian))
    }

    fn first(&self, tag: u16) -> Option<usize> {
        self.values(tag).next()
    }

    /// Refuses a picture, or one padded to whole tiles, that is too large, and pieces that are not in the file, overlap
    /// or unpack to more than their share.
    fn check(&self, limits: &DecodeLimits) -> Result<(), ImageError> {
        let side = |tag| {
            self.first(tag)
                .and_then(|side| u32::try_from(side).ok())
                .filter(|side| *side > 0)
        };
        let (width, height) = (side(IMAGE_WIDTH), side(IMAGE_LENGTH));
        let (width, height) = width.zip(height).ok_or(ImageError::Undecodable)?;
        limits.check(width, height)?;
        let tiled = self.entry(TILE_OFFSETS).is_some();
        let (piece_width, piece_height) = if tiled {
            let tile = side(TILE_WIDTH)
                .zip(side(TILE_LENGTH))
                .ok_or(ImageError::Undecodable)?;
            let padded = |side: u32, tile: u32| side.checked_next_multiple_of(tile).unwrap_or(u32::MAX);
            limits.check(padded(width, tile.0), padded(height, tile.1))?;
            tile
        } else {
            (width, side(ROWS_PER_STRIP).unwrap_or(height).min(height))
        };
        let (offsets, counts) = if tiled {
            (TILE_OFFSETS, TILE_BYTE_COUNTS)
        } else {
            (STRIP_OFFSETS, STRIP_BYTE_COUNTS)
        };
        let jpeg = self.first(COMPRESSION) == Some(JPEG_COMPRESSION);
        let tables = self.entry(JPEG_TABLES).map_or(&[][..], |entry| entry.values);
        if jpeg && frame_sizes(tables).next().is_some() {
            return Err(ImageError::Undecodable);
        }
        let mut total = 0usize;
        for (offset, count) in self.values(offsets).zip(self.values(counts)) {
            let piece = self.file.get(offset..offset.saturating_add(count));
            let piece = piece.ok_or(ImageError::Undecodable)?;
            total = total.saturating_add(count);
            if total > self.file.len() || jpeg && !jpeg_fits(piece, piece_width, piece_height) {
                return Err(ImageError::Undecodable);
            }
        }
        Ok(())
    }
}

/// An unsigned number of up to 8 bytes.
fn number(bytes: &[u8], big_endian: bool) -> usize {
    let join = |sum: usize, byte: &u8| sum << 8 | usize::from(*byte);
    if big_endian {
        bytes.iter().fold(0, join)
    } else {
        bytes.iter().rev().fold(0, join)
    }
}

/// Whether a JPEG piece has its end marker and no frame larger than the piece and the padding of its last blocks.
fn jpeg_fits(piece: &[u8], width: u32, height: u32) -> bool {
    const BLOCKS: u32 = 16;
    let most = |side: u32| side.checked_next_multiple_of(BLOCKS).unwrap_or(u32::MAX);
    let ended = piece.windows(2).rev().any(|pair| pair == [0xff, 0xd9]);
    ended && frame_sizes(piece).all(|(w, h)| w <= most(width) && h <= most(height))
}

/// Width and height of everything in a JPEG that looks like a frame header.
fn frame_sizes(jpeg: &[u8]) -> impl Iterator<Item = (u32, u32)> {
    jpeg.windows(9).filter_map(|bytes| match *bytes {
        [0xff, 0xc4 | 0xc8 | 0xcc, ..] => None,
        [0xff, 0xc0..=0xcf, _, _, _, h0, h1, w0, w1] => {
            let side = |high, low| u32::from(u16::from_be_bytes([high, low]));
            Some((side(w0, w1), side(h0, h1)))
        }
        _ => None,
    })
}

/// Decodes what the image crate does not.
fn decode_rare(directory: &Directory, limits: &DecodeLimits) -> Result<Stored, ImageError> {
    let palette = directory.first(PHOTOMETRIC) == Some(PALETTE);
    let mut file = std::borrow::Cow::Borrowed(directory.file);
    if palette && let Some(photometric) = directory.entry(PHOTOMETRIC) {
        // The decoder gives indices where it takes them for levels of grey.
        let low = if directory.big_endian {
            photometric.size - 1
        } else {
            0
        };
        file.to_mut()[photometric.field + low] = BLACK_IS_ZERO;
    }
    let mut decoder = Decoder::new(Cursor::new(&file[..])).map_err(rare_refusal)?;
    let (width, height) = decoder.dimensions().map_err(rare_refusal)?;
    limits.check(width, height)?;
    let color = decoder.colortype().map_err(rare_refusal)?;
    let mut memory = Limits::default();
    memory.decoding_buffer_size = (4 * u64::from(width) * u64::from(height) + EXTRA_BYTES) as usize;
    memory.intermediate_buffer_size = memory.decoding_buffer_size;
    let mut decoder = decoder.with_limits(memory);
    let mut samples = DecodingResult::U8(Vec::new());
    let layout = decoder.read_image_to_buffer(&mut samples).map_err(rare_refusal)?;
    let (1, DecodingResult::U8(samples)) = (layout.planes, samples) else {
        return Err(ImageError::UnsupportedVariant);
    };
    let picture = match color {
        ColorType::Gray(bits @ (1 | 2 | 4 | 8)) => {
            let levels = unpack(samples, bits, width);
            if palette {
                let colours = directory.palette(bits).ok_or(ImageError::Undecodable)?;
                let pixels = levels
                    .iter()
                    .flat_map(|index| colours[usize::from(*index)])
                    .collect();
                RgbImage::from_raw(width, height, pixels).map(DynamicImage::ImageRgb8)
            } else {
                let step = 255 / (u8::MAX >> (8 - bits));
                let grey = levels.iter().map(|level| level * step).collect();
                GrayImage::from_raw(width, height, grey).map(DynamicImage::ImageLuma8)
            }
        }
        ColorType::Multiband {
            bit_depth: 8,
            num_samples: 2,
        } => GrayAlphaImage::from_raw(width, height, samples).map(DynamicImage::ImageLumaA8),
        ColorType::YCbCr(8) => {
            let pixels = samples.as_chunks().0.iter().flat_map(ycbcr_to_rgb).collect();
            RgbImage::from_raw(width, height, pixels).map(DynamicImage::ImageRgb8)
        }
        _ => return Err(ImageError::UnsupportedVariant),
    };
    let orientation = directory
        .first(ORIENTATION)
        .and_then(|value| u8::try_from(value).ok());
    let orientation = orientation.and_then(Orientation::from_exif);
    Ok((
        picture.ok_or(ImageError::Undecodable)?,
        orientation.unwrap_or(Orientation::NoTransforms),
    ))
}

impl Directory<'_> {
    /// The 8-bit colours of all indices.
    fn palette(&self, bits: u8) -> Option<Vec<[u8; 3]>> {
        let values: Vec<usize> = self.values(COLOR_MAP).collect();
        let count = 1 << bits;
        let [reds, greens, blues] = values.chunks_exact(count).collect::<Vec<_>>().try_into().ok()?;
        // 16-bit values, of which libtiff and Pillow take the upper half; some writers leave it empty.
        let shift = if values.iter().any(|value| *value > 255) {
            8
        } else {
            0
        };
        let colours = reds.iter().zip(greens).zip(blues);
        Some(
            colours
                .map(|((r, g), b)| [*r, *g, *b].map(|value| (value >> shift) as u8))
                .collect(),
        )
    }
}

/// One byte a sample from rows of packed ones.
fn unpack(packed: Vec<u8>, bits: u8, width: u32) -> Vec<u8> {
    if bits == 8 {
        return packed;
    }
    let (width, per_byte) = (width as usize, usize::from(8 / bits));
    let mask = u8::MAX >> (8 - bits);
    let rows = packed.chunks_exact(width.div_ceil(per_byte));
    let samples = rows.flat_map(|row| {
        (0..width).map(move |x| row[x / per_byte] >> (8 - bits - (x % per_byte) as u8 * bits) & mask)
    });
    samples.collect()
}

/// As JPEG means it: full range, the coefficients of BT.601.
fn ycbcr_to_rgb([y, cb, cr]: &[u8; 3]) -> [u8; 3] {
    let (y, cb, cr) = (f32::from(*y), f32::from(*cb) - 128.0, f32::from(*cr) - 128.0);
    [
        y + 1.402 * cr,
        y - 0.344_136 * cb - 0.714_136 * cr,
        y + 1.772 * cb,
    ]
    .map(|value| value.round() as u8)
}

/// Drops the decoder's own words.
fn rare_refusal(error: TiffError) -> ImageError {
    match error {
        TiffError::UnsupportedError(_) => ImageError::UnsupportedVariant,
        _ => ImageError::Undecodable,
    }
}
