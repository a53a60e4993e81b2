//! Detects and decodes the six formats, row by row; sizes are checked first.

mod bmp;
mod gif;

mod jpeg;
mod png;
mod samples;
mod tiff;
mod webp;
mod whole_image;

use image::metadata::Orientation;

use self::jpeg::{Colours, Jpeg};
use super::{DecodeLimits, orientation::Metadata};
use crate::error::ImageError;

/// Maximum memory of a decoder besides the image: palettes, tables, metadata.
const EXTRA_BYTES: usize = 16 << 20;

/// Receives the rows of an image as they are decoded, top to bottom as stored.
pub(super) trait RowSink {
    /// Called once before the first row, with width and height.
    fn begin(&mut self, width: u32, height: u32) -> Result<(), ImageError>;
    /// Called for every row: `width * 3` bytes, R G B.
    fn row(&mut self, rgb: &[u8]) -> Result<(), ImageError>;
}

/// How alpha is treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alpha {
    /// Pixels are composited on white.
    OnWhite,
    /// Every pixel is opaque.
    Ignored,
}

/// Result of decoding, besides the pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Decoded {
    /// Rows or detail are missing.
    pub(super) truncated: bool,
    /// Pages in the file.
    pub(super) pages: u32,
    /// Some pixel's alpha is above 0, or there is no alpha.
    pub(super) visible: bool,
}

/// A complete, opaque image.
const WHOLE: Decoded = Decoded {
    truncated: false,
    pages: 1,
    visible: true,
};

/// Supported formats.
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
    /// Detects the format by the first bytes.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some(Self::Png),
            [0xff, 0xd8, 0xff, ..] => Some(Self::Jpeg),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(Self::WebP),
            // Classic and BigTIFF; some programs write the number in the other byte order.
            [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Some(Self::Tiff),
            [b'I', b'I', 0, 42, ..] | [b'M', b'M', 42, 0, ..] => Some(Self::Tiff),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(Self::Gif),
            // Two letters are too little evidence: the second header has one of seven sizes.
            [b'B', b'M', ..] => {
                let header = u32::from_le_bytes(*bytes.get(14..)?.first_chunk()?);
                matches!(header, 12 | 40 | 52 | 56 | 64 | 108 | 124).then_some(Self::Bmp)
            }
            _ => None,
        }
    }

    /// Name, as in a file's extension.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpeg",
            Self::WebP => "webp",
            Self::Tiff => "tiff",
            Self::Bmp => "bmp",
            Self::Gif => "gif",
        }
    }

    /// Maximum bytes that decoding allocates, besides the file and the sink.
    pub(super) fn memory(self, bytes: &[u8], limits: &DecodeLimits) -> Result<u64, ImageError> {
        /// A few rows, tables, the coefficients of a band.
        const STREAMED: u64 = 48 << 20;
        let held = match self {
            Self::Png | Self::Jpeg | Self::Tiff => return Ok(STREAMED),
            Self::WebP => webp::memory(bytes, limits)?,
            Self::Bmp => bmp::memory(bytes, limits)?,
            Self::Gif => gif::memory(bytes, limits)?,
        };
        Ok(held + EXTRA_BYTES as u64)
    }

    /// Number of pages; 1 for all but TIFF.
    pub(super) fn pages(self, bytes: &[u8]) -> u32 {
        match self {
            Self::Tiff => tiff::pages(bytes),
            _ => 1,
        }
    }

    /// Reads the orientation of a page, counted from 0.
    pub(super) fn orientation(self, bytes: &[u8], page: u32) -> Orientation {
        match self {
            Self::Png => Metadata::of_png(bytes).orientation(),
            Self::Jpeg => Metadata::of_jpeg(bytes).orientation(),
            Self::WebP => Metadata::of_webp(bytes).orientation(),
            Self::Tiff => {
                let xmp = tiff::xmp(bytes, page).unwrap_or_default().to_vec();
                Metadata::of_tiff(tiff::orientation(bytes, page), xmp).orientation()
            }
            Self::Bmp | Self::Gif => Orientation::NoTransforms,
        }
    }
}

/// Decodes the first image of a file, or another page of a TIFF.
pub(super) fn decode(
    format: Format,
    bytes: &[u8],
    page: u32,
    limits: &DecodeLimits,
    alpha: Alpha,
    sink: &mut dyn RowSink,
) -> Result<Decoded, ImageError> {
    match format {
        Format::Png => png::decode(bytes, limits, alpha, sink),
        Format::Jpeg => jpeg(bytes, limits, sink),
        Format::WebP => webp::decode(bytes, limits, alpha, sink),
        Format::Tiff => tiff::decode(bytes, page, limits, alpha, sink),
        Format::Bmp => bmp::decode(bytes, limits, alpha, sink),
        Format::Gif => gif::decode(bytes, limits, alpha, sink),
    }
}

/// Samples of a JPEG as stored: upsampled and interleaved, without colour conversion.
pub(crate) struct JpegSamples {
    /// Pixels per row.
    pub(crate) width: u32,
    /// Rows.
    pub(crate) height: u32,
    /// `height * width * channels` values.
    pub(crate) samples: Vec<u8>,
}

/// Decodes the samples of a JPEG with 8 bits a sample.
pub(super) fn jpeg_samples(bytes: &[u8], limits: &DecodeLimits) -> Result<JpegSamples, ImageError> {
    let picture = Jpeg::open(bytes, &[])?;
    let (width, height) = picture.size();
    limits.check(width, height)?;
    let mut samples = Vec::new();
    picture.decode(Colours::Stored, &mut |row| {
        samples.extend_from_slice(row);
        Ok(())
    })?;
    Ok(JpegSamples {
        width,
        height,
        samples,
    })
}

fn jpeg(bytes: &[u8], limits: &DecodeLimits, sink: &mut dyn RowSink) -> Result<Decoded, ImageError> {
    let picture = Jpeg::open(bytes, &[])?;
    let (width, height) = picture.size();
    limits.check(width, height)?;
    sink.begin(width, height)?;
    let truncated = picture.decode(Colours::Rgb, &mut |row| sink.row(row))?;
    Ok(Decoded { truncated, ..WHOLE })
}
