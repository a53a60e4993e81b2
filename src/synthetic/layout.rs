//! Typesetting: blocks → lines of text on a page.

use std::collections::{HashMap, HashSet};

use super::{
    content::{Block, Body, Item, ItemKind},
    fonts::face,
    style::Sheet,
};
use crate::rendering::{Canvas, Face, GreyPage, collapse_whitespace};

/// Maximum number of characters per page: the transcription then fits into 640 tokens of the embedded model.
const MAX_CHARACTERS: usize = 1400;
/// Width and height are multiples of this, so that the image processor does not resize the page.
const STEP: u32 = 28;
/// Minimum and maximum width, minimum and maximum height, pixels.
const PAGE_BOUNDS: [[u32; 2]; 2] = [[560, 924], [560, 1204]];
const CROP_BOUNDS: [[u32; 2]; 2] = [[84, 924], [56, 1204]];

/// Text and items that fit on a page.
pub(super) struct PageContent {
    /// Lines with runs of spaces collapsed, without empty ones.
    pub(super) lines: Vec<String>,
    /// In reading order.
    pub(super) items: Vec<Item>,
}

/// A line: pieces of text with their distance from the left margin.
struct Line {
    pieces: Vec<(u32, String)>,
}

impl Line {
    fn text(&self) -> String {
        let texts: Vec<&str> = self.pieces.iter().map(|(_, text)| text.as_str()).collect();
        collapse_whitespace(&texts.join(" "))
    }
}

/// Breaks blocks into lines. Lengths are in the unit of `measure`: pixels or characters.
struct Typesetter<'a> {
    width: u32,
    /// Between columns.
    gap: u32,
    measure: &'a dyn Fn(&str, Weight) -> u32,
    /// Widths of the columns of each table.
    columns: HashMap<usize, Vec<u32>>,
}

impl<'a> Typesetter<'a> {
    fn new(blocks: &[Block], width: u32, gap: u32, measure: &'a dyn Fn(&str, Weight) -> u32) -> Self {
        let mut columns: HashMap<usize, Vec<u32>> = HashMap::new();
        for block in blocks {
            if let Body::Row { table, cells } = &block.body {
                let widths = columns.entry(*table).or_default();
                widths.resize(widths.len().max(cells.len()), 0);
                for (width, cell) in widths.iter_mut().zip(cells) {
                    *width = (*width).max(measure(cell, Weight::Body));
                }
            }
        }
        Self {
            width,
            gap,
            measure,
            columns,
        }
    }

    fn lines(&self, body: &Body) -> Vec<Line> {
        match body {
            Body::Title(text) => self.wrapped(text, Weight::Title),
            Body::Heading(text) => self.wrapped(text, Weight::Heading),
            Body::Text(text) => self.wrapped(text, Weight::Body),
            Body::Row { table, cells } => {
                let widths = self.columns.get(table).map(Vec::as_slice).unwrap_or_default();
                let total: u32 = widths.iter().map(|width| width + self.gap).sum();
                if total > self.width + self.gap {
                    return self.wrapped(&cells.join("  "), Weight::Body);
                }
                let mut left = 0;
                let mut pieces = Vec::new();
                for (cell, width) in cells.iter().zip(widths) {
                    if !cell.is_empty() {
                        pieces.push((left, cell.clone()));
                    }
                    left += width + self.gap;
                }
                vec![Line { pieces }]
            }
        }
    }

    /// Breaks at spaces; runs of spaces within a line are kept.
    fn wrapped(&self, text: &str, weight: Weight) -> Vec<Line> {
        let mut lines = vec![String::new()];
        for word in text.split(' ') {
            let line = lines.last_mut().map(std::mem::take).unwrap_or_default();
            let longer = if line.is_empty() {
                word.to_owned()
            } else {
                format!("{line} {word}")
            };
            let index = lines.len() - 1;
            if line.is_empty() || (self.measure)(longer.trim_end(), weight) <= self.width {
                lines[index] = longer;
            } else {
                lines[index] = line;
                lines.push(word.to_owned());
            }
        }
        let pieces = |line: String| vec![(0, line.trim_end().to_owned())];
        lines
            .into_iter()
            .map(|line| Line { pieces: pieces(line) })
            .collect()
    }
}

/// Places blocks in order, until `place` returns false: no space left for the block's lines.
fn fill(
    blocks: Vec<Block>,
    typesetter: &Typesetter<'_>,
    mut place: impl FnMut(&Body, &[Line]) -> bool,
) -> PageContent {
    let (mut lines, mut items) = (Vec::new(), Vec::new());
    let mut characters = 0;
    for block in blocks {
        let set = typesetter.lines(&block.body);
        let texts: Vec<String> = set
            .iter()
            .map(Line::text)
            .filter(|line| !line.is_empty())
            .collect();
        characters += texts.iter().map(|line| line.chars().count() + 1).sum::<usize>();
        if characters > MAX_CHARACTERS || !place(&block.body, &set) {
            break;
        }
        lines.extend(texts);
        items.extend(block.items);
    }
    PageContent { lines, items }
}

/// Fixed-pitch typesetting in characters: the title and at most `max_lines` lines.
pub(super) fn fixed_pitch(
    blocks: Vec<Block>,
    columns: usize,
    max_lines: usize,
) -> (String, Vec<String>, PageContent) {
    let measure = |text: &str, _: Weight| text.chars().count() as u32;
    let typesetter = Typesetter::new(&blocks, columns as u32, 3, &measure);
    let (mut title, mut output) = (String::new(), Vec::new());
    let content = fill(blocks, &typesetter, |body, lines| {
        if output.len() + lines.len() > max_lines {
            return false;
        }
        for line in lines {
            let mut text = String::new();
            for (left, piece) in &line.pieces {
                let missing = (*left as usize).saturating_sub(text.chars().count());
                text.extend(std::iter::repeat_n(' ', missing));
                text.push_str(piece);
            }
            match body {
                Body::Title(_) if title.is_empty() => title = text,
                _ => output.push(text),
            }
        }
        true
    });
    (title, output, content)
}

/// Proportional typesetting: black on white, sized to its text.
pub(super) fn sheet(blocks: Vec<Block>, sheet: &Sheet) -> (GreyPage, PageContent) {
    let faces = Faces::of(sheet);
    let measure = |text: &str, weight: Weight| faces.face(weight).width(text);
    let sample = "The patient takes 12.5 mg of it twice a day, with meals.";
    let wanted = faces.body.width(sample) * sheet.columns / sample.len() as u32 + 2 * sheet.margin;
    // A narrow crop must fit its longest word.
    let words = blocks.iter().flat_map(|block| block.body.words());
    let longest = words.map(|word| measure(word, Weight::Title).max(measure(word, Weight::Body)));
    let wanted = wanted.max(longest.max().unwrap_or_default() + 2 * sheet.margin);
    let [[narrowest, widest], [lowest, highest]] = if sheet.crop.is_some() {
        CROP_BOUNDS
    } else {
        PAGE_BOUNDS
    };
    let width = wanted.next_multiple_of(STEP).clamp(narrowest, widest);
    let typesetter = Typesetter::new(&blocks, width - 2 * sheet.margin, sheet.line_height, &measure);
    let mut texts: Vec<(u32, u32, String, &Face)> = Vec::new();
    let mut rules = Vec::new();
    let mut top = sheet.margin;
    let content = fill(blocks, &typesetter, |body, lines| {
        let (weight, height) = match body {
            Body::Title(_) => (Weight::Title, sheet.line_height.max(faces.title_height)),
            Body::Heading(_) => (Weight::Heading, sheet.line_height),
            _ => (Weight::Body, sheet.line_height),
        };
        let face = faces.face(weight);
        let space = if matches!(body, Body::Heading(_)) {
            sheet.line_height / 3
        } else {
            0
        };
        let bottom = top + space + height * lines.len() as u32;
        if bottom + sheet.margin > highest {
            return false;
        }
        top += space;
        for line in lines {
            for (left, piece) in &line.pieces {
                texts.push((sheet.margin + left, top, piece.clone(), face));
            }
            top += height;
        }
        if matches!(body, Body::Title(_)) || sheet.rules && matches!(body, Body::Heading(_)) {
            rules.push(top);
            top += 4;
        }
        true
    });
    let height = (top + sheet.margin).next_multiple_of(STEP).clamp(lowest, highest);
    let mut canvas = Canvas::<1>::new(width, height);
    for (left, top, text, face) in &texts {
        canvas.text(*left, *top, text, face, [0]);
    }
    for rule in rules.iter().filter(|_| sheet.rules) {
        canvas.fill((sheet.margin, *rule), (width - sheet.margin, *rule), [0]);
    }
    if sheet.border {
        border(&mut canvas, width, height, sheet.margin / 2);
    }
    let pixels = canvas.into_bytes();
    (
        GreyPage {
            width,
            height,
            pixels,
        },
        content,
    )
}

fn border(canvas: &mut Canvas<1>, width: u32, height: u32, inset: u32) {
    let (right, bottom) = (width - 1 - inset, height - 1 - inset);
    canvas.fill((inset, inset), (right, inset), [0]);
    canvas.fill((inset, bottom), (right, bottom), [0]);
    canvas.fill((inset, inset), (inset, bottom), [0]);
    canvas.fill((right, inset), (right, bottom), [0]);
}

/// Role of a text, which selects its face.
#[derive(Clone, Copy)]
enum Weight {
    Title,
    Heading,
    Body,
}

struct Faces {
    body: &'static Face,
    heading: &'static Face,
    title: &'static Face,
    title_height: u32,
}

impl Faces {
    fn of(sheet: &Sheet) -> Self {
        let face = |bold, pixels| face(sheet.family, bold, pixels, sheet.hinted);
        Self {
            body: face(false, sheet.pixels),
            heading: face(sheet.bold_headings, sheet.pixels),
            title: face(sheet.bold_headings, sheet.title_pixels),
            title_height: u32::from(sheet.title_pixels) * 4 / 3,
        }
    }

    fn face(&self, weight: Weight) -> &'static Face {
        match weight {
            Weight::Title => self.title,
            Weight::Heading => self.heading,
            Weight::Body => self.body,
        }
    }
}

/// Number of kinds of item on a page, not counting headings.
pub(super) fn count_kinds(content: &PageContent) -> usize {
    let kinds: HashSet<ItemKind> = content.items.iter().map(|item| item.kind).collect();
    kinds.len() - usize::from(kinds.contains(&ItemKind::Heading))
}
