//! A page by its number: image, text, questions.

use std::collections::HashSet;
use std::sync::LazyLock;

use super::{
    content::{Block, Body, Item, ItemKind, collapsed},
    dice::Dice,
    layout::{self, Written},
    look::Look,
    sections,
    spelling::respell,
    tasks::{Question, questions},
    vocabulary::{Split, kinds, shared, words},
    wear::{self, Encoded},
};
use crate::documents::DocumentSet;
use crate::rendering::{EVALUATION_PAGE, PageSize, document_page, encode_rgb, text_page};

/// A generated page and what is known of it.
#[derive(Debug, Clone)]
pub struct Page {
    /// The image file.
    pub image: Vec<u8>,
    /// "png" or "jpg".
    pub extension: &'static str,
    /// What stands on it, line by line.
    pub text: String,
    /// All that it says, in the order of the page.
    pub items: Vec<Item>,
    /// Kind of document.
    pub document: &'static str,
    /// "document" and "report" are the looks that the embedded model knows; "typed" is clean, in any font; "scanned" is not.
    pub look: &'static str,
    /// Family of its letters.
    pub font: &'static str,
    /// Height of its letters, pixels.
    pub font_px: u16,
    /// Asked about it.
    pub questions: Vec<Question>,
}

/// Lines of the documents that the project is measured with, 10 characters or longer: no page may have one.
static HELD_OUT: LazyLock<HashSet<String>> = LazyLock::new(|| {
    let sets = [DocumentSet::test(), DocumentSet::evaluation()];
    let documents = sets.into_iter().flat_map(|set| set.documents);
    documents
        .flat_map(|document| document.content.into_iter().chain([document.title]))
        .map(|line| collapsed(&line))
        .filter(|line| line.chars().count() >= 10 && line.contains(char::is_alphabetic))
        .collect()
});

/// The page with this number: the same whenever it is made.
pub fn page(split: Split, seed: u64, index: u64) -> Page {
    let mut attempt = 0;
    loop {
        let mut dice = Dice::new(seed, split.name(), index, attempt);
        if let Some(page) = attempted(split, &mut dice) {
            return page;
        }
        attempt += 1;
    }
}

/// `None` where the page says too little, or a line that it may not.
fn attempted(split: Split, dice: &mut Dice) -> Option<Page> {
    let kind = dice.pick(kinds());
    let look = Look::draw(split, dice);
    let mut blocks = sections::write(kind, dice, words(split), shared());
    if split == Split::Train {
        respell(&mut blocks, dice);
    }
    let (image, written) = draw(&look, blocks, dice)?;
    let (font, font_px) = look.font();
    Some(Page {
        image: image.bytes,
        extension: image.extension,
        questions: questions(&kind.id, &written, split, dice),
        text: written.lines.join("\n"),
        items: written.items,
        document: &kind.id,
        look: look.name(),
        font,
        font_px,
    })
}

fn draw(look: &Look, blocks: Vec<Block>, dice: &mut Dice) -> Option<(Encoded, Written)> {
    // Of a page, headings and two other kinds of item; of a slip, one.
    let kinds = match look {
        Look::Sheet(sheet) if sheet.slip.is_some() => 1,
        _ => 2,
    };
    let acceptable = |written: &Written| {
        layout::kinds_beside_headings(written) >= kinds
            && !written.lines.iter().any(|line| HELD_OUT.contains(line))
    };
    match look {
        Look::Document { size, columns } => {
            let (title, content, written) = layout::typed(blocks, *columns, lines_of(*size));
            acceptable(&written).then(|| {
                let mut bytes = Vec::new();
                encode_rgb(&document_page(&title, &content, *size), &mut bytes)
                    .expect("memory takes whatever is written");
                (
                    Encoded {
                        bytes,
                        extension: "png",
                    },
                    written,
                )
            })
        }
        Look::Report => {
            let (title, mut content, written) = layout::typed(
                blocks,
                crate::rendering::TEXT_COLUMNS,
                crate::rendering::MAX_TEXT_LINES - 1,
            );
            content.insert(0, title);
            acceptable(&written).then(|| (wear::png(&text_page(&content)), written))
        }
        Look::Sheet(sheet) => {
            let (page, written) = match sheet.slip {
                None => layout::sheet(blocks, sheet),
                Some(count) => layout::sheet(cutting(blocks, count, dice)?, sheet),
            };
            if !acceptable(&written) {
                return None;
            }
            let encoded = match &sheet.wear {
                Some(wear) => wear::worn(page, wear, dice, shared()),
                None => wear::png(&page),
            };
            Some((encoded, written))
        }
    }
}

/// Kinds of item that anybody recognizes without the heading above them.
const PLAIN: [ItemKind; 3] = [ItemKind::Medication, ItemKind::Laboratory, ItemKind::Vital];

/// `count` blocks, one after the other, from anywhere that makes sense to begin at.
fn cutting(mut blocks: Vec<Block>, count: usize, dice: &mut Dice) -> Option<Vec<Block>> {
    let begins = |block: &Block| match block.body {
        Body::Title(_) | Body::Heading(_) => true,
        _ => !block.items.is_empty() && block.items.iter().all(|item| PLAIN.contains(&item.kind)),
    };
    let beginnings: Vec<usize> = (0..blocks.len())
        .filter(|index| begins(&blocks[*index]))
        .collect();
    if beginnings.is_empty() {
        return None;
    }
    let first = *dice.pick(&beginnings);
    let end = blocks.len().min(first + count);
    Some(blocks.drain(first..end).collect())
}

/// Lines that a document's page has room for.
fn lines_of(size: PageSize) -> usize {
    let room = size.height.min(EVALUATION_PAGE.height).saturating_sub(60 + 85);
    room as usize / 18 + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processing::{DecodeLimits, decode};
    use crate::synthetic::{ItemKind, TRANSCRIBE, nothing, task_kinds};
    use std::collections::HashMap;

    fn some(split: Split) -> Vec<Page> {
        (0..120).map(|index| page(split, 7, index)).collect()
    }

    #[test]
    fn a_number_gives_the_same_page_and_another_split_or_seed_another() {
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
    fn items_are_the_pages_own_words_in_its_order_and_answers_are_the_items_of_their_kinds() {
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
                    assert_eq!(question.answer, nothing());
                    nothings += 1;
                } else {
                    assert_eq!(question.answer, expected.join("\n"));
                }
            }
        }
        assert!((10..100).contains(&nothings), "{nothings}");
    }

    #[test]
    fn pages_are_dense_of_every_kind_and_look_and_fit() {
        let mut kinds: HashMap<&str, usize> = HashMap::new();
        let mut looks: HashMap<&str, usize> = HashMap::new();
        let mut fonts = HashSet::new();
        let (mut characters, mut slips) = (0, 0);
        for made in some(Split::Test) {
            *kinds.entry(made.document).or_default() += 1;
            *looks.entry(made.look).or_default() += 1;
            fonts.insert(made.font);
            characters += made.text.chars().count();
            let decoded = decode(&made.image, &DecodeLimits::default()).unwrap();
            slips += usize::from(decoded.width < 560 || decoded.height < 400);
            assert!((84..=924).contains(&decoded.width) && (56..=1204).contains(&decoded.height));
            if matches!(made.look, "typed" | "scanned") {
                assert_eq!((decoded.width % 28, decoded.height % 28), (0, 0));
            }
            assert!(
                made.text
                    .lines()
                    .all(|line| !line.is_empty() && line == collapsed(line))
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
        assert_eq!(looks.len(), 4, "{looks:?}");
        assert!((4..20).contains(&slips), "{slips}");
        assert!(fonts.len() >= 12, "{fonts:?}");
        assert!(characters / 120 > 600, "{}", characters / 120);
    }

    #[test]
    fn no_line_of_the_documents_that_are_measured_with_is_on_a_page() {
        assert!(HELD_OUT.len() > 200);
        for made in some(Split::Train) {
            assert!(made.text.lines().all(|line| !HELD_OUT.contains(line)));
        }
    }
}
