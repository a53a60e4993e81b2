//! Blocks → lines of text on a sheet.

use std::collections::{HashMap, HashSet};

use super::{
    content::{Block, Body, Item, ItemKind, collapsed},
    fonts::face,
    look::Sheet,
};
use crate::rendering::{Canvas, Face, GreyPage};

/// Most characters of a page: its text, asked for whole, then fits into 640 tokens of the embedded model.
const MOST_CHARACTERS: usize = 1400;
/// Sides of a sheet are multiples of this, so that no processor resizes it.
const STEP: u32 = 28;
/// Least and most width and height, pixels.
const PAGE: [[u32; 2]; 2] = [[560, 924], [560, 1204]];
const SLIP: [[u32; 2]; 2] = [[84, 924], [56, 1204]];

/// What stands on a page, and what it says.
pub(super) struct Written {
    /// Each line as it is read: runs of spaces made one, empty ones left out.
    pub(super) lines: Vec<String>,
    /// In the order of the page.
    pub(super) items: Vec<Item>,
}

/// A line in the making: text at distances from the left margin.
struct Line {
    pieces: Vec<(u32, String)>,
}

impl Line {
    fn read(&self) -> String {
        let texts: Vec<&str> = self.pieces.iter().map(|(_, text)| text.as_str()).collect();
        collapsed(&texts.join(" "))
    }
}

/// Lengths are in the units of `measure`: pixels or characters.
struct Setter<'a> {
    room: u32,
    gap: u32,
    measure: &'a dyn Fn(&str, Weight) -> u32,
    columns: HashMap<usize, Vec<u32>>,
}

impl<'a> Setter<'a> {
    fn new(blocks: &[Block], room: u32, gap: u32, measure: &'a dyn Fn(&str, Weight) -> u32) -> Self {
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
            room,
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
                let whole: u32 = widths.iter().map(|width| width + self.gap).sum();
                if whole > self.room + self.gap {
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

    /// Broken at spaces; runs of spaces within a line stay.
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
            if line.is_empty() || (self.measure)(longer.trim_end(), weight) <= self.room {
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

/// The blocks that fit, one after the other, until `place` has no room for a block's lines.
fn fill(blocks: Vec<Block>, setter: &Setter<'_>, mut place: impl FnMut(&Body, &[Line]) -> bool) -> Written {
    let (mut lines, mut items) = (Vec::new(), Vec::new());
    let mut characters = 0;
    for block in blocks {
        let set = setter.lines(&block.body);
        let read: Vec<String> = set
            .iter()
            .map(Line::read)
            .filter(|line| !line.is_empty())
            .collect();
        characters += read.iter().map(|line| line.chars().count() + 1).sum::<usize>();
        if characters > MOST_CHARACTERS || !place(&block.body, &set) {
            break;
        }
        lines.extend(read);
        items.extend(block.items);
    }
    Written { lines, items }
}

/// In characters: the title and the lines of a typed page, at most `most` of them.
pub(super) fn typed(blocks: Vec<Block>, columns: usize, most: usize) -> (String, Vec<String>, Written) {
    let measure = |text: &str, _: Weight| text.chars().count() as u32;
    let setter = Setter::new(&blocks, columns as u32, 3, &measure);
    let (mut title, mut content) = (String::new(), Vec::new());
    let written = fill(blocks, &setter, |body, lines| {
        if content.len() + lines.len() > most {
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
                _ => content.push(text),
            }
        }
        true
    });
    (title, content, written)
}

/// In pixels: black on white, as wide and high as it takes.
pub(super) fn sheet(blocks: Vec<Block>, sheet: &Sheet) -> (GreyPage, Written) {
    let faces = Faces::of(sheet);
    let measure = |text: &str, weight: Weight| faces.face(weight).width(text);
    let sample = "The patient takes 12.5 mg of it twice a day, with meals.";
    let wanted = faces.body.width(sample) * sheet.columns / sample.len() as u32 + 2 * sheet.margin;
    // A narrow slip must have room for its longest word.
    let words = blocks.iter().flat_map(|block| block.body.words());
    let longest = words.map(|word| measure(word, Weight::Title).max(measure(word, Weight::Body)));
    let wanted = wanted.max(longest.max().unwrap_or_default() + 2 * sheet.margin);
    let [[narrowest, widest], [lowest, highest]] = if sheet.slip.is_some() { SLIP } else { PAGE };
    let width = wanted.next_multiple_of(STEP).clamp(narrowest, widest);
    let setter = Setter::new(&blocks, width - 2 * sheet.margin, sheet.line_height, &measure);
    let mut runs: Vec<(u32, u32, String, &Face)> = Vec::new();
    let mut rules = Vec::new();
    let mut top = sheet.margin;
    let written = fill(blocks, &setter, |body, lines| {
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
                runs.push((sheet.margin + left, top, piece.clone(), face));
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
    for (left, top, text, face) in &runs {
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
        written,
    )
}

fn border(canvas: &mut Canvas<1>, width: u32, height: u32, inset: u32) {
    let (right, bottom) = (width - 1 - inset, height - 1 - inset);
    canvas.fill((inset, inset), (right, inset), [0]);
    canvas.fill((inset, bottom), (right, bottom), [0]);
    canvas.fill((inset, inset), (inset, bottom), [0]);
    canvas.fill((right, inset), (right, bottom), [0]);
}

/// Which face a text is set in.
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

/// Kinds of item on a page, whose headings say nothing by themselves.
pub(super) fn kinds_beside_headings(written: &Written) -> usize {
    let kinds: HashSet<ItemKind> = written.items.iter().map(|item| item.kind).collect();
    kinds.len() - usize::from(kinds.contains(&ItemKind::Heading))
}
