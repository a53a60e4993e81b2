//! The two page layouts: a document with title and border, and plain text.

use super::canvas::Canvas;
use super::typeface::{BODY, HEADING, TEXT};
use super::wrap::wrap;
use crate::processing::RgbPage;

/// Width and height, pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageSize {
    /// Width, pixels.
    pub width: u32,
    /// Height, pixels.
    pub height: u32,
}

/// Page size of the test documents.
pub const TEST_PAGE: PageSize = PageSize {
    width: 900,
    height: 1100,
};
/// Page size of the evaluation cases.
pub const EVALUATION_PAGE: PageSize = PageSize {
    width: 920,
    height: 1200,
};

const BLACK: [u8; 3] = [0; 3];
const NAVY: [u8; 3] = [0, 0, 128];
/// Line height, pixels.
const LINE_HEIGHT: u32 = 18;

/// Renders a document: border, title, rule, and as many lines as fit.
pub fn document_page(title: &str, content: &[String], size: PageSize) -> RgbPage {
    let PageSize { width, height } = size;
    let mut sheet = Canvas::<3>::new(width, height);
    border(&mut sheet, size);
    sheet.text(40, 40, title, &HEADING, NAVY);
    sheet.fill((40, 70), (width.saturating_sub(40), 70), BLACK);
    let tops = (85..).step_by(LINE_HEIGHT as usize);
    for (top, line) in tops.zip(content) {
        if top > height.saturating_sub(60) {
            break;
        }
        sheet.text(40, top, line, &BODY, BLACK);
    }
    RgbPage::new(width, height, sheet.into_bytes())
}

/// A border of 2 pixels inside the rectangle from (20, 20) to (width - 20, height - 20).
fn border(sheet: &mut Canvas<3>, size: PageSize) {
    let (left, top) = (20, 20);
    let (right, bottom) = (size.width.saturating_sub(20), size.height.saturating_sub(20));
    sheet.fill((left, top), (right, top + 1), BLACK);
    sheet.fill((left, bottom.saturating_sub(1)), (right, bottom), BLACK);
    sheet.fill((left, top), (left + 1, bottom), BLACK);
    sheet.fill((right.saturating_sub(1), top), (right, bottom), BLACK);
}

/// Maximum number of characters per line of a plain text page.
pub const TEXT_COLUMNS: usize = 80;
/// Maximum number of lines of a plain text page.
pub const MAX_TEXT_LINES: usize = 50;
const TEXT_WIDTH: u32 = 800;
const MARGIN: u32 = 30;

/// An 8-bit grey page.
#[derive(Clone, PartialEq, Eq)]
pub struct GreyPage {
    /// Width, pixels.
    pub width: u32,
    /// Height, pixels.
    pub height: u32,
    /// `height * width` bytes, row by row.
    pub pixels: Vec<u8>,
}

impl std::fmt::Debug for GreyPage {
    /// The size only: pixels are document content.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GreyPage({}x{})", self.width, self.height)
    }
}

impl GreyPage {
    /// The page as RGB.
    pub fn to_rgb(&self) -> RgbPage {
        let pixels = self.pixels.iter().flat_map(|grey| [*grey; 3]).collect();
        RgbPage::new(self.width, self.height, pixels)
    }
}

/// Renders plain text: 12 px, line height 18, from (30, 30), 800 pixels wide, 400 to 1200 pixels high.
///
/// `lines` are usually those of [`text_lines`]; lines after the first [`MAX_TEXT_LINES`] are dropped.
pub fn text_page(lines: &[impl AsRef<str>]) -> GreyPage {
    let lines = &lines[..lines.len().min(MAX_TEXT_LINES)];
    let height = (2 * MARGIN + LINE_HEIGHT * lines.len() as u32).clamp(400, 1200);
    let mut sheet = Canvas::<1>::new(TEXT_WIDTH, height);
    let tops = (MARGIN..).step_by(LINE_HEIGHT as usize);
    for (top, line) in tops.zip(lines) {
        sheet.text(MARGIN, top, line.as_ref(), &TEXT, [0]);
    }
    GreyPage {
        width: TEXT_WIDTH,
        height,
        pixels: sheet.into_bytes(),
    }
}

/// Wraps each paragraph at [`TEXT_COLUMNS`] characters; at most [`MAX_TEXT_LINES`] lines.
pub fn text_lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for paragraph in text.split('\n') {
        lines.extend(wrap(paragraph, TEXT_COLUMNS));
        if lines.len() >= MAX_TEXT_LINES {
            break;
        }
    }
    lines.truncate(MAX_TEXT_LINES);
    lines
}
