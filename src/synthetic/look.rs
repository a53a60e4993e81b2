//! How a page looks: font, size, paper, and what a scanner and an office do to it.

use super::{
    dice::Dice,
    fonts::{FAMILIES, SIZES},
    vocabulary::Split,
};
use crate::rendering::{EVALUATION_PAGE, PageSize, TEST_PAGE};

/// How a page is set.
pub(super) enum Look {
    /// As the benchmarks' documents: DejaVu Sans Mono, border, navy title.
    Document { size: PageSize, columns: usize },
    /// As the pages of MTSamples' reports.
    Report,
    /// Any font, clean or not.
    Sheet(Sheet),
}

pub(super) struct Sheet {
    pub(super) family: usize,
    pub(super) pixels: u16,
    pub(super) title_pixels: u16,
    pub(super) hinted: bool,
    pub(super) bold_headings: bool,
    pub(super) line_height: u32,
    /// Characters a line, on average.
    pub(super) columns: u32,
    pub(super) margin: u32,
    pub(super) border: bool,
    pub(super) rules: bool,
    /// Of a label or a cutting, which is no larger than what it says: the number of blocks on it.
    pub(super) slip: Option<usize>,
    pub(super) wear: Option<Wear>,
}

/// What happened to a page since it was typed.
pub(super) struct Wear {
    /// Shades of letters and of the sheet.
    pub(super) ink: u8,
    pub(super) paper: u8,
    pub(super) skew_degrees: f64,
    /// Of 256 parts, how many each neighbour gets; and how often.
    pub(super) blur: u32,
    pub(super) blur_passes: usize,
    /// Standard deviation, levels.
    pub(super) noise: f64,
    /// Levels from one edge to the other.
    pub(super) shade: [f64; 2],
    pub(super) specks: usize,
    pub(super) stamps: usize,
    pub(super) strokes: usize,
    pub(super) jpeg: Option<u8>,
}

impl Look {
    pub(super) fn draw(split: Split, dice: &mut Dice) -> Self {
        match dice.below(100) {
            0..18 => Self::Document {
                size: *dice.pick(&[TEST_PAGE, EVALUATION_PAGE]),
                columns: dice.between(72, 98),
            },
            18..28 => Self::Report,
            _ => Self::Sheet(Sheet::draw(split, dice)),
        }
    }

    /// For records: the group that figures are given for.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Document { .. } => "document",
            Self::Report => "report",
            Self::Sheet(sheet) if sheet.wear.is_none() => "typed",
            Self::Sheet(_) => "scanned",
        }
    }

    pub(super) fn font(&self) -> (&'static str, u16) {
        match self {
            Self::Document { .. } => (FAMILIES[0].id, 13),
            Self::Report => (FAMILIES[0].id, 12),
            Self::Sheet(sheet) => (FAMILIES[sheet.family].id, sheet.pixels),
        }
    }
}

impl Sheet {
    fn draw(split: Split, dice: &mut Dice) -> Self {
        let mut size = || dice.between(SIZES[0].into(), SIZES[1].into()) as u16;
        let pixels = match split {
            // Small print takes longest to learn.
            Split::Train => size().min(size()),
            _ => size(),
        };
        let slip = dice.chance(0.12).then(|| dice.between(1, 6));
        let mut wear = dice.chance(0.62).then(|| Wear::draw(dice, pixels));
        if let (Some(wear), Some(_)) = (&mut wear, slip) {
            // On so little room they would hide what it says.
            (wear.stamps, wear.strokes, wear.specks) = (0, 0, wear.specks / 10);
        }
        let (columns, margin) = match slip {
            None => ([52, 92], [22, 48]),
            Some(_) => ([20, 64], [8, 32]),
        };
        // A skewed page's corners stay on the sheet.
        let slant = wear.as_ref().map_or(0.0, |wear| wear.skew_degrees.abs());
        Self {
            family: dice.below(FAMILIES.len()),
            pixels,
            title_pixels: (f64::from(pixels) * dice.range(1.0, 1.5)) as u16,
            hinted: dice.chance(0.5),
            bold_headings: dice.chance(0.5),
            line_height: (f64::from(pixels) * dice.range(1.25, 1.65)).ceil() as u32,
            columns: dice.between(columns[0], columns[1]) as u32,
            margin: dice.between(margin[0], margin[1]) as u32 + (slant * 8.0) as u32,
            border: dice.chance(0.25),
            rules: dice.chance(0.3),
            slip,
            wear,
        }
    }
}

impl Wear {
    /// Faults of every kind and degree; small letters are spared the worst, since nobody could read them.
    fn draw(dice: &mut Dice, pixels: u16) -> Self {
        let strength = (f64::from(pixels) / 16.0).clamp(0.55, 1.2);
        let greyest = if dice.chance(0.5) { 225 } else { 165 };
        let paper = dice.between(greyest, 255);
        // At least 85 levels between them.
        let palest = if dice.chance(0.7) {
            60
        } else {
            (paper - 85).min(140)
        };
        let ink = dice.below(palest);
        let sometimes = |dice: &mut Dice, chance: f64, most: f64| {
            if dice.chance(chance) {
                dice.range(0.0, most)
            } else {
                0.0
            }
        };
        // Faint letters bear less noise than black ones.
        let noise = sometimes(dice, 0.7, 0.1 * (paper - ink) as f64 * strength);
        let jpeg = (noise > 0.0 || dice.chance(0.6)).then(|| dice.between(40, 92) as u8);
        Self {
            ink: ink as u8,
            paper: paper as u8,
            skew_degrees: sometimes(dice, 0.3, 3.0) - sometimes(dice, 0.3, 3.0),
            blur: sometimes(dice, 0.6, 70.0 * strength) as u32,
            blur_passes: dice.between(1, if pixels >= 15 { 2 } else { 1 }),
            noise,
            shade: [dice.range(-24.0, 24.0), dice.range(-24.0, 24.0)],
            specks: sometimes(dice, 0.4, 500.0) as usize,
            stamps: usize::from(dice.chance(0.3)),
            strokes: if dice.chance(0.4) { dice.between(1, 4) } else { 0 },
            jpeg,
        }
    }
}
