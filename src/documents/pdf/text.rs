//! Glyphs with their places → words.

use hayro::hayro_interpret::hayro_cmap::BfString;
use hayro::kurbo::{Affine, Point, Rect, Vec2};

use crate::documents::page::MAX_TEXT_BYTES;
use crate::documents::{TextLayer, Word};

/// Units of an em in glyph space.
const EM: f64 = 1000.0;
/// Extent of a line above and below its baseline, in glyph space.
const ASCENT: f64 = 750.0;
const DESCENT: f64 = 220.0;
/// Distances that part words, in em: along the line, backwards, and across it.
const GAP: f64 = 0.15;
const BACK: f64 = 0.5;
const SHIFT: f64 = 0.3;
/// Words before one that it is compared with: bold type is imitated by drawing a text twice.
const REPEATED_WITHIN: usize = 64;
/// Memory of a word besides its text.
const WORD_BYTES: usize = 64;

/// Collects the words of a page.
pub(super) struct TextCollector {
    /// The page; words outside of it cannot be seen.
    page: Rect,
    words: Vec<Word>,
    word: Option<OpenWord>,
    bytes: usize,
}

struct OpenWord {
    text: String,
    bounds: Rect,
    /// Where the next glyph is expected.
    end: Point,
    /// Direction of writing, length 1.
    along: Vec2,
    em: f64,
    hidden: bool,
}

impl TextCollector {
    pub(super) fn new(page: Rect) -> Self {
        Self {
            page,
            words: Vec::new(),
            word: None,
            bytes: 0,
        }
    }

    /// Adds a glyph; `place` maps glyph space to the page.
    pub(super) fn glyph(
        &mut self,
        text: Option<BfString>,
        place: Affine,
        advance: Option<f32>,
        hidden: bool,
    ) {
        let mut buffer = [0; 4];
        let text = match &text {
            Some(BfString::Char(character)) => &*character.encode_utf8(&mut buffer),
            Some(BfString::String(text)) => text.as_str(),
            None => "\u{fffd}",
        };
        let origin = place * Point::ZERO;
        let end = place * Point::new(f64::from(advance.unwrap_or(EM as f32 / 2.0)), 0.0);
        let em_vector = place * Point::new(EM, 0.0) - origin;
        let em = em_vector.hypot();
        let is_space = text
            .chars()
            .all(|character| character.is_whitespace() || character.is_control());
        if is_space || !em.is_finite() || em <= 0.0 || !origin.is_finite() {
            self.end_word();
            return;
        }
        let along = em_vector / em;
        if self
            .word
            .as_ref()
            .is_some_and(|word| word.hidden != hidden || !word.continues_at(origin))
        {
            self.end_word();
        }
        let corners = [(0.0, ASCENT), (0.0, -DESCENT)].map(|(x, y)| place * Point::new(x, y));
        let shift = end - origin;
        let bounds = Rect::from_points(corners[0], corners[1])
            .union(Rect::from_points(corners[0] + shift, corners[1] + shift));
        let word = self.word.get_or_insert_with(|| OpenWord {
            text: String::new(),
            bounds,
            end,
            along,
            em,
            hidden,
        });
        word.text.extend(
            text.chars()
                .filter(|character| !character.is_control() && !character.is_whitespace()),
        );
        word.bounds = word.bounds.union(bounds);
        (word.end, word.along, word.em) = (end, along, em);
    }

    fn end_word(&mut self) {
        let Some(word) = self.word.take() else { return };
        let is_outside = !word.bounds.overlaps(self.page);
        if is_outside || self.bytes > MAX_TEXT_BYTES / 2 {
            return;
        }
        let bounds = [word.bounds.x0, word.bounds.y0, word.bounds.x1, word.bounds.y1].map(|side| side as f32);
        let near = 0.15 * word.em as f32;
        let is_repeated = self.words.iter().rev().take(REPEATED_WITHIN).any(|other| {
            let mut sides = other.bounds.iter().zip(bounds);
            other.text == word.text && sides.all(|(one, other)| (one - other).abs() < near)
        });
        if !is_repeated {
            self.bytes += word.text.len() + WORD_BYTES;
            self.words.push(Word {
                text: word.text,
                bounds,
                hidden: word.hidden,
            });
        }
    }

    /// The text layer; `None` without words.
    pub(super) fn finish(mut self) -> Option<TextLayer> {
        self.end_word();
        (!self.words.is_empty()).then_some(TextLayer { words: self.words })
    }
}

impl OpenWord {
    /// Whether a glyph at `origin` belongs to this word.
    fn continues_at(&self, origin: Point) -> bool {
        let gap = (origin - self.end) / self.em;
        let (along, across) = (gap.dot(self.along), gap.cross(self.along).abs());
        along < GAP && along > -BACK && across < SHIFT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Places each character half an em after the one before, 10 pixels an em; a digit moves by so many tenths of an em.
    fn words(text: &str) -> Vec<String> {
        let mut collector = TextCollector::new(Rect::new(0.0, 0.0, 1000.0, 100.0));
        let mut x = 0.0;
        for character in text.chars() {
            if let Some(tenths) = character.to_digit(10) {
                x += f64::from(tenths);
                continue;
            }
            let place = Affine::translate((x, 50.0)) * Affine::scale_non_uniform(0.01, -0.01);
            collector.glyph(Some(BfString::Char(character)), place, Some(500.0), false);
            x += 5.0;
        }
        let layer = collector.finish().unwrap_or_default();
        layer.words.into_iter().map(|word| word.text).collect()
    }

    #[test]
    fn spaces_and_gaps_part_words() {
        assert_eq!(words("to be"), ["to", "be"]);
        assert_eq!(words("to3be"), ["to", "be"]);
        assert_eq!(words("t1o"), ["to"], "spaced type");
        assert_eq!(words(" "), Vec::<String>::new());
    }

    #[test]
    fn a_word_has_its_place_and_one_drawn_twice_counts_once() {
        let mut collector = TextCollector::new(Rect::new(0.0, 0.0, 100.0, 100.0));
        for x in [10.0, 10.4, 500.0] {
            let place = Affine::translate((x, 50.0)) * Affine::scale_non_uniform(0.01, -0.01);
            collector.glyph(Some(BfString::Char('A')), place, Some(700.0), false);
            collector.end_word();
        }
        let words = collector.finish().unwrap().words;
        assert_eq!(words.len(), 1);
        assert_eq!(words[0].bounds, [10.0, 42.5, 17.0, 52.2]);
    }
}
