//! One page: image, text, questions.

use std::collections::HashSet;
use std::sync::LazyLock;

use super::{
    content::{Block, Body, Item, ItemKind},
    degrade::{self, EncodedImage},
    layout::{self, PageContent},
    perturb::perturb_words,
    sections,
    style::PageStyle,
    tasks::{Question, questions},
    vocabulary::{Split, kinds, shared, words},
};
use crate::random::SeededRng;
use crate::rendering::{
    EVALUATION_PAGE, PageSize, collapse_whitespace, document_page, encode_rgb, text_page,
};
use crate::test_documents::DocumentSet;

/// A generated page with its ground truth.
#[derive(Debug, Clone)]
pub struct Page {
    /// The image file.
    pub image: Vec<u8>,
    /// "png" or "jpg".
    pub extension: &'static str,
    /// Its text, line by line.
    pub text: String,
    /// Its items in reading order.
    pub items: Vec<Item>,
    /// Kind of document.
    pub document: &'static str,
    /// "document" or "report": the styles that the embedded base model was trained on; "typed": clean, any font; "scanned":
    /// degraded. Records call it "look".
    pub style: &'static str,
    /// Font family.
    pub font: &'static str,
    /// Size of body text, pixels.
    pub font_px: u16,
    /// Questions about it, with answers.
    pub questions: Vec<Question>,
}

/// Lines of the test and evaluation documents, 10 characters or longer: no page may contain one.
static HELD_OUT: LazyLock<HashSet<String>> = LazyLock::new(|| {
    let sets = [DocumentSet::test(), DocumentSet::evaluation()];
    let documents = sets.into_iter().flat_map(|set| set.documents);
    documents
        .flat_map(|document| document.content.into_iter().chain([document.title]))
        .map(|line| collapse_whitespace(&line))
        .filter(|line| line.chars().count() >= 10 && line.contains(char::is_alphabetic))
        .collect()
});

/// Generates the page of this split, seed and index; the result is always the same.
pub fn page(split: Split, seed: u64, index: u64) -> Page {
    let mut attempt = 0;
    loop {
        let mut rng = SeededRng::new(seed, split.name(), index, attempt);
        if let Some(page) = try_page(split, &mut rng) {
            return page;
        }
        attempt += 1;
    }
}

/// `None` if the page has too few items or contains a held-out line.
fn try_page(split: Split, rng: &mut SeededRng) -> Option<Page> {
    let kind = rng.pick(kinds());
    let style = PageStyle::sample(split, rng);
    let mut blocks = sections::write(kind, rng, words(split), shared());
    if split == Split::Train {
        perturb_words(&mut blocks, rng);
    }
    let (image, content) = render(&style, blocks, rng)?;
    let (font, font_px) = style.font();
    Some(Page {
        image: image.bytes,
        extension: image.extension,
        questions: questions(&kind.id, &content, split, rng),
        text: content.lines.join("\n"),
        items: content.items,
        document: &kind.id,
        style: style.name(),
        font,
        font_px,
    })
}

fn render(style: &PageStyle, blocks: Vec<Block>, rng: &mut SeededRng) -> Option<(EncodedImage, PageContent)> {
    // Besides headings, a page needs two kinds of item, a crop one.
    let kinds = match style {
        PageStyle::Sheet(sheet) if sheet.crop.is_some() => 1,
        _ => 2,
    };
    let acceptable = |content: &PageContent| {
        layout::count_kinds(content) >= kinds && !content.lines.iter().any(|line| HELD_OUT.contains(line))
    };
    match style {
        PageStyle::Document { size, columns } => {
            let (title, lines, content) = layout::fixed_pitch(blocks, *columns, lines_of(*size));
            acceptable(&content).then(|| {
                let mut bytes = Vec::new();
                encode_rgb(&document_page(&title, &lines, *size), &mut bytes)
                    .expect("writing to memory does not fail");
                (
                    EncodedImage {
                        bytes,
                        extension: "png",
                    },
                    content,
                )
            })
        }
        PageStyle::Report => {
            let (title, mut lines, content) = layout::fixed_pitch(
                blocks,
                crate::rendering::TEXT_COLUMNS,
                crate::rendering::MAX_TEXT_LINES - 1,
            );
            lines.insert(0, title);
            acceptable(&content).then(|| (degrade::png(&text_page(&lines)), content))
        }
        PageStyle::Sheet(sheet) => {
            let (page, content) = match sheet.crop {
                None => layout::sheet(blocks, sheet),
                Some(count) => layout::sheet(crop(blocks, count, rng)?, sheet),
            };
            if !acceptable(&content) {
                return None;
            }
            let encoded = match &sheet.degradation {
                Some(degradation) => degrade::degrade(page, degradation, rng, shared()),
                None => degrade::png(&page),
            };
            Some((encoded, content))
        }
    }
}

/// Kinds of item that are recognizable without their heading.
const SELF_EXPLANATORY: [ItemKind; 3] = [ItemKind::Medication, ItemKind::Laboratory, ItemKind::Vital];

/// `count` consecutive blocks, starting at a heading or at self-explanatory items.
fn crop(mut blocks: Vec<Block>, count: usize, rng: &mut SeededRng) -> Option<Vec<Block>> {
    let can_start = |block: &Block| match block.body {
        Body::Title(_) | Body::Heading(_) => true,
        _ => {
            !block.items.is_empty()
                && block
                    .items
                    .iter()
                    .all(|item| SELF_EXPLANATORY.contains(&item.kind))
        }
    };
    let starts: Vec<usize> = (0..blocks.len())
        .filter(|index| can_start(&blocks[*index]))
        .collect();
    if starts.is_empty() {
        return None;
    }
    let first = *rng.pick(&starts);
    let end = blocks.len().min(first + count);
    Some(blocks.drain(first..end).collect())
}

/// Number of lines that fit on a document's page.
fn lines_of(size: PageSize) -> usize {
    let room = size.height.min(EVALUATION_PAGE.height).saturating_sub(60 + 85);
    room as usize / 18 + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processing::{DecodeLimits, decode};
    use crate::synthetic::{ItemKind, TRANSCRIBE, empty_answer, task_kinds};
    use std::collections::HashMap;

    fn some(split: Split) -> Vec<Page> {
        (0..120).map(|index| page(split, 7, index)).collect()
    }

    #[test]
    fn pages_depend_on_split_seed_and_index_only() {
        let (one, again) = (page(Split::Train, 3, 11), page(Split::Train, 3, 11));
        assert_eq!(
            (&one.image, &one.text, &one.questions),
            (&again.image, &again.text, &again.questions)
        );
        assert_ne!(one.text, page(Split::Train, 3, 12).text);
        assert_ne!(one.text, page(Split::Train, 4, 11).text);
        assert_ne!(one.text, page(Split::Test, 3, 11).text);
    }

    #[test]
    fn items_quote_the_page_in_order_and_answers_are_items_of_the_requested_kinds() {
        let mut nothings = 0;
        for page in some(Split::Train) {
            let flat = page.text.replace('\n', " ");
            for item in &page.items {
                // A prescription's item is put together from two lines, a heading's colon is left out.
                let there = flat.contains(&item.text);
                assert!(
                    there || item.kind == ItemKind::Medication,
                    "{:?} is not on\n{}",
                    item,
                    page.text
                );
                for word in item.text.split(' ') {
                    assert!(flat.contains(word), "{word:?} of {item:?}");
                }
            }
            assert_eq!(page.questions.len(), 4);
            for question in &page.questions {
                let Some(kinds) = task_kinds(question.task) else {
                    assert_eq!((question.task, &question.answer), (TRANSCRIBE, &page.text));
                    continue;
                };
                let expected: Vec<&str> = page
                    .items
                    .iter()
                    .filter(|item| kinds.contains(&item.kind))
                    .map(|item| item.text.as_str())
                    .collect();
                assert_eq!(question.items, expected);
                if expected.is_empty() {
                    assert_eq!(question.answer, empty_answer());
                    nothings += 1;
                } else {
                    assert_eq!(question.answer, expected.join("\n"));
                }
            }
        }
        assert!((10..100).contains(&nothings), "{nothings}");
    }

    #[test]
    fn pages_are_dense_within_bounds_and_of_every_kind_and_style() {
        let mut kinds: HashMap<&str, usize> = HashMap::new();
        let mut styles: HashMap<&str, usize> = HashMap::new();
        let mut fonts = HashSet::new();
        let (mut characters, mut crops) = (0, 0);
        for made in some(Split::Test) {
            *kinds.entry(made.document).or_default() += 1;
            *styles.entry(made.style).or_default() += 1;
            fonts.insert(made.font);
            characters += made.text.chars().count();
            let decoded = decode(&made.image, &DecodeLimits::default()).unwrap();
            crops += usize::from(decoded.width < 560 || decoded.height < 400);
            assert!((84..=924).contains(&decoded.width) && (56..=1204).contains(&decoded.height));
            if matches!(made.style, "typed" | "scanned") {
                assert_eq!((decoded.width % 28, decoded.height % 28), (0, 0));
            }
            assert!(
                made.text
                    .lines()
                    .all(|line| !line.is_empty() && line == collapse_whitespace(line))
            );
            assert!((10..=24).contains(&made.font_px));
            let foreign: Vec<char> = made
                .text
                .chars()
                .filter(|c| !matches!(c, ' '..='~' | '\n') && !"—–°µ±≤≥×•→²éü’".contains(*c))
                .collect();
            assert!(foreign.is_empty(), "{foreign:?}");
        }
        assert_eq!(kinds.len(), 10, "{kinds:?}");
        assert_eq!(styles.len(), 4, "{styles:?}");
        assert!((4..20).contains(&crops), "{crops}");
        assert!(fonts.len() >= 12, "{fonts:?}");
        assert!(characters / 120 > 600, "{}", characters / 120);
    }

    #[test]
    fn pages_contain_no_line_of_the_test_documents() {
        assert!(HELD_OUT.len() > 200);
        for made in some(Split::Train) {
            assert!(made.text.lines().all(|line| !HELD_OUT.contains(line)));
        }
    }
}
