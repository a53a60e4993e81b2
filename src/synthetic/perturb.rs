//! Perturbs words, numbers and punctuation of training pages, so that the model must read rather than guess.

use std::collections::HashMap;

use super::{
    content::{Block, Body, ItemKind},
    token_words,
    vocabulary::HELD_OUT_WORDS,
};
use crate::random::SeededRng;

/// Minimum length of a long word; shorter ones are units, routes, abbreviations.
const LONG: usize = 4;
/// Headings are perturbed only below this fraction of words: they identify the text below them.
const MAX_FRACTION_WITH_HEADINGS: f64 = 0.3;
/// Replacement characters.
const CHARACTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-/.'^%<>+=#*&()[]";
/// Punctuation after a word.
const PUNCTUATION: [char; 4] = [',', ';', ':', '.'];

/// How a word is written on the page.
#[derive(Clone)]
struct Spelling {
    word: String,
    /// Replacement for the punctuation after it; `Some(None)` removes it.
    punctuation: Option<Option<char>>,
}

/// Perturbs a fraction of the words on 70 % of the pages. Every occurrence of a word gets the same spelling.
pub(super) fn perturb_words(blocks: &mut [Block], rng: &mut SeededRng) {
    if rng.chance(0.3) {
        return;
    }
    let fraction = rng.range(0.05, 0.5);
    let with_headings = fraction < MAX_FRACTION_WITH_HEADINGS && rng.chance(0.5);
    let mut known = match with_headings {
        true => HashMap::new(),
        false => headings(blocks),
    };
    let mut change = |text: &mut String| {
        *text = by_word(text, |word| {
            let spelling = known.entry(word.to_owned());
            spelling
                .or_insert_with(|| Spelling::sample(word, fraction, rng))
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

/// The words of titles and headings, unchanged.
fn headings(blocks: &[Block]) -> HashMap<String, Spelling> {
    let mut found = HashMap::new();
    let mut keep = |text: &str| {
        by_word(text, |word| {
            let entry = found.entry(word.to_owned());
            entry.or_insert_with(|| Spelling::unchanged(word)).clone()
        });
    };
    for block in blocks {
        if let Body::Title(text) | Body::Heading(text) = &block.body {
            keep(text);
        }
        let headings = block.items.iter().filter(|item| item.kind == ItemKind::Heading);
        headings.for_each(|item| keep(&item.text));
    }
    found
}

/// Replaces every word of `text`; a word extends from the first to the last letter or digit between two spaces.
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
        match (spelling.punctuation, after.strip_prefix(PUNCTUATION)) {
            (Some(punctuation), Some(rest)) => {
                out.extend(punctuation);
                out.push_str(rest);
            }
            _ => out.push_str(after),
        }
    }
    out
}

impl Spelling {
    fn unchanged(word: &str) -> Self {
        Self {
            word: word.to_owned(),
            punctuation: None,
        }
    }

    /// Perturbs long words with probability `fraction`, short ones with half of it, numbers with a sixth, punctuation with an
    /// eighth.
    fn sample(word: &str, fraction: f64, rng: &mut SeededRng) -> Self {
        let long = word.len() >= LONG && word.bytes().all(|byte| byte.is_ascii_alphabetic());
        let digits = word
            .chars()
            .all(|c| c.is_ascii_digit() || c.is_ascii_punctuation());
        let chance = match (digits, long) {
            (true, _) => fraction / 6.0,
            (_, true) => fraction,
            _ => fraction / 2.0,
        };
        let word = match rng.chance(chance) {
            true if long => replacement(word, rng),
            true => garble(word, rng),
            false => word.to_owned(),
        };
        let punctuation = rng.chance(fraction / 8.0).then(|| {
            let kept = rng.chance(0.7);
            kept.then(|| *rng.pick(&PUNCTUATION))
        });
        Self { word, punctuation }
    }
}

/// A replacement for a long word, never a held-out word.
fn replacement(word: &str, rng: &mut SeededRng) -> String {
    loop {
        let word = match rng.below(20) {
            0..6 => token_words::random_word(rng),
            6..11 => splice(word, rng),
            11..15 => misspell(word, rng),
            15..17 => abbreviation(rng),
            _ => garble(word, rng),
        };
        if !HELD_OUT_WORDS.contains(&word.to_lowercase()) {
            return word;
        }
    }
}

/// The beginning of one word with the end of another, so that a prefix does not predict the rest.
fn splice(word: &str, rng: &mut SeededRng) -> String {
    let other = token_words::random_word(rng);
    let (first, second) = match rng.chance(0.75) {
        true => (word, other.as_str()),
        false => (other.as_str(), word),
    };
    let begins = &first[..rng.between(1, first.len())];
    format!("{begins}{}", &second[rng.below(second.len())..])
}

/// Three to six random capital letters.
fn abbreviation(rng: &mut SeededRng) -> String {
    let letters = rng.between(3, 6);
    (0..letters)
        .map(|_| char::from(b'A' + rng.below(26) as u8))
        .collect()
}

/// Replaces one to three letters, keeping their case.
fn misspell(word: &str, rng: &mut SeededRng) -> String {
    let mut letters: Vec<u8> = word.bytes().collect();
    for _ in 0..rng.between(1, 3) {
        let place = rng.below(letters.len());
        let first = if letters[place].is_ascii_uppercase() {
            b'A'
        } else {
            b'a'
        };
        letters[place] = first + rng.below(26) as u8;
    }
    letters.into_iter().map(char::from).collect()
}

/// Changes the case of a character, inserts, removes or replaces one, or replaces the whole word.
fn garble(word: &str, rng: &mut SeededRng) -> String {
    let mut characters: Vec<char> = word.chars().collect();
    let place = rng.below(characters.len());
    let random = |rng: &mut SeededRng| char::from(*rng.pick(CHARACTERS));
    match rng.below(6) {
        0 if characters[place].is_ascii_lowercase() => characters[place].make_ascii_uppercase(),
        0 | 1 if characters[place].is_ascii_uppercase() => characters[place].make_ascii_lowercase(),
        2 if characters.len() > 1 => drop(characters.remove(place)),
        3 => characters.insert(place, random(rng)),
        4 => characters = (0..rng.between(1, 6)).map(|_| random(rng)).collect(),
        _ => characters[place] = random(rng),
    }
    characters.into_iter().collect()
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
    fn items_match_the_page_and_most_headings_are_unchanged() {
        let (mut changed, mut headings) = (0, 0);
        for index in 0..200 {
            let mut blocks = blocks();
            perturb_words(&mut blocks, &mut SeededRng::new(1, "spelling", index, 0));
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
    fn words_end_at_the_last_letter_or_digit_before_punctuation() {
        let spelling = |word: &str| Spelling {
            word: format!("<{word}>"),
            punctuation: Some((word != "mg").then_some(';')),
        };
        assert_eq!(
            by_word("(x10^3/uL),  25 mg, -- 39.3 °C: °", spelling),
            "(<x10^3/uL>),  <25> <mg> -- <39.3> °<C>; °"
        );
    }
}
