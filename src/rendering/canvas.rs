//! A white canvas for rectangles and lines of text.

use std::borrow::Cow;

use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use super::typeface::{Face, Glyph};

/// Pixels of `N` bytes: 1 for grey, 3 for RGB.
pub(crate) struct Canvas<const CHANNELS: usize> {
    width: usize,
    height: usize,
    pixels: Vec<[u8; CHANNELS]>,
}

impl<const CHANNELS: usize> Canvas<CHANNELS> {
    /// A white canvas.
    pub(crate) fn new(width: u32, height: u32) -> Self {
        let (width, height) = (width as usize, height as usize);
        Self {
            width,
            height,
            pixels: vec![[255; CHANNELS]; width * height],
        }
    }

    /// The pixels, row by row.
    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.pixels.into_flattened()
    }

    /// Fills the rectangle between two corners, both included; clips at the edges.
    pub(crate) fn fill(&mut self, from: (u32, u32), to: (u32, u32), ink: [u8; CHANNELS]) {
        let columns = from.0 as usize..(to.0 as usize + 1).min(self.width);
        for row in from.1 as usize..(to.1 as usize + 1).min(self.height) {
            let row = self.pixels.get_mut(row * self.width..).unwrap_or_default();
            row.get_mut(columns.clone()).unwrap_or_default().fill(ink);
        }
    }

    /// Draws a line of text with its top left corner at (`x`, `y`); clips at the edges.
    pub(crate) fn text(&mut self, x: u32, y: u32, line: &str, face: &Face, ink: [u8; CHANNELS]) {
        let baseline = y as i32 + face.ascent;
        let mut pen = x as i32 * 64;
        for character in printable(line).chars() {
            // The pen position is fractional; glyphs are drawn at the nearest pixel.
            let column = (pen + 32) >> 6;
            if column >= self.width as i32 {
                break;
            }
            let glyph = face.glyph(character);
            self.stamp(column, baseline, glyph, ink);
            pen += glyph.advance;
        }
    }

    fn stamp(&mut self, column: i32, baseline: i32, glyph: &Glyph, ink: [u8; CHANNELS]) {
        if glyph.width == 0 {
            return;
        }
        let left = column + glyph.left;
        let hidden = usize::try_from(-left).unwrap_or(0);
        let start = left.max(0) as usize;
        for (index, coverage) in glyph.coverage.chunks_exact(glyph.width).enumerate() {
            let Ok(row) = usize::try_from(baseline + glyph.top + index as i32) else {
                continue;
            };
            if row >= self.height || start >= self.width {
                continue;
            }
            let row = &mut self.pixels[row * self.width + start..(row + 1) * self.width];
            let coverage = coverage.get(hidden..).unwrap_or_default();
            for (pixel, coverage) in row.iter_mut().zip(coverage) {
                for (channel, ink) in pixel.iter_mut().zip(ink) {
                    *channel = blend(*channel, ink, *coverage);
                }
            }
        }
    }
}

/// Blends `ink` over `paper`, rounded as in Pillow.
fn blend(paper: u8, ink: u8, coverage: u8) -> u8 {
    let mixed = u32::from(paper) * u32::from(255 - coverage) + u32::from(ink) * u32::from(coverage) + 128;
    (((mixed >> 8) + mixed) >> 8) as u8
}

/// Text to draw: composed characters (NFC), tabs as spaces, without zero-width characters.
fn printable(line: &str) -> Cow<'_, str> {
    let plain = |character: char| matches!(character, ' '..='~');
    if line.chars().all(plain) {
        return Cow::Borrowed(line);
    }
    let shown = line
        .chars()
        .map(|character| if character == '\t' { ' ' } else { character })
        .filter(|character| !character.is_control() && !takes_no_room(*character));
    if is_nfc_quick(line.chars()) == IsNormalized::Yes {
        Cow::Owned(shown.collect())
    } else {
        Cow::Owned(shown.nfc().collect())
    }
}

fn takes_no_room(character: char) -> bool {
    matches!(
        character,
        '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2064}' | '\u{feff}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rendering::typeface::BODY;
    use proptest::prelude::*;

    #[test]
    fn blending_ends_at_paper_and_ink() {
        for paper in 0..=255 {
            assert_eq!(blend(paper, 7, 0), paper);
            assert_eq!(blend(paper, 7, 255), 7);
        }
        assert_eq!(blend(255, 0, 128), 127);
    }

    #[test]
    fn combining_marks_are_composed_and_zero_width_characters_dropped() {
        assert_eq!(printable("plain"), "plain");
        assert_eq!(printable("e\u{301}\tn\u{200b}o\u{1}"), "\u{e9} no");
        assert!(matches!(printable("plain"), Cow::Borrowed(_)));
    }

    proptest! {
        #[test]
        fn text_is_clipped_at_the_edges(line in any::<String>(), x in 0u32..80, y in 0u32..50, width in 1u32..60, height in 1u32..40) {
            let mut sheet = Canvas::<1>::new(width, height);
            sheet.text(x, y, &line, &BODY, [0]);
            sheet.fill((x, y), (x + width, y + 1), [9]);
            prop_assert_eq!(sheet.into_bytes().len(), (width * height) as usize);
        }
    }
}
