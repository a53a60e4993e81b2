//! Image bytes → 8-bit RGB.
//!
//! Colour rules: palettes and 1, 2 and 4-bit samples are expanded, grey is replicated, 16-bit samples become
//! `(v + 128) / 257`, alpha (and what a GIF's first frame leaves uncovered) is composited on white unless no pixel would be
//! visible, the orientation is applied, embedded colour profiles are not.
//!
//! Rows go from the decoder through the resampler one at a time, so that a page of any size takes a few MiB.

use ::image::metadata::Orientation;
use ::image::{DynamicImage, RgbImage};
use serde::{Serialize, Serializer};

use super::{
    PixelBounds,
    decoders::{self, Alpha, Format, RowSink},
    resample::{Horizontal, Taps, Vertical},
};
use crate::console::RateLimit;
use crate::console::panics::catch_silently;
use crate::error::ImageError;

/// One page as 8-bit RGB.
#[derive(Clone, PartialEq, Eq)]
pub struct RgbPage {
    /// Pixels a row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// `height * width * 3` bytes, row by row, R G B.
    pub pixels: Vec<u8>,
    /// Height and width of the page that these pixels were scaled from, where they were: they decide its grid.
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

    /// Height and width of the page itself, whatever these pixels were scaled to.
    pub fn original_size(&self) -> (u32, u32) {
        self.scaled_from.unwrap_or((self.height, self.width))
    }
}

impl std::fmt::Debug for RgbPage {
    /// The size alone: pixels are the document.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RgbPage({}x{})", self.width, self.height)
    }
}

/// What a reader of the answer must know of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageWarning {
    /// The file ends early: rows or detail are missing.
    Truncated,
    /// The file has this many pages, of which the first was read.
    FirstOf(u32),
}

impl std::fmt::Display for PageWarning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Truncated => f.write_str("truncated"),
            Self::FirstOf(pages) => write!(f, "first of {pages} pages"),
        }
    }
}

impl Serialize for PageWarning {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A page and what is to be said about its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecodedPage {
    /// The page.
    pub page: RgbPage,
    /// What is not as one would expect.
    pub warnings: Vec<PageWarning>,
}

/// What is checked before a decoder is let at the bytes.
#[derive(Debug, Clone, Copy)]
pub struct DecodeLimits {
    /// Most pixels (width x height) of the image as stored.
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
    /// Refuses a size that a header claims.
    pub(super) fn check(&self, width: u32, height: u32) -> Result<(), ImageError> {
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

/// As many first bytes as [`is_picture`] looks at.
pub const SIGNATURE_BYTES: u64 = 32;

/// Whether a file that begins so is in one of the six formats.
pub fn is_picture(start: &[u8]) -> bool {
    Format::of(start).is_some()
}

/// Decodes a whole page at its own size. A file that ends early is an error.
///
/// As [`decode_page`], for pages of one's own: training and evaluation do without a damaged one.
pub fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<RgbPage, ImageError> {
    let DecodedPage { page, warnings } = decode_page(bytes, limits, None)?;
    if warnings.contains(&PageWarning::Truncated) {
        return Err(ImageError::Undecodable);
    }
    Ok(page)
}

/// Decodes one PNG, JPEG, WebP, TIFF, BMP or GIF (first frame or page) to 8-bit RGB, by its first bytes and whatever its
/// name, scaled to `bounds` if there are any: what [`super::ImageProcessor::process`] would make of the whole page, bit for bit.
///
/// Memory stays below about 64 MiB beside the file and the page as returned, WebP and interlaced or compressed BMP apart,
/// whose decoders hold the picture; sizes that the header claims have passed `limits` before anything is decoded.
pub fn decode_page(
    bytes: &[u8],
    limits: &DecodeLimits,
    bounds: Option<&PixelBounds>,
) -> Result<DecodedPage, ImageError> {
    if bytes.is_empty() {
        return Err(ImageError::Empty);
    }
    let format = Format::of(bytes).ok_or(ImageError::UnsupportedFormat)?;
    contain_panics(|| {
        let orientation = format.orientation(bytes);
        let mut builder = PageBuilder::new(bounds, orientation);
        let mut decoded = decoders::decode(format, bytes, limits, Alpha::OnWhite, &mut builder)?;
        if !decoded.visible {
            // Windows' clipboard, for one, leaves the alpha of a whole picture at 0.
            builder = PageBuilder::new(bounds, orientation);
            decoded = decoders::decode(format, bytes, limits, Alpha::Ignored, &mut builder)?;
        }
        let truncated = decoded.truncated.then_some(PageWarning::Truncated);
        let several = (decoded.pages > 1).then_some(PageWarning::FirstOf(decoded.pages));
        Ok(DecodedPage {
            page: builder.finish()?,
            warnings: truncated.into_iter().chain(several).collect(),
        })
    })
}

/// Bytes that [`decode_page`] may take beside the file: the decoder's and the page's. An error where the header refuses itself.
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
/// Unwind safety: `work` reads bytes and makes new values, so no half-written value outlives a panic.
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

/// How a picture as stored lies in the page that it becomes.
struct Axes {
    /// Its columns are the page's rows.
    transposed: bool,
    /// Its x, and its y, run against the page's.
    against_x: bool,
    against_y: bool,
}

fn axes(orientation: Orientation) -> Axes {
    let (transposed, against_x, against_y) = match orientation {
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
        against_x,
        against_y,
    }
}

/// Scales the rows of a picture as they come and turns what is left upright.
struct PageBuilder<'a> {
    bounds: Option<&'a PixelBounds>,
    orientation: Orientation,
    /// Width and height as stored.
    stored: (u32, u32),
    /// Width and height after scaling, not yet turned.
    scaled: (u32, u32),
    passes: Passes,
    pixels: Vec<u8>,
}

/// The passes along the stored picture's axes, in the order that makes rows of the upright page come first: rounding
/// between the passes is not the same in the other order.
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

    /// The page upright.
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
            against_x,
            against_y,
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
        let rows = taps(width, self.scaled.0, against_x).map(|taps| Horizontal::new(taps, width as usize));
        let columns = taps(height, self.scaled.1, against_y);
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
