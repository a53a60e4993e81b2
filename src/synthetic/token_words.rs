//! Random words from the embedded model's tokens, so that every token occurs on training pages.
//!
//! Without them, fine-tuning makes tokens unlikely that no training word contains.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde::Deserialize;

use super::vocabulary::HELD_OUT_WORDS;
use crate::random::SeededRng;

const TOKENIZER: &str = include_str!("../../models/qwen25-vl-nano/tokenizer.json");
/// Byte-level BPE's character for a space.
const SPACE: char = 'Ġ';

/// Tokens that consist of letters, in the order of their ids.
struct Pieces {
    /// With a leading space: they begin a word.
    first: Vec<String>,
    /// Without: they continue one.
    more: Vec<String>,
}

static PIECES: LazyLock<Pieces> = LazyLock::new(|| {
    #[derive(Deserialize)]
    struct File {
        model: Model,
    }
    #[derive(Deserialize)]
    struct Model {
        vocab: HashMap<String, u32>,
    }
    let file: File = serde_json::from_str(TOKENIZER).expect("the shipped tokenizer is parsed by the tests");
    let mut tokens: Vec<(String, u32)> = file.model.vocab.into_iter().collect();
    tokens.sort_unstable_by_key(|(_, id)| *id);
    let mut pieces = Pieces {
        first: Vec::new(),
        more: Vec::new(),
    };
    for (token, _) in tokens {
        let (list, letters) = match token.strip_prefix(SPACE) {
            Some(letters) => (&mut pieces.first, letters),
            None => (&mut pieces.more, token.as_str()),
        };
        if !letters.is_empty() && letters.bytes().all(|byte| byte.is_ascii_alphabetic()) {
            list.push(letters.to_owned());
        }
    }
    pieces
});

/// One or a few tokens: often an English word, never a held-out one.
pub(super) fn random_word(rng: &mut SeededRng) -> String {
    loop {
        let mut word = rng.pick::<String>(&PIECES.first).clone();
        while rng.chance(0.35) && word.len() < 14 {
            word.push_str(rng.pick::<String>(&PIECES.more));
        }
        if !HELD_OUT_WORDS.contains(&word.to_lowercase()) {
            return word;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn words_use_many_tokens_and_are_not_held_out() {
        assert!(PIECES.first.len() > 4000 && PIECES.more.len() > 3000);
        assert!(
            ["albumin", "asthma", "platelets"]
                .iter()
                .all(|word| HELD_OUT_WORDS.contains(*word))
        );
        assert!(
            ["mg", "findings", "left"]
                .iter()
                .all(|word| !HELD_OUT_WORDS.contains(*word))
        );
        let mut rng = SeededRng::new(1, "pieces", 0, 0);
        let words: HashSet<String> = (0..20_000).map(|_| random_word(&mut rng)).collect();
        assert!(words.len() > 8000, "{}", words.len());
        assert!(
            words
                .iter()
                .all(|word| word.len() < 40 && !HELD_OUT_WORDS.contains(&word.to_lowercase()))
        );
        let begun = words.iter().filter(|word| word.starts_with("platelets")).count();
        assert!(begun > 0, "a token of a word that is held out goes on otherwise");
    }
}
