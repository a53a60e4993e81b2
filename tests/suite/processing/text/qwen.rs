//! The published tokenizer of Qwen2.5-VL on hard texts (tests/fixtures/makers/tokenizer.py).
//!
//! The folder holds the part of the vocabulary that decides these texts, with the ids of the whole.

use std::path::{Path, PathBuf};

use medical_vision::processing::{Grid, TextProcessor};
use serde_json::Value;
use unicode_normalization::UnicodeNormalization;

use super::goldens::messages;
use super::ids;

const IMAGE_PAD: i64 = 151_655;
const FIRST_ADDED: i64 = 151_643;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/qwen-tokenizer")
}

fn golden() -> Value {
    serde_json::from_slice(&std::fs::read(folder().join("ids.json")).unwrap()).unwrap()
}

#[test]
fn hard_texts_have_the_published_ids() {
    let processor = TextProcessor::from_dir(&folder()).unwrap();
    let golden = golden();
    let cases = golden["encode"].as_array().unwrap();
    assert!(cases.len() >= 350);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let expected = ids(&case["ids"]);
        assert_eq!(processor.encode_plain(text).unwrap(), expected, "{text:?}");
        // Whatever it spells, it is text.
        assert!(expected.iter().all(|&id| id < FIRST_ADDED), "{text:?}");
        let decoded = processor.decode(&expected).unwrap();
        assert_eq!(decoded, text.nfc().collect::<String>());
    }
}

#[test]
fn conversations_have_the_published_ids() {
    let processor = TextProcessor::from_dir(&folder()).unwrap();
    let golden = golden();
    let cases = golden["chat"].as_array().unwrap();
    assert!(cases.len() >= 14);
    let grid = Grid { t: 1, h: 6, w: 4 };
    for case in cases {
        let expected = ids(&case["ids"]);
        let pages = expected.iter().filter(|&&id| id == IMAGE_PAD).count();
        let expected: Vec<i64> = expected
            .into_iter()
            .flat_map(|id| std::iter::repeat_n(id, if id == IMAGE_PAD { 6 } else { 1 }))
            .collect();
        let found = processor
            .encode_chat(&messages(&case["messages"]), &vec![grid; pages])
            .unwrap();
        assert_eq!(found, expected, "{}", case["messages"]);
    }
}
