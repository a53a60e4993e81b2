//! Deduplication: groups of samples with the same text or image.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

use crate::fs::hex;
use unicode_normalization::UnicodeNormalization;

/// Returns the key of a text: 16 hexadecimal digits of the SHA-256 of its words, lower-cased and in NFKC form. Punctuation
/// and spacing do not count.
pub(super) fn text_key(text: &str) -> String {
    let mut hasher = Sha256::new();
    let mut between = true;
    for character in text.nfkc().flat_map(char::to_lowercase) {
        if character.is_alphanumeric() {
            hasher.update(character.encode_utf8(&mut [0; 4]).as_bytes());
            between = false;
        } else if !between {
            hasher.update(b" ");
            between = true;
        }
    }
    // The last word is terminated like any other.
    if !between {
        hasher.update(b" ");
    }
    short_hex(hasher)
}

/// Returns the first 16 hexadecimal digits of a hash.
pub(super) fn short_hex(hasher: Sha256) -> String {
    hex(&hasher.finalize()[..8])
}

/// Groups items that share a key, transitively (union-find). Returns each item's group, numbered by first appearance.
pub(super) fn duplicate_groups<'a>(keys: impl Iterator<Item = [&'a str; 2]>) -> Vec<usize> {
    let mut parents: Vec<usize> = Vec::new();
    let mut owners: HashMap<&str, usize> = HashMap::new();
    for (item, keys) in keys.enumerate() {
        parents.push(item);
        for key in keys {
            let owner = *owners.entry(key).or_insert(item);
            let (a, b) = (root(&mut parents, owner), root(&mut parents, item));
            parents[a.max(b)] = a.min(b);
        }
    }
    let mut numbers = HashMap::new();
    (0..parents.len())
        .map(|item| {
            let root = root(&mut parents, item);
            let next = numbers.len();
            *numbers.entry(root).or_insert(next)
        })
        .collect()
}

fn root(parents: &mut [usize], mut item: usize) -> usize {
    while parents[item] != item {
        parents[item] = parents[parents[item]];
        item = parents[item];
    }
    item
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_ignore_case_punctuation_spacing_and_unicode_form() {
        let key = text_key("The patient (age 50) is fine.");
        for same in [
            "the  PATIENT, age 50\nis fine",
            " The patient age 50 is fine !",
            "The patient age ５０ is ﬁne",
        ] {
            assert_eq!(text_key(same), key, "{same}");
        }
        for other in [
            "The patient age 5 0 is fine",
            "The patient age 50 is fine now",
            "Thepatient age 50 is fine",
            "",
        ] {
            assert_ne!(text_key(other), key, "{other}");
        }
        assert_eq!(key.len(), 16);
    }

    #[test]
    fn shared_keys_join_groups_transitively() {
        let keys = [
            ["a", "1"],
            ["b", "2"],
            ["c", "3"],
            ["a", "2"],
            ["d", "4"],
            ["d", "5"],
        ];
        assert_eq!(duplicate_groups(keys.into_iter()), [0, 0, 1, 0, 2, 2]);
        assert_eq!(duplicate_groups([].into_iter()), [0; 0]);
    }

    proptest! {
        #[test]
        fn items_that_share_a_key_share_a_group(keys in proptest::collection::vec(("[a-f]", "[1-9]"), 0..40)) {
            let numbers = duplicate_groups(keys.iter().map(|(a, b)| [a.as_str(), b.as_str()]));
            for (one, a) in keys.iter().enumerate() {
                for (two, b) in keys.iter().enumerate() {
                    if a.0 == b.0 || a.1 == b.1 {
                        prop_assert_eq!(numbers[one], numbers[two]);
                    }
                }
            }
        }
    }
}
