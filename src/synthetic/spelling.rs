//! Words, numbers and signs written as nobody expects, on pages to train on: what is read pays there, not what is known.

use std::collections::HashMap;

use super::{
    content::{Block, Body, ItemKind},
    dice::Dice,
    pieces,
    vocabulary::HELD_OUT_WORDS,
};

/// Shorter words are units, routes, abbreviations.
const LONG: usize = 4;
/// Where headings change too, at most this part of the words does: they tell what stands below them.
const HEADINGS_PART: f64 = 0.3;
/// What may take a sign's place in a word.
const SIGNS: &[u8] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-/.'^%<>+=#*&()[]";
/// What parts words.
const STOPS: [char; 4] = [',', ';', ':', '.'];

/// A word as a page has it.
#[derive(Clone)]
struct Spelling {
    word: String,
    /// In place of the stop behind it; `Some(None)`: nothing.
    stop: Option<Option<char>>,
}

/// Respells some of the words of some pages, the same word alike wherever it stands.
pub(super) fn respell(blocks: &mut [Block], dice: &mut Dice) {
    if dice.chance(0.3) {
        return;
    }
    let part = dice.range(0.05, 0.5);
    let with_headings = part < HEADINGS_PART && dice.chance(0.5);
    let mut known = match with_headings {
        true => HashMap::new(),
        false => headings(blocks),
    };
    let mut change = |text: &mut String| {
        *text = by_word(text, |word| {
            let spelling = known.entry(word.to_owned());
            spelling
                .or_insert_with(|| Spelling::draw(word, part, dice))
                .clone()
        });
    };
    for block in blocks {
        match &mut block.body {
            Body::Title(text) | Body::Heading(text) | Body::Text(text) => change(text),
            Body::Row { cells, .. } => cells.iter_mut().for_each(&mut change),
        }
        block.items.iter_mut().for_each(|item| change(&mut item.text));
    }
}

/// Words of titles and headings, as they are.
fn headings(blocks: &[Block]) -> HashMap<String, Spelling> {
    let mut found = HashMap::new();
    let mut note = |text: &str| {
        by_word(text, |word| {
            let usual = found.entry(word.to_owned());
            usual.or_insert_with(|| Spelling::usual(word)).clone()
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

/// `text` with every word, from the first to the last letter or digit between two spaces, as `spelling` has it.
fn by_word(text: &str, mut spelling: impl FnMut(&str) -> Spelling) -> String {
    let mut out = String::with_capacity(text.len());
    for piece in text.split_inclusive(char::is_whitespace) {
        let word = piece.trim_matches(|c: char| !c.is_alphanumeric());
        let Some(start) = piece.find(word).filter(|_| !word.is_empty()) else {
            out.push_str(piece);
            continue;
        };
        let (before, after) = (&piece[..start], &piece[start + word.len()..]);
        let spelling = spelling(word);
        out.push_str(before);
        out.push_str(&spelling.word);
        match (spelling.stop, after.strip_prefix(STOPS)) {
            (Some(stop), Some(rest)) => {
                out.extend(stop);
                out.push_str(rest);
            }
            _ => out.push_str(after),
        }
    }
    out
}

impl Spelling {
    /// As it is.
    fn usual(word: &str) -> Self {
        Self {
            word: word.to_owned(),
            stop: None,
        }
    }

    /// Long words change with the chance `part`, short ones with half of it, numbers with a sixth; stops, too.
    fn draw(word: &str, part: f64, dice: &mut Dice) -> Self {
        let long = word.len() >= LONG && word.bytes().all(|byte| byte.is_ascii_alphabetic());
        let digits = word
            .chars()
            .all(|c| c.is_ascii_digit() || c.is_ascii_punctuation());
        let chance = match (digits, long) {
            (true, _) => part / 6.0,
            (_, true) => part,
            _ => part / 2.0,
        };
        let word = match dice.chance(chance) {
            true if long => changed(word, dice),
            true => garbled(word, dice),
            false => word.to_owned(),
        };
        let stop = dice.chance(part / 8.0).then(|| {
            let kept = dice.chance(0.7);
            kept.then(|| *dice.pick(&STOPS))
        });
        Self { word, stop }
    }
}

/// Another word in a long one's place, never one that training may not have.
fn changed(word: &str, dice: &mut Dice) -> String {
    loop {
        let changed = match dice.below(20) {
            0..6 => pieces::word(dice),
            6..11 => crossed(word, dice),
            11..15 => misspelt(word, dice),
            15..17 => abbreviation(dice),
            _ => garbled(word, dice),
        };
        if !HELD_OUT_WORDS.contains(&changed.to_lowercase()) {
            return changed;
        }
    }
}

/// One word's beginning, another's end: how a word begins does not tell how it goes on.
fn crossed(word: &str, dice: &mut Dice) -> String {
    let other = pieces::word(dice);
    let (first, second) = match dice.chance(0.75) {
        true => (word, other.as_str()),
        false => (other.as_str(), word),
    };
    let begins = &first[..dice.between(1, first.len())];
    format!("{begins}{}", &second[dice.below(second.len())..])
}

/// Capitals that nobody has seen together.
fn abbreviation(dice: &mut Dice) -> String {
    let letters = dice.between(3, 6);
    (0..letters)
        .map(|_| char::from(b'A' + dice.below(26) as u8))
        .collect()
}

/// One to three letters become others, of the same case.
fn misspelt(word: &str, dice: &mut Dice) -> String {
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

/// Another case, a sign more, less or other, or something else altogether.
fn garbled(word: &str, dice: &mut Dice) -> String {
    let mut signs: Vec<char> = word.chars().collect();
    let place = dice.below(signs.len());
    let sign = |dice: &mut Dice| char::from(*dice.pick(SIGNS));
    match dice.below(6) {
        0 if signs[place].is_ascii_lowercase() => signs[place].make_ascii_uppercase(),
        0 | 1 if signs[place].is_ascii_uppercase() => signs[place].make_ascii_lowercase(),
        2 if signs.len() > 1 => drop(signs.remove(place)),
        3 => signs.insert(place, sign(dice)),
        4 => signs = (0..dice.between(1, 6)).map(|_| sign(dice)).collect(),
        _ => signs[place] = sign(dice),
    }
    signs.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synthetic::Item;

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
    fn items_stay_the_pages_own_words_and_most_headings_as_they_are() {
        let (mut changed, mut headings) = (0, 0);
        for index in 0..200 {
            let mut blocks = blocks();
            respell(&mut blocks, &mut Dice::new(1, "spelling", index, 0));
            let [heading, text, row] = &blocks[..] else {
                panic!()
            };
            let Body::Heading(title) = &heading.body else {
                panic!()
            };
            assert_eq!(title, &heading.items[0].text);
            headings += usize::from(title != "MEDICATIONS given");
            let Body::Text(line) = &text.body else { panic!() };
            assert!(line.contains(&text.items[0].text), "{line}");
            assert_eq!(line.split(' ').count(), 8, "no word is lost: {line}");
            let Body::Row { cells, .. } = &row.body else {
                panic!()
            };
            assert_eq!(cells.join(" "), row.items[0].text);
            assert!(line.contains(&cells[0]), "the same word alike: {line} {cells:?}");
            changed += usize::from(!line.contains("Metoprolol"));
        }
        assert!((20..100).contains(&changed), "{changed}");
        assert!((1..30).contains(&headings), "{headings}");
    }

    #[test]
    fn words_end_at_their_last_letter_or_digit_and_stops_change_behind_them() {
        let spelling = |word: &str| Spelling {
            word: format!("<{word}>"),
            stop: Some((word != "mg").then_some(';')),
        };
        assert_eq!(
            by_word("(x10^3/uL),  25 mg, -- 39.3 °C: °", spelling),
            "(<x10^3/uL>),  <25> <mg> -- <39.3> °<C>; °"
        );
    }
}
