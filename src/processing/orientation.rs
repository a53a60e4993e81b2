//! Orientation of an image: EXIF's, or XMP's if EXIF has none, by the rules of Pillow's `ImageOps.exif_transpose`. A rotated page
//! is unreadable to the model, so every place that cameras and programs write it to is read.

use std::io::Read;

use flate2::read::ZlibDecoder;
use image::metadata::Orientation;

const ORIENTATION: u16 = 274;
/// Maximum size of decompressed metadata; documents have some kilobytes.
const MAX_TEXT: u64 = 4 << 20;
const EXIF_HEADER: &[u8] = b"Exif\0\0";
const XMP_HEADER: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";

/// Metadata with the orientation of a file.
#[derive(Default)]
pub(super) struct Metadata {
    /// A TIFF stream, after "Exif\0\0".
    pub(super) exif: Vec<u8>,
    /// XMP's XML.
    pub(super) xmp: Vec<u8>,
    /// The orientation, if it is not in a TIFF stream of its own.
    value: Option<u64>,
}

impl Metadata {
    /// The orientation; none if it cannot be parsed.
    pub(super) fn orientation(&self) -> Orientation {
        let value = self.value.or_else(|| exif_orientation(&self.exif));
        let value = value.or_else(|| xmp_orientation(&self.xmp));
        let value = value.and_then(|value| u8::try_from(value).ok());
        value
            .and_then(Orientation::from_exif)
            .unwrap_or(Orientation::NoTransforms)
    }

    /// The first directory's orientation, and its XMP packet.
    pub(super) fn of_tiff(orientation: Option<u16>, xmp: Vec<u8>) -> Self {
        Self {
            value: orientation.map(u64::from),
            xmp,
            ..Self::default()
        }
    }

    /// All APP1 segments before the first scan: EXIF segments are concatenated, the last XMP packet counts.
    pub(super) fn of_jpeg(jpeg: &[u8]) -> Self {
        let mut found = Self::default();
        for (marker, body) in JpegSegments(jpeg.get(2..).unwrap_or_default()) {
            const APP1: u8 = 0xe1;
            if marker != APP1 {
                continue;
            }
            if let Some(exif) = body.strip_prefix(EXIF_HEADER) {
                found.exif.extend_from_slice(exif);
            } else if let Some(xmp) = body.strip_prefix(XMP_HEADER) {
                found.xmp = xmp.to_vec();
            }
        }
        found
    }

    /// `eXIf` before or after the pixels, or else the hexadecimal profile that ImageMagick writes as text.
    pub(super) fn of_png(png: &[u8]) -> Self {
        let mut found = Self::default();
        let mut profile = Vec::new();
        for (name, body) in PngChunks(png.get(8..).unwrap_or_default()) {
            match name {
                b"eXIf" => found.exif = body.to_vec(),
                b"tEXt" | b"zTXt" | b"iTXt" => {
                    let Some((keyword, text)) = png_text(name, body) else {
                        continue;
                    };
                    match keyword {
                        b"Raw profile type exif" => profile = text,
                        b"XML:com.adobe.xmp" => found.xmp = text,
                        _ => {}
                    }
                }
                _ => {}
            }
        }
        if found.exif.is_empty() {
            found.exif = hexadecimal_profile(&profile).unwrap_or_default();
        }
        found
    }

    /// The `EXIF` and `XMP ` chunks.
    pub(super) fn of_webp(webp: &[u8]) -> Self {
        let mut found = Self::default();
        let mut rest = webp.get(12..).unwrap_or_default();
        while let Some((header, bytes)) = rest.split_first_chunk::<8>() {
            let (name, length) = header.split_at(4);
            let length = length
                .iter()
                .rev()
                .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
            let Some(body) = bytes.get(..length) else { break };
            match name {
                b"EXIF" => found.exif = body.to_vec(),
                b"XMP " => found.xmp = body.to_vec(),
                _ => {}
            }
            rest = bytes.get(length + length % 2..).unwrap_or_default();
        }
        found
    }
}

/// Markers with a body, up to the first scan; bytes between them are skipped, as by libjpeg.
struct JpegSegments<'a>(&'a [u8]);

impl<'a> Iterator for JpegSegments<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        const START_OF_SCAN: u8 = 0xda;
        const END_OF_IMAGE: u8 = 0xd9;
        loop {
            match self.0 {
                [0xff, START_OF_SCAN | END_OF_IMAGE, ..] | [] => return None,
                // Markers without a body.
                [0xff, 0x01 | 0xd0..=0xd8, rest @ ..] => self.0 = rest,
                [0xff, marker @ 0x02..=0xfe, rest @ ..] => {
                    let length = usize::from(u16::from_be_bytes(*rest.first_chunk()?));
                    let body = rest.get(2..length)?;
                    self.0 = &rest[length..];
                    return Some((*marker, body));
                }
                // Fill bytes, and bytes between segments.
                [_, rest @ ..] => self.0 = rest,
            }
        }
    }
}

struct PngChunks<'a>(&'a [u8]);

impl<'a> Iterator for PngChunks<'a> {
    type Item = (&'a [u8; 4], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (length, rest) = self.0.split_first_chunk::<4>()?;
        let (name, rest) = rest.split_first_chunk::<4>()?;
        let length = u32::from_be_bytes(*length) as usize;
        let body = rest.get(..length)?;
        self.0 = rest.get(length..)?.get(4..).unwrap_or_default();
        (name != b"IEND").then_some((name, body))
    }
}

/// Keyword and text of a textual chunk; the language of `iTXt` is skipped.
fn png_text<'a>(name: &[u8; 4], body: &'a [u8]) -> Option<(&'a [u8], Vec<u8>)> {
    let (keyword, text) = split_at_zero(body)?;
    let text = match name {
        b"tEXt" => text.to_vec(),
        b"zTXt" => inflated(text.strip_prefix(&[0])?)?,
        _ => {
            let ([compressed, _method], text) = text.split_first_chunk::<2>()?;
            let (_language, text) = split_at_zero(text)?;
            let (_translated, text) = split_at_zero(text)?;
            if *compressed == 0 {
                text.to_vec()
            } else {
                inflated(text)?
            }
        }
    };
    Some((keyword, text))
}

fn split_at_zero(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

fn inflated(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    ZlibDecoder::new(bytes)
        .take(MAX_TEXT)
        .read_to_end(&mut text)
        .ok()?;
    Some(text)
}

/// Parses "\nexif\n    LENGTH\n" and lines of hexadecimal bytes.
fn hexadecimal_profile(text: &[u8]) -> Option<Vec<u8>> {
    let lines = text.split(|byte| *byte == b'\n').skip(3);
    let digits: Vec<u8> = lines
        .flatten()
        .copied()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let (pairs, []) = digits.as_chunks::<2>() else {
        return None;
    };
    pairs
        .iter()
        .map(|[high, low]| Some((digit(*high)? << 4 | digit(*low)?) as u8))
        .collect()
}

/// Tag 274 of the first directory, whatever numeric type it has.
fn exif_orientation(exif: &[u8]) -> Option<u64> {
    let mut tiff = exif;
    while let Some(rest) = tiff.strip_prefix(EXIF_HEADER) {
        tiff = rest;
    }
    let big_endian = match tiff.first_chunk::<2>()? {
        b"II" => false,
        b"MM" => true,
        _ => return None,
    };
    let number = |at: usize, length: usize| {
        let bytes = tiff.get(at..at.checked_add(length)?)?;
        let join = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        Some(if big_endian {
            bytes.iter().fold(0, join)
        } else {
            bytes.iter().rev().fold(0, join)
        })
    };
    let directory = usize::try_from(number(4, 4)?).ok()?;
    let count = usize::try_from(number(directory, 2)?).ok()?;
    let entries = (0..count).map(|index| directory + 2 + index * 12);
    let entry = entries
        .take_while(|at| tiff.get(*at..at + 12).is_some())
        .find(|at| number(*at, 2) == Some(u64::from(ORIENTATION)))?;
    let (kind, values) = (
        number(entry + 2, 2)?,
        usize::try_from(number(entry + 4, 4)?).ok()?,
    );
    let size = match kind {
        1 | 6 | 7 => 1,
        3 | 8 => 2,
        4 | 9 | 13 => 4,
        5 | 10 | 16..=18 => 8,
        _ => return None,
    };
    let length = values.checked_mul(size).filter(|length| *length > 0)?;
    let at = match length {
        ..=4 => entry + 8,
        _ => usize::try_from(number(entry + 8, 4)?).ok()?,
    };
    tiff.get(at..at.checked_add(length)?)?;
    if matches!(kind, 5 | 10) {
        let (above, below) = (number(at, 4)?, number(at + 4, 4)?);
        return (below != 0 && above % below == 0).then(|| above / below);
    }
    number(at, size)
}

/// The digit after `tiff:Orientation="` or `tiff:Orientation>`.
fn xmp_orientation(xmp: &[u8]) -> Option<u64> {
    const NAME: &[u8] = b"tiff:Orientation";
    xmp.windows(NAME.len() + 3).find_map(|text| {
        let digit = match text.strip_prefix(NAME)? {
            [b'=', b'"', digit] | [b'>', digit, _] => *digit,
            _ => return None,
        };
        digit.is_ascii_digit().then(|| u64::from(digit - b'0'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xmp_is_read_as_attribute_and_as_element() {
        for (xmp, expected) in [
            (&br#"<rdf tiff:Orientation="6"/>"#[..], Some(6)),
            (b"<tiff:Orientation>8</tiff:Orientation>", Some(8)),
            (b"<tiff:Orientation >8</tiff:Orientation>", None),
            (b"tiff:Orientation", None),
            (br#"tiff:Orientation="x" tiff:Orientation="3""#, Some(3)),
        ] {
            assert_eq!(xmp_orientation(xmp), expected);
        }
    }
}
