//! One frame: samples → modality → window → 8 bits.

use std::borrow::Cow;

use dicom_encoding::adapters::PixelDataObject;
use dicom_object::{DefaultDicomObject, Tag};
use dicom_pixeldata::{
    DecodedPixelData, OverlayPlane, OverlayType, PixelDecoder, PixelRepresentation, PlanarConfiguration,
    VoiLutFunction, WindowLevelTransform,
};

use super::colour::{self, Palette};
use super::{DocumentPage, PIXEL_DATA, RenderOptions, text, unread};
use crate::error::DocumentError;
use crate::processing::{DecodedPage, decode_jpeg_samples, scaled_rgb};

const PHOTOMETRIC: Tag = Tag(0x0028, 0x0004);
const ROWS: Tag = Tag(0x0028, 0x0010);
const COLUMNS: Tag = Tag(0x0028, 0x0011);
const BITS_ALLOCATED: Tag = Tag(0x0028, 0x0100);

const JPEG_BASELINE: &str = "1.2.840.10008.1.2.4.50";
const JPEG_EXTENDED: &str = "1.2.840.10008.1.2.4.51";

/// Transfer syntaxes that are refused by their names.
const UNSUPPORTED: [(&str, &str); 12] = [
    ("1.2.840.10008.1.2.4.80", "JPEG-LS"),
    ("1.2.840.10008.1.2.4.81", "JPEG-LS"),
    ("1.2.840.10008.1.2.4.92", "JPEG 2000 Part 2"),
    ("1.2.840.10008.1.2.4.93", "JPEG 2000 Part 2"),
    ("1.2.840.10008.1.2.4.110", "JPEG XL"),
    ("1.2.840.10008.1.2.4.111", "JPEG XL"),
    ("1.2.840.10008.1.2.4.112", "JPEG XL"),
    ("1.2.840.10008.1.2.4.201", "High-Throughput JPEG 2000"),
    ("1.2.840.10008.1.2.4.202", "High-Throughput JPEG 2000"),
    ("1.2.840.10008.1.2.4.203", "High-Throughput JPEG 2000"),
    ("1.2.840.10008.1.2.4.94", "JPIP"),
    ("1.2.840.10008.1.2.4.95", "JPIP"),
];

fn unsupported(what: impl Into<Cow<'static, str>>) -> DocumentError {
    DocumentError::Unsupported(what.into())
}

fn damaged() -> DocumentError {
    DocumentError::Damaged(Cow::Borrowed("DICOM file"))
}

/// Decodes a frame.
pub(super) fn page(
    object: &DefaultDicomObject,
    index: u32,
    options: &RenderOptions<'_>,
) -> Result<DocumentPage, DocumentError> {
    let syntax = object.meta().transfer_syntax();
    if let Some((_, name)) = UNSUPPORTED.iter().find(|(uid, _)| *uid == syntax) {
        return Err(unsupported(format!("{name} in a DICOM file")));
    }
    if syntax.starts_with("1.2.840.10008.1.2.4.10") {
        return Err(unsupported("video in a DICOM file"));
    }
    let number = |tag| {
        let element = object.element_opt(tag).ok().flatten();
        element
            .and_then(|element| element.to_int::<u32>().ok())
            .ok_or_else(damaged)
    };
    let (width, height, allocated) = (number(COLUMNS)?, number(ROWS)?, number(BITS_ALLOCATED)?);
    options.limits.check(width, height)?;
    if !matches!(allocated, 1 | 8 | 16) {
        return Err(unsupported(format!("DICOM with samples of {allocated} bits")));
    }
    let photometric = text(object, PHOTOMETRIC).unwrap_or_default();
    let compressed = object.number_of_fragments().is_some();
    if photometric == "YBR_FULL_422" && !compressed && allocated == 8 {
        // The library takes three bytes a pixel for granted, and finds too few.
        let rgb = uncompressed_422(object, index, (width as usize, height as usize)).ok_or_else(damaged)?;
        return finished(object, index, rgb, (width, height), options);
    }
    let decoded = object.decode_pixel_data_frame(index);
    let own = match syntax {
        JPEG_BASELINE | JPEG_EXTENDED => {
            let stored = object.frame_pixel_data(index).ok_or_else(damaged)?;
            Some(decode_jpeg_samples(&stored, &options.limits)?)
        }
        _ => None,
    };
    let decoded = decoded.map_err(|error| unread(&error))?;
    let samples = Samples {
        width: width as usize,
        height: height as usize,
        channels: decoded.samples_per_pixel().into(),
        allocated,
        stored: decoded.bits_stored().into(),
        signed: decoded.pixel_representation() == PixelRepresentation::Signed,
        bytes: match &own {
            Some(own) if (own.width, own.height) == (width, height) => Cow::Borrowed(&own.samples),
            Some(_) => return Err(damaged()),
            None => Cow::Borrowed(decoded.data()),
        },
        planar: own.is_none() && decoded.planar_configuration() == PlanarConfiguration::PixelFirst,
    };
    let rgb = match (photometric.as_str(), samples.channels) {
        ("MONOCHROME1" | "MONOCHROME2", 1) => {
            let inverted = photometric == "MONOCHROME1";
            grey(&samples, &decoded, index, inverted)?
        }
        ("PALETTE COLOR", 1) => Palette::read(object)
            .ok_or_else(damaged)?
            .apply(&samples.integers()?),
        ("RGB", 3) => samples.eight_bits()?,
        // JPEG 2000 and lossless JPEG come as RGB.
        ("YBR_ICT" | "YBR_RCT", 3) => samples.eight_bits()?,
        ("YBR_FULL" | "YBR_FULL_422", 3) if own.is_some() || !is_transformed(syntax) => {
            colour::from_ybr(samples.eight_bits()?)
        }
        ("YBR_FULL" | "YBR_FULL_422", 3) => samples.eight_bits()?,
        _ => {
            return Err(unsupported(format!(
                "DICOM with the colours {}",
                named(&photometric)
            )));
        }
    };
    drop(decoded);
    finished(object, index, rgb, (width, height), options)
}

/// A page of the frame's colours, with its overlays, scaled.
fn finished(
    object: &DefaultDicomObject,
    index: u32,
    mut rgb: Vec<u8>,
    size: (u32, u32),
    options: &RenderOptions<'_>,
) -> Result<DocumentPage, DocumentError> {
    for plane in object.decode_overlays().unwrap_or_default() {
        draw(&plane, index, &mut rgb, size);
    }
    let page = scaled_rgb(&rgb, size, options.bounds)?;
    let warnings = Vec::new();
    Ok(DocumentPage {
        number: index + 1,
        ..DecodedPage { page, warnings }.into()
    })
}

/// A frame of two bytes a pixel.
fn uncompressed_422(
    object: &DefaultDicomObject,
    index: u32,
    (width, height): (usize, usize),
) -> Option<Vec<u8>> {
    let data = object.element_opt(PIXEL_DATA).ok()??.to_bytes().ok()?;
    let frame = (width * height).div_ceil(2) * 4;
    let start = frame.checked_mul(index as usize)?;
    colour::from_422(data.get(start..start.checked_add(frame)?)?, width, height)
}

/// Whether the library converts colours of this transfer syntax: JPEG 2000.
fn is_transformed(syntax: &str) -> bool {
    matches!(syntax, "1.2.840.10008.1.2.4.90" | "1.2.840.10008.1.2.4.91")
}

/// The name, or a word for one that could be anything.
fn named(photometric: &str) -> &'static str {
    const NAMES: [&str; 6] = ["ARGB", "CMYK", "HSV", "YBR_PARTIAL_422", "YBR_PARTIAL_420", "XYB"];
    NAMES
        .into_iter()
        .find(|name| *name == photometric)
        .unwrap_or("of another kind")
}

struct Samples<'a> {
    width: usize,
    height: usize,
    channels: usize,
    allocated: u32,
    stored: u32,
    signed: bool,
    bytes: Cow<'a, [u8]>,
    /// One channel after the other.
    planar: bool,
}

impl Samples<'_> {
    fn count(&self) -> usize {
        self.width * self.height * self.channels
    }

    /// All samples, interleaved.
    fn integers(&self) -> Result<Vec<i32>, DocumentError> {
        let stored = self.stored.clamp(1, self.allocated);
        // Above them there may be overlays.
        let unused = 32 - if self.allocated == 1 { 8 } else { stored };
        let sample = |raw: u32| match self.signed {
            true => (raw << unused) as i32 >> unused,
            false => (raw << unused >> unused) as i32,
        };
        let count = self.count();
        let values: Vec<i32> = match self.allocated {
            16 => self
                .bytes
                .as_chunks::<2>()
                .0
                .iter()
                .map(|bytes| sample(u16::from_ne_bytes(*bytes).into()))
                .collect(),
            _ => self.bytes.iter().map(|byte| sample((*byte).into())).collect(),
        };
        let mut values = values;
        // Padded to an even length.
        values.truncate(count);
        if values.len() < count {
            return Err(damaged());
        }
        if !self.planar {
            return Ok(values);
        }
        let plane = self.width * self.height;
        let pixels =
            (0..plane).flat_map(|pixel| (0..self.channels).map(move |channel| channel * plane + pixel));
        Ok(pixels.map(|at| values[at]).collect())
    }

    /// All samples in 8 bits, interleaved.
    fn eight_bits(&self) -> Result<Vec<u8>, DocumentError> {
        let down = self.stored.saturating_sub(8);
        Ok(self
            .integers()?
            .into_iter()
            .map(|value| (value >> down).clamp(0, 255) as u8)
            .collect())
    }
}

/// Grey values: the modality's scale, then the file's window or table, or the range of the frame.
fn grey(
    samples: &Samples<'_>,
    decoded: &DecodedPixelData<'_>,
    index: u32,
    inverted: bool,
) -> Result<Vec<u8>, DocumentError> {
    let values = samples.integers()?;
    let rescale = decoded.rescale().ok().and_then(|all| all.first()).copied();
    let real = |value: i32| match rescale {
        Some(rescale) => rescale.apply(value.into()),
        None => f64::from(value),
    };
    let tables = decoded.voi_lut_sequence().ok().flatten().unwrap_or_default();
    let table = tables.get(index as usize).or(tables.first());
    let window = decoded
        .window()
        .ok()
        .flatten()
        .and_then(|all| all.first())
        .copied();
    let window =
        window.filter(|window| window.width.is_finite() && window.width >= 1.0 && window.center.is_finite());
    let function = decoded
        .voi_lut_function()
        .ok()
        .flatten()
        .and_then(|all| all.first())
        .copied();
    let shade: Box<dyn Fn(f64) -> f64> = if let Some(table) = table.filter(|table| !table.data.is_empty()) {
        let (first, bits) = (table.min_pixel_value, table.bits_stored);
        Box::new(move |value| looked_up(&table.data, first, bits, value))
    } else if let Some(window) = window {
        let transform = WindowLevelTransform::new(function.unwrap_or(VoiLutFunction::Linear), window);
        Box::new(move |value| transform.apply(value, 255.0))
    } else if samples.allocated <= 8
        && rescale.is_none_or(|rescale| rescale.slope == 1.0 && rescale.intercept == 0.0)
    {
        // Eight bits are meant for the screen.
        let most = f64::from((1_u32 << samples.stored.clamp(1, 8)) - 1);
        let most = if samples.allocated == 1 { 255.0 } else { most };
        Box::new(move |value| value * 255.0 / most)
    } else {
        let (low, high) = values
            .iter()
            .map(|value| real(*value))
            .fold((f64::MAX, f64::MIN), |(low, high), value| {
                (low.min(value), high.max(value))
            });
        let range = (high - low).max(f64::MIN_POSITIVE);
        Box::new(move |value| (value - low) / range * 255.0)
    };
    let mut rgb = Vec::with_capacity(values.len() * 3);
    let mut last = None;
    for value in values {
        let level = match last {
            Some((known, level)) if known == value => level,
            // Saturates; NaN becomes 0.
            _ => (shade(real(value)) + 0.5) as u8,
        };
        last = Some((value, level));
        let shown = if inverted { 255 - level } else { level };
        rgb.extend([shown; 3]);
    }
    Ok(rgb)
}

/// The entry of a table that is not empty, which begins at the value `first`.
fn looked_up(table: &[u16], first: i32, bits: u8, value: f64) -> f64 {
    let at = (value - f64::from(first)).clamp(0.0, (table.len() - 1) as f64) as usize;
    let most = (1_u32 << bits.clamp(1, 16)) - 1;
    f64::from(table[at]) * 255.0 / f64::from(most)
}

/// Draws a graphics overlay in white.
fn draw(plane: &OverlayPlane, index: u32, rgb: &mut [u8], (width, height): (u32, u32)) {
    if plane.overlay_type() != OverlayType::Graphics {
        return;
    }
    let Some(frame) = plane.frame_for_image_frame(index) else {
        return;
    };
    let [top, left] = plane.origin();
    for row in 0..u32::from(plane.rows()) {
        for column in 0..u32::from(plane.columns()) {
            let (y, x) = (
                i64::from(row) + i64::from(top) - 1,
                i64::from(column) + i64::from(left) - 1,
            );
            let is_inside = (0..i64::from(height)).contains(&y) && (0..i64::from(width)).contains(&x);
            if is_inside && plane.is_set(frame, row, column) {
                let at = (y as usize * width as usize + x as usize) * 3;
                rgb[at..at + 3].fill(255);
            }
        }
    }
}
