//! Streamed decoding.

use std::sync::LazyLock;

use proptest::prelude::*;
use tokenizers::Tokenizer;

use super::{NANO, nano_dir};

static REFERENCE: LazyLock<Tokenizer> =
    LazyLock::new(|| Tokenizer::from_file(nano_dir().join("tokenizer.json")).unwrap());

/// Every piece but the last holds whole characters only; returns the pieces joined.
fn stream(ids: &[i64]) -> String {
    let mut stream = NANO.stream();
    let mut text: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    text.push_str(&stream.finish().unwrap());
    text
}

#[test]
fn every_token_decodes_as_in_the_tokenizers_library() {
    for id in 0..8300_u32 {
        let expected = REFERENCE.decode(&[id], true).unwrap();
        assert_eq!(NANO.decode(&[i64::from(id)]).unwrap(), expected, "{id}");
    }
}

#[test]
fn unknown_ids_have_no_text() {
    assert_eq!(NANO.decode(&[-1, i64::MIN, i64::MAX, 1 << 32, 8192]).unwrap(), "");
}

#[test]
fn a_character_split_over_tokens_comes_whole() {
    let ids = NANO.encode_plain("a🙂中文é").unwrap();
    assert!(
        ids.len() > 7,
        "the characters must be split for this test to mean anything"
    );
    let mut stream = NANO.stream();
    let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    assert!(
        pieces.iter().all(|piece| !piece.contains('\u{FFFD}')),
        "{pieces:?}"
    );
    assert_eq!(pieces.concat(), "a🙂中文é");
    assert_eq!(stream.finish().unwrap(), "");
}

#[test]
fn a_character_cut_off_at_the_end_is_shown_as_such() {
    let ids = NANO.encode_plain("🙂").unwrap();
    let mut stream = NANO.stream();
    for &id in &ids[..ids.len() - 1] {
        assert_eq!(stream.push(id).unwrap(), "");
    }
    assert_eq!(stream.finish().unwrap(), "\u{FFFD}");
    assert_eq!(stream.finish().unwrap(), "");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn pieces_joined_are_the_whole(ids in prop::collection::vec(prop_oneof![0..260_i64, 0..8200_i64], 0..60)) {
        let as_u32: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
        let expected = REFERENCE.decode(&as_u32, true).unwrap();
        prop_assert_eq!(&stream(&ids), &expected);
        prop_assert_eq!(&NANO.decode(&ids).unwrap(), &expected);
    }

    #[test]
    fn any_text_comes_back(text in "\\PC{0,80}") {
        // Composed as the tokenizer composes it; composing twice changes nothing.
        let once = NANO.decode(&NANO.encode_plain(&text).unwrap()).unwrap();
        let twice = NANO.decode(&NANO.encode_plain(&once).unwrap()).unwrap();
        prop_assert_eq!(&once, &twice);
        if text.is_ascii() {
            prop_assert_eq!(once, text);
        }
    }
}
