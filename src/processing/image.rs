//! Image bytes → 8-bit RGB.
//!
//! Colour rules: palettes and 1, 2 and 4-bit samples are expanded, grey is replicated, 16-bit samples become
//! `(v + 128) / 257`, and the orientation is applied. Alpha, and the area outside a GIF's first frame, is composited on white,
//! unless no pixel would be visible. Embedded colour profiles are ignored.
//!
//! Rows are streamed from the decoder through the resampler, so that a page of any size takes a few MiB.

use ::image::metadata::Orientation;
use ::image::{DynamicImage, RgbImage};
use serde::{Serialize, Serializer};

use super::{
    PixelBounds,
    decoders::{self, Alpha, Format, JpegSamples, RowSink},
    resample::{Horizontal, Taps, Vertical},
};
use crate::console::RateLimit;
use crate::console::panics::catch_silently;
use crate::error::ImageError;

/// One page as 8-bit RGB.
#[derive(Clone, PartialEq, Eq)]
pub struct RgbPage {
    /// Pixels per row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// `height * width * 3` bytes, row by row, R G B.
    pub pixels: Vec<u8>,
    /// Height and width before scaling, which determine the grid; `None` if not scaled.
    pub scaled_from: Option<(u32, u32)>,
}

impl RgbPage {
    /// A page that was not scaled.
    pub fn new(width: u32, height: u32, pixels: Vec<u8>) -> Self {
        Self {
            width,
            height,
            pixels,
            scaled_from: None,
        }
    }

    /// Height and width before scaling.
    pub fn original_size(&self) -> (u32, u32) {
        self.scaled_from.unwrap_or((self.height, self.width))
    }
}

impl std::fmt::Debug for RgbPage {
    /// Prints the size only: the pixels are the document.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RgbPage({}x{})", self.width, self.height)
    }
}

/// A warning about an image file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageWarning {
    /// The file is incomplete: rows or detail are missing.
    Truncated,
    /// A picture on the page cannot be decoded.
    MissingPicture,
    /// Text on the page is in a font that cannot be read.
    MissingFont,
    /// The file has this many pages; only the first was read.
    FirstOf(u32),
}

impl std::fmt::Display for PageWarning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Truncated => f.write_str("truncated"),
            Self::MissingPicture => f.write_str("a picture on the page cannot be decoded"),
            Self::MissingFont => f.write_str("text in a font that cannot be read"),
            Self::FirstOf(pages) => write!(f, "first of {pages} pages"),
        }
    }
}

impl Serialize for PageWarning {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A page, and warnings about its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodedPage {
    /// The page.
    pub page: RgbPage,
    /// Warnings about the file.
    pub warnings: Vec<PageWarning>,
}

/// Limits that are checked before decoding.
#[derive(Debug, Clone, Copy)]
pub struct DecodeLimits {
    /// Maximum pixels (width x height) of the image as stored.
    pub max_pixels: u64,
}

impl Default for DecodeLimits {
    fn default() -> Self {
        Self {
            max_pixels: 40_000_000,
        }
    }
}

impl DecodeLimits {
    /// Checks the size in a header.
    pub(crate) fn check(&self, width: u32, height: u32) -> Result<(), ImageError> {
        if width == 0 || height == 0 {
            return Err(ImageError::Undecodable);
        }
        if u64::from(width) * u64::from(height) > self.max_pixels {
            return Err(ImageError::TooManyPixels {
                width,
                height,
                limit: self.max_pixels,
            });
        }
        Ok(())
    }
}

/// Names of the formats.
pub const PICTURE_KINDS: [&str; 6] = ["png", "jpeg", "webp", "tiff", "bmp", "gif"];

/// The format of a file that starts with these bytes: one of [`PICTURE_KINDS`].
pub fn picture_kind(start: &[u8]) -> Option<&'static str> {
    Format::of(start).map(Format::name)
}

/// Decodes a page at its own size, for training and evaluation: as [`decode_page`], but an incomplete file is an error.
pub fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<RgbPage, ImageError> {
    let DecodedPage { page, warnings } = decode_page(bytes, limits, None)?;
    if warnings.contains(&PageWarning::Truncated) {
        return Err(ImageError::Undecodable);
    }
    Ok(page)
}

/// Decodes a PNG, JPEG, WebP, TIFF, BMP or GIF (first frame or page) to 8-bit RGB. The format is detected by the first bytes. With
/// `bounds` the page is scaled while it is decoded, bit-identical to [`super::ImageProcessor::process`] of the whole page.
///
/// Memory stays below about 64 MiB besides the file and the returned page, except for WebP and BMP, whose decoders hold the
/// whole image. `limits` are checked before decoding.
///
/// # Errors
/// [`ImageError`] for an image that is empty, unsupported, damaged or beyond `limits`.
pub fn decode_page(
    bytes: &[u8],
    limits: &DecodeLimits,
    bounds: Option<&PixelBounds>,
) -> Result<DecodedPage, ImageError> {
    let (mut page, pages) = decode_one(bytes, 0, limits, bounds)?;
    page.warnings
        .extend((pages > 1).then_some(PageWarning::FirstOf(pages)));
    Ok(page)
}

/// Number of pages of a file: of a TIFF's directories; 1 for every other format, of whose frames the first counts.
pub fn picture_pages(bytes: &[u8]) -> u32 {
    Format::of(bytes).map_or(1, |format| format.pages(bytes))
}

/// As [`decode_page`], for the page with this index, from 0, of a file with [`picture_pages`] of them.
///
/// # Errors
/// As [`decode_page`]; [`ImageError::Undecodable`] if there is no such page.
pub fn decode_page_at(
    bytes: &[u8],
    index: u32,
    limits: &DecodeLimits,
    bounds: Option<&PixelBounds>,
) -> Result<DecodedPage, ImageError> {
    Ok(decode_one(bytes, index, limits, bounds)?.0)
}

/// A page without [`PageWarning::FirstOf`], and the number of pages.
fn decode_one(
    bytes: &[u8],
    index: u32,
    limits: &DecodeLimits,
    bounds: Option<&PixelBounds>,
) -> Result<(DecodedPage, u32), ImageError> {
    if bytes.is_empty() {
        return Err(ImageError::Empty);
    }
    let format = Format::of(bytes).ok_or(ImageError::UnsupportedFormat)?;
    contain_panics(|| {
        let orientation = format.orientation(bytes, index);
        let mut builder = PageBuilder::new(bounds, orientation);
        let mut decoded = decoders::decode(format, bytes, index, limits, Alpha::OnWhite, &mut builder)?;
        if !decoded.visible {
            // Some programs, such as Windows' clipboard, set all alpha to 0.
            builder = PageBuilder::new(bounds, orientation);
            decoded = decoders::decode(format, bytes, index, limits, Alpha::Ignored, &mut builder)?;
        }
        let truncated = decoded.truncated.then_some(PageWarning::Truncated);
        let page = DecodedPage {
            page: builder.finish()?,
            warnings: truncated.into_iter().collect(),
        };
        Ok((page, decoded.pages))
    })
}

/// Decodes the samples of a JPEG, without colour conversion.
pub(crate) fn decode_jpeg_samples(bytes: &[u8], limits: &DecodeLimits) -> Result<JpegSamples, ImageError> {
    contain_panics(|| decoders::jpeg_samples(bytes, limits))
}

/// `rgb`, of this width and height, scaled to `bounds` as [`decode_page`] scales.
pub(crate) fn scaled_rgb(
    rgb: &[u8],
    (width, height): (u32, u32),
    bounds: Option<&PixelBounds>,
) -> Result<RgbPage, ImageError> {
    let mut builder = PageBuilder::new(bounds, Orientation::NoTransforms);
    builder.begin(width, height)?;
    for row in rgb.chunks_exact((width as usize * 3).max(1)) {
        builder.row(row)?;
    }
    builder.finish()
}

/// Maximum bytes that [`decode_page`] allocates besides the file, by its headers.
///
/// # Errors
/// [`ImageError`] for an image that is empty, unsupported or beyond `limits`, or whose headers are damaged.
pub fn decoder_memory(
    bytes: &[u8],
    limits: &DecodeLimits,
    bounds: Option<&PixelBounds>,
) -> Result<u64, ImageError> {
    if bytes.is_empty() {
        return Err(ImageError::Empty);
    }
    let format = Format::of(bytes).ok_or(ImageError::UnsupportedFormat)?;
    let most = bounds.map_or(limits.max_pixels, |bounds| {
        bounds.max_pixels.min(limits.max_pixels)
    });
    Ok(format.memory(bytes, limits)? + most.saturating_mul(3))
}

/// Runs a decoder; a panic becomes [`ImageError::Undecodable`] and a warning without its message, which could echo the input.
///
/// Unwind safety: `work` reads bytes and creates new values, so no partial value outlives a panic.
fn contain_panics<T>(work: impl FnOnce() -> Result<T, ImageError>) -> Result<T, ImageError> {
    static LIMIT: RateLimit = RateLimit::new();
    catch_silently(work).unwrap_or_else(|place| {
        if let Some(images) = LIMIT.due() {
            tracing::warn!(
                place,
                images,
                "the image decoder panicked; the image counts as undecodable"
            );
        }
        Err(ImageError::Undecodable)
    })
}

/// Axes of the stored image relative to the upright page.
struct Axes {
    /// Rows and columns are swapped.
    transposed: bool,
    /// The x or y axis runs in the opposite direction.
    flipped_x: bool,
    flipped_y: bool,
}

fn axes(orientation: Orientation) -> Axes {
    let (transposed, flipped_x, flipped_y) = match orientation {
        Orientation::NoTransforms => (false, false, false),
        Orientation::FlipHorizontal => (false, true, false),
        Orientation::Rotate180 => (false, true, true),
        Orientation::FlipVertical => (false, false, true),
        Orientation::Rotate90FlipH => (true, false, false),
        Orientation::Rotate90 => (true, false, true),
        Orientation::Rotate270FlipH => (true, true, true),
        Orientation::Rotate270 => (true, true, false),
    };
    Axes {
        transposed,
        flipped_x,
        flipped_y,
    }
}

/// Scales the rows of an image as they are decoded, and applies the orientation at the end.
struct PageBuilder<'a> {
    bounds: Option<&'a PixelBounds>,
    orientation: Orientation,
    /// Width and height as stored.
    stored: (u32, u32),
    /// Width and height after scaling, before the orientation is applied.
    scaled: (u32, u32),
    passes: Passes,
    pixels: Vec<u8>,
}

/// Resampling passes along the axes of the stored image. The pass along rows of the upright page is first: the values are rounded
/// between the passes, so their order matters.
enum Passes {
    None,
    RowsFirst(Option<Horizontal>, Option<Vertical>),
    ColumnsFirst(Option<Vertical>, Option<Horizontal>),
}

impl<'a> PageBuilder<'a> {
    fn new(bounds: Option<&'a PixelBounds>, orientation: Orientation) -> Self {
        Self {
            bounds,
            orientation,
            stored: (0, 0),
            scaled: (0, 0),
            passes: Passes::None,
            pixels: Vec::new(),
        }
    }

    /// Returns the upright page.
    fn finish(mut self) -> Result<RgbPage, ImageError> {
        let pixels = &mut self.pixels;
        let mut keep = |row: &[u8]| {
            pixels.extend_from_slice(row);
            Ok::<(), ImageError>(())
        };
        match &mut self.passes {
            Passes::RowsFirst(Some(rows), Some(columns)) => {
                rows.finish(|row| columns.push(row, &mut keep))?;
            }
            Passes::RowsFirst(Some(rows), None) | Passes::ColumnsFirst(_, Some(rows)) => rows.finish(keep)?,
            Passes::None | Passes::RowsFirst(None, _) | Passes::ColumnsFirst(_, None) => {}
        }
        let (width, height) = self.scaled;
        let stored = RgbImage::from_raw(width, height, self.pixels).ok_or(ImageError::Undecodable)?;
        let mut picture = DynamicImage::ImageRgb8(stored);
        picture.apply_orientation(self.orientation);
        let (stored_width, stored_height) = self.stored;
        let original = if axes(self.orientation).transposed {
            (stored_width, stored_height)
        } else {
            (stored_height, stored_width)
        };
        Ok(RgbPage {
            width: picture.width(),
            height: picture.height(),
            pixels: picture.into_rgb8().into_raw(),
            scaled_from: self.bounds.map(|_| original),
        })
    }
}

impl RowSink for PageBuilder<'_> {
    fn begin(&mut self, width: u32, height: u32) -> Result<(), ImageError> {
        self.stored = (width, height);
        self.scaled = (width, height);
        let Some(bounds) = self.bounds else {
            return Ok(());
        };
        let Axes {
            transposed,
            flipped_x,
            flipped_y,
        } = axes(self.orientation);
        self.scaled = if transposed {
            let (height, width) = bounds.scaled(width, height)?;
            (height, width)
        } else {
            let (height, width) = bounds.scaled(height, width)?;
            (width, height)
        };
        let taps = |input: u32, output: u32, mirrored: bool| {
            let (input, output) = (input as usize, output as usize);
            let taps = (input != output).then(|| Taps::new(input, output));
            if mirrored {
                taps.map(|taps| taps.mirrored(input))
            } else {
                taps
            }
        };
        let rows = taps(width, self.scaled.0, flipped_x).map(|taps| Horizontal::new(taps, width as usize));
        let columns = taps(height, self.scaled.1, flipped_y);
        self.passes = if transposed {
            Passes::ColumnsFirst(columns.map(|taps| Vertical::new(taps, width as usize * 3)), rows)
        } else {
            let length = self.scaled.0 as usize * 3;
            Passes::RowsFirst(rows, columns.map(|taps| Vertical::new(taps, length)))
        };
        Ok(())
    }

    fn row(&mut self, rgb: &[u8]) -> Result<(), ImageError> {
        let pixels = &mut self.pixels;
        if pixels.is_empty() {
            pixels.reserve_exact(self.scaled.0 as usize * self.scaled.1 as usize * 3);
        }
        let mut keep = |row: &[u8]| {
            pixels.extend_from_slice(row);
            Ok(())
        };
        match &mut self.passes {
            Passes::RowsFirst(Some(rows), Some(columns)) => {
                rows.push(rgb, |row| columns.push(row, &mut keep))
            }
            Passes::ColumnsFirst(Some(columns), Some(rows)) => {
                columns.push(rgb, |row| rows.push(row, &mut keep))
            }
            Passes::RowsFirst(Some(rows), None) | Passes::ColumnsFirst(None, Some(rows)) => {
                rows.push(rgb, keep)
            }
            Passes::RowsFirst(None, Some(columns)) | Passes::ColumnsFirst(Some(columns), None) => {
                columns.push(rgb, keep)
            }
            Passes::None | Passes::RowsFirst(None, None) | Passes::ColumnsFirst(None, None) => keep(rgb),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_a_decoder_is_an_error_without_a_message() {
        let caught: Result<(), _> = contain_panics(|| panic!("a canary"));
        assert_eq!(caught, Err(ImageError::Undecodable));
    }
}
