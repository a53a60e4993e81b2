//! Words spelt as nobody expects, on pages to train on: what is read pays there, not what is known.

use std::collections::{HashMap, HashSet};

use super::content::{Block, Body, ItemKind};
use super::dice::Dice;

/// Shorter words stay: units, routes, abbreviations.
const SHORTEST: usize = 4;

/// Respells some of the words of some pages, the same word alike wherever it stands; headings stay, since they tell what
/// stands below them.
pub(super) fn respell(blocks: &mut [Block], dice: &mut Dice) {
    if dice.chance(0.4) {
        return;
    }
    let part = dice.range(0.05, 0.6);
    let mut spelt: HashMap<String, String> = headings(blocks)
        .into_iter()
        .map(|word| (word.clone(), word))
        .collect();
    let mut change = |text: &mut String| {
        *text = by_word(text, |word| {
            let known = spelt.entry(word.to_owned());
            known
                .or_insert_with(|| match dice.chance(part) {
                    true => other(word, dice),
                    false => word.to_owned(),
                })
                .clone()
        });
    };
    for block in blocks {
        match &mut block.body {
            Body::Title(_) | Body::Heading(_) => {}
            Body::Text(text) => change(text),
            Body::Row { cells, .. } => cells.iter_mut().for_each(&mut change),
        }
        block.items.iter_mut().for_each(|item| change(&mut item.text));
    }
}

/// Words of titles and headings.
fn headings(blocks: &[Block]) -> HashSet<String> {
    let mut found = HashSet::new();
    let mut note = |text: &str| {
        by_word(text, |word| {
            found.insert(word.to_owned());
            word.to_owned()
        });
    };
    for block in blocks {
        if let Body::Title(text) | Body::Heading(text) = &block.body {
            note(text);
        }
        let headings = block.items.iter().filter(|item| item.kind == ItemKind::Heading);
        headings.for_each(|item| note(&item.text));
    }
    found
}

/// `text` with every run of letters that is long enough as `change` has it.
fn by_word(text: &str, mut change: impl FnMut(&str) -> String) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c.is_ascii_alphabetic()) {
        let (before, from) = rest.split_at(start);
        let end = from
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(from.len());
        let (word, after) = from.split_at(end);
        out.push_str(before);
        match word.len() >= SHORTEST {
            true => out.push_str(&change(word)),
            false => out.push_str(word),
        }
        rest = after;
    }
    out + rest
}

/// One to three letters become others, of the same case.
fn other(word: &str, dice: &mut Dice) -> String {
    let mut letters: Vec<u8> = word.bytes().collect();
    for _ in 0..dice.between(1, 3) {
        let place = dice.below(letters.len());
        let first = if letters[place].is_ascii_uppercase() {
            b'A'
        } else {
            b'a'
        };
        letters[place] = first + dice.below(26) as u8;
    }
    letters.into_iter().map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::documents::Item;

    fn blocks() -> Vec<Block> {
        let item = |kind, text: &str| Item::new(kind, text);
        vec![
            Block {
                body: Body::Heading("MEDICATIONS given".to_owned()),
                items: vec![item(ItemKind::Heading, "MEDICATIONS given")],
            },
            Block {
                body: Body::Text("1. Metoprolol tartrate 25 mg, given orally (metoprolol)".to_owned()),
                items: vec![item(
                    ItemKind::Medication,
                    "Metoprolol tartrate 25 mg, given orally",
                )],
            },
            Block {
                body: Body::Row {
                    table: 0,
                    cells: vec!["Metoprolol".to_owned(), "25 mg".to_owned()],
                },
                items: vec![item(ItemKind::Medication, "Metoprolol 25 mg")],
            },
        ]
    }

    #[test]
    fn items_stay_the_pages_own_words_and_headings_and_short_words_as_they_are() {
        let mut changed = 0;
        for index in 0..200 {
            let mut blocks = blocks();
            respell(&mut blocks, &mut Dice::new(1, "spelling", index, 0));
            let [heading, text, row] = &blocks[..] else {
                panic!()
            };
            assert!(matches!(&heading.body, Body::Heading(text) if text == "MEDICATIONS given"));
            assert_eq!(heading.items[0].text, "MEDICATIONS given");
            let Body::Text(line) = &text.body else { panic!() };
            assert!(
                line.contains(&text.items[0].text) && line.contains(" 25 mg, given "),
                "{line}"
            );
            assert_eq!(
                line.len(),
                "1. Metoprolol tartrate 25 mg, given orally (metoprolol)".len()
            );
            let Body::Row { cells, .. } = &row.body else {
                panic!()
            };
            assert_eq!(cells.join(" "), row.items[0].text);
            assert!(line.contains(&cells[0]), "the same word alike: {line} {cells:?}");
            changed += usize::from(!line.contains("Metoprolol"));
        }
        assert!((20..100).contains(&changed), "{changed}");
    }
}
