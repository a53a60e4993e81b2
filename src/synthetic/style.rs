//! Page style: font, size, paper and degradation.

use super::{
    fonts::{FAMILIES, SIZES},
    vocabulary::Split,
};
use crate::random::SeededRng;
use crate::rendering::{EVALUATION_PAGE, PageSize, TEST_PAGE};

/// Typesetting of a page.
pub(super) enum PageStyle {
    /// Like the benchmark documents: DejaVu Sans Mono, border, navy title.
    Document { size: PageSize, columns: usize },
    /// Like the rendered MTSamples reports.
    Report,
    /// Any font, clean or degraded.
    Sheet(Sheet),
}

/// A page in any font. Lengths in pixels.
pub(super) struct Sheet {
    pub(super) family: usize,
    pub(super) pixels: u16,
    pub(super) title_pixels: u16,
    pub(super) hinted: bool,
    pub(super) bold_headings: bool,
    pub(super) line_height: u32,
    /// Characters per line, on average.
    pub(super) columns: u32,
    pub(super) margin: u32,
    pub(super) border: bool,
    pub(super) rules: bool,
    /// Number of blocks, for a label or cropped part of a document that is no larger than its text.
    pub(super) crop: Option<usize>,
    pub(super) degradation: Option<Degradation>,
}

/// What pens, stamps, scanner and compression do to a page.
pub(super) struct Degradation {
    /// Grey levels of letters and paper.
    pub(super) ink: u8,
    pub(super) paper: u8,
    pub(super) skew_degrees: f64,
    /// Weight of each neighbour in the blur kernel, of 256, and the number of passes.
    pub(super) blur: u32,
    pub(super) blur_passes: usize,
    /// Standard deviation, grey levels.
    pub(super) noise: f64,
    /// Brightness gradient, grey levels from edge to edge: horizontal, vertical.
    pub(super) shade: [f64; 2],
    pub(super) specks: usize,
    pub(super) stamps: usize,
    pub(super) pen_marks: usize,
    /// Quality; `None`: PNG.
    pub(super) jpeg: Option<u8>,
}

impl PageStyle {
    /// A random style.
    pub(super) fn sample(split: Split, rng: &mut SeededRng) -> Self {
        match rng.below(100) {
            0..18 => Self::Document {
                size: *rng.pick(&[TEST_PAGE, EVALUATION_PAGE]),
                columns: rng.between(72, 98),
            },
            18..28 => Self::Report,
            _ => Self::Sheet(Sheet::sample(split, rng)),
        }
    }

    /// Name in records, which group their figures by it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Document { .. } => "document",
            Self::Report => "report",
            Self::Sheet(sheet) if sheet.degradation.is_none() => "typed",
            Self::Sheet(_) => "scanned",
        }
    }

    /// Font family and body size in pixels.
    pub(super) fn font(&self) -> (&'static str, u16) {
        match self {
            Self::Document { .. } => (FAMILIES[0].id, 13),
            Self::Report => (FAMILIES[0].id, 12),
            Self::Sheet(sheet) => (FAMILIES[sheet.family].id, sheet.pixels),
        }
    }
}

impl Sheet {
    fn sample(split: Split, rng: &mut SeededRng) -> Self {
        let mut size = || rng.between(SIZES[0].into(), SIZES[1].into()) as u16;
        let pixels = match split {
            // Small print takes longest to learn: sample it more often.
            Split::Train => size().min(size()),
            _ => size(),
        };
        let crop = rng.chance(0.12).then(|| rng.between(1, 6));
        let mut degradation = rng.chance(0.62).then(|| Degradation::sample(rng, pixels));
        if let (Some(degradation), Some(_)) = (&mut degradation, crop) {
            // On a small crop they would cover the text.
            (degradation.stamps, degradation.pen_marks, degradation.specks) = (0, 0, degradation.specks / 10);
        }
        let (columns, margin) = match crop {
            None => ([52, 92], [22, 48]),
            Some(_) => ([20, 64], [8, 32]),
        };
        // Wide enough for the corners of a skewed page.
        let slant = degradation
            .as_ref()
            .map_or(0.0, |degradation| degradation.skew_degrees.abs());
        Self {
            family: rng.below(FAMILIES.len()),
            pixels,
            title_pixels: (f64::from(pixels) * rng.range(1.0, 1.5)) as u16,
            hinted: rng.chance(0.5),
            bold_headings: rng.chance(0.5),
            line_height: (f64::from(pixels) * rng.range(1.25, 1.65)).ceil() as u32,
            columns: rng.between(columns[0], columns[1]) as u32,
            margin: rng.between(margin[0], margin[1]) as u32 + (slant * 8.0) as u32,
            border: rng.chance(0.25),
            rules: rng.chance(0.3),
            crop,
            degradation,
        }
    }
}

impl Degradation {
    /// Random degradation of every kind, weaker for small letters, which would become illegible.
    fn sample(rng: &mut SeededRng, pixels: u16) -> Self {
        let strength = (f64::from(pixels) / 16.0).clamp(0.55, 1.2);
        let greyest = if rng.chance(0.5) { 225 } else { 165 };
        let paper = rng.between(greyest, 255);
        // Contrast of at least 85 levels.
        let palest = if rng.chance(0.7) {
            60
        } else {
            (paper - 85).min(140)
        };
        let ink = rng.below(palest);
        let sometimes = |rng: &mut SeededRng, chance: f64, most: f64| {
            if rng.chance(chance) {
                rng.range(0.0, most)
            } else {
                0.0
            }
        };
        // Low contrast tolerates less noise.
        let noise = sometimes(rng, 0.7, 0.1 * (paper - ink) as f64 * strength);
        let jpeg = (noise > 0.0 || rng.chance(0.6)).then(|| rng.between(40, 92) as u8);
        Self {
            ink: ink as u8,
            paper: paper as u8,
            skew_degrees: sometimes(rng, 0.3, 3.0) - sometimes(rng, 0.3, 3.0),
            blur: sometimes(rng, 0.6, 70.0 * strength) as u32,
            blur_passes: rng.between(1, if pixels >= 15 { 2 } else { 1 }),
            noise,
            shade: [rng.range(-24.0, 24.0), rng.range(-24.0, 24.0)],
            specks: sometimes(rng, 0.4, 500.0) as usize,
            stamps: usize::from(rng.chance(0.3)),
            pen_marks: if rng.chance(0.4) { rng.between(1, 4) } else { 0 },
            jpeg,
        }
    }
}
