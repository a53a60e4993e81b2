//! Compares the items of an answer with the expected items.

use std::collections::HashMap;
use std::ops::AddAssign;

use strsim::levenshtein;

use super::text::numbers;
use crate::rendering::collapse_whitespace;
use crate::synthetic::empty_answer;

/// Counts of expected, answered, correct and hallucinated items.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ItemScore {
    /// Number of expected items.
    pub expected: u64,
    /// Number of answered items, one per line.
    pub answered: u64,
    /// Exact matches, ignoring case and spacing.
    pub exact: u64,
    /// Exact matches, and items with all numbers and nine of ten characters correct.
    pub near: u64,
    /// Answered items that are not on the page in any form.
    pub hallucinated: u64,
}

/// `part / whole`, 0 if `whole` is 0.
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

impl ItemScore {
    /// Exact matches per answered item.
    pub fn precision(&self) -> f64 {
        share(self.exact, self.answered)
    }

    /// Exact matches per expected item.
    pub fn recall(&self) -> f64 {
        share(self.exact, self.expected)
    }

    /// Harmonic mean of precision and recall; 1 if no item was expected and none answered.
    pub fn f1(&self) -> f64 {
        self.f1_of(self.exact)
    }

    /// The same with near matches.
    pub fn near_f1(&self) -> f64 {
        self.f1_of(self.near)
    }

    fn f1_of(&self, correct: u64) -> f64 {
        match self.expected + self.answered {
            0 => 1.0,
            both => share(2 * correct, both),
        }
    }

    /// Hallucinated items per answered item.
    pub fn hallucination_rate(&self) -> f64 {
        share(self.hallucinated, self.answered)
    }
}

impl AddAssign for ItemScore {
    fn add_assign(&mut self, other: Self) {
        self.expected += other.expected;
        self.answered += other.answered;
        self.exact += other.exact;
        self.near += other.near;
        self.hallucinated += other.hallucinated;
    }
}

/// Lower case with single spaces.
fn plain(item: &str) -> String {
    collapse_whitespace(item).to_lowercase()
}

/// The items of an answer: its non-empty lines, without the answer that stands for "none".
pub fn answered_items(answer: &str) -> Vec<String> {
    let empty = plain(empty_answer());
    let lines = answer.lines().map(plain);
    lines.filter(|line| !line.is_empty() && *line != empty).collect()
}

/// Scores an answer about a page. An item that is expected twice must be answered twice.
pub fn score_items(expected: &[String], answer: &str, page: &str) -> ItemScore {
    let mut expected: Vec<String> = expected.iter().map(|item| plain(item)).collect();
    let mut answered = answered_items(answer);
    let mut score = ItemScore {
        expected: expected.len() as u64,
        answered: answered.len() as u64,
        ..ItemScore::default()
    };
    score.exact = take_equal(&mut expected, &mut answered);
    score.near = score.exact;
    let page = Page::new(page);
    for item in answered {
        if let Some(index) = expected.iter().position(|wanted| is_near(wanted, &item)) {
            expected.swap_remove(index);
            score.near += 1;
        } else if !page.contains(&item) {
            score.hallucinated += 1;
        }
    }
    score
}

/// Removes equal items from both lists, pair by pair; returns their number.
fn take_equal(expected: &mut Vec<String>, answered: &mut Vec<String>) -> u64 {
    let mut left: HashMap<&str, usize> = HashMap::new();
    for item in answered.iter() {
        *left.entry(item).or_default() += 1;
    }
    let mut taken: HashMap<String, usize> = HashMap::new();
    expected.retain(|item| match left.get_mut(item.as_str()) {
        Some(count) if *count > 0 => {
            *count -= 1;
            *taken.entry(item.clone()).or_default() += 1;
            false
        }
        _ => true,
    });
    let count = taken.values().sum::<usize>();
    answered.retain(|item| match taken.get_mut(item) {
        Some(count) if *count > 0 => {
            *count -= 1;
            false
        }
        _ => true,
    });
    count as u64
}

/// Whether the numbers are equal and at most one character in ten differs.
fn is_near(expected: &str, answered: &str) -> bool {
    let most = expected.chars().count() / 10;
    numbers(expected) == numbers(answered) && levenshtein(expected, answered) <= most
}

/// Text of a page, to look items up in.
struct Page {
    text: String,
    words: Vec<String>,
}

impl Page {
    fn new(text: &str) -> Self {
        let text = plain(text);
        let words = text.split(' ').map(bare).collect();
        Self { text, words }
    }

    /// Whether the item, or three quarters of its words, are on the page: a misread item is not a hallucination.
    fn contains(&self, item: &str) -> bool {
        if self.text.contains(item) {
            return true;
        }
        let words: Vec<String> = item
            .split(' ')
            .map(bare)
            .filter(|word| !word.is_empty())
            .collect();
        let known = words.iter().filter(|word| self.has(word)).count();
        known * 4 >= words.len() * 3
    }

    /// Whether the page has the word; one letter in five may differ, no digit.
    fn has(&self, word: &str) -> bool {
        let exact = word.contains(|character: char| character.is_ascii_digit());
        let most = if exact { 0 } else { word.chars().count() / 5 };
        self.words.iter().any(|known| {
            known == word
                || most > 0
                    && known.len().abs_diff(word.len()) <= 2 * most
                    && levenshtein(known, word) <= most
        })
    }
}

/// A word without the punctuation around it.
fn bare(word: &str) -> String {
    word.trim_matches([',', ';', ':', '.', '(', ')', '[', ']'])
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn list(items: &[&str]) -> Vec<String> {
        items.iter().map(|item| (*item).to_owned()).collect()
    }

    const PAGE: &str =
        "MEDICATIONS:\n1. Warfarin 4 mg PO daily - HOLD\n2. Carvedilol 12.5 mg PO BID\nSodium 131 mmol/L L";

    #[test]
    fn items_are_counted_as_exact_near_or_hallucinated() {
        let expected = list(&[
            "Warfarin 4 mg PO daily",
            "Carvedilol 12.5 mg PO BID",
            "Ramipril 10 mg PO daily",
        ]);
        let answer =
            "warfarin  4 mg PO daily\nCarvedjlol 12.5 mg PO BID\nSodium 131 mmol/L L\nMorphine 30 mg IV once";
        let score = score_items(&expected, answer, PAGE);
        assert_eq!(
            score,
            ItemScore {
                expected: 3,
                answered: 4,
                exact: 1,
                near: 2,
                hallucinated: 1
            }
        );
        assert_eq!((score.precision(), score.recall()), (0.25, 1.0 / 3.0));
        assert!((score.f1() - 2.0 / 7.0).abs() < 1e-12);
    }

    #[test]
    fn a_wrong_number_is_not_a_near_match() {
        let expected = list(&["Carvedilol 12.5 mg PO BID"]);
        let score = score_items(&expected, "Carvedilol 12.0 mg PO BID", PAGE);
        assert_eq!((score.exact, score.near), (0, 0));
    }

    #[test]
    fn the_empty_answer_has_no_items_and_is_correct_if_none_is_expected() {
        let score = score_items(&[], empty_answer(), PAGE);
        assert_eq!(score, ItemScore::default());
        assert_eq!(score.f1(), 1.0);
        assert_eq!(score_items(&[], "Warfarin 4 mg PO daily", PAGE).f1(), 0.0);
        assert_eq!(
            score_items(&list(&["Warfarin 4 mg PO daily"]), empty_answer(), PAGE).f1(),
            0.0
        );
    }

    #[test]
    fn answering_with_the_whole_page_lowers_precision() {
        let score = score_items(&list(&["Sodium 131 mmol/L L"]), PAGE, PAGE);
        assert_eq!(
            (score.recall(), score.precision(), score.hallucinated),
            (1.0, 0.25, 0)
        );
    }

    proptest! {
        #[test]
        fn the_expected_answer_scores_one_in_any_order(items in vec("[a-z]{1,8} [0-9]{1,3}", 1..12), turn in 0usize..12) {
            let mut turned = items.clone();
            turned.rotate_left(turn % items.len());
            let score = score_items(&items, &turned.join("\n"), &items.join("\n"));
            prop_assert_eq!((score.exact, score.near, score.hallucinated), (items.len() as u64, items.len() as u64, 0));
            prop_assert_eq!(score.f1(), 1.0);
        }

        #[test]
        fn counts_never_exceed_the_number_of_items(items in vec("[ab]{1,3}", 0..9), answer in "[ab\n]{0,40}", page in "[ab ]{0,20}") {
            let score = score_items(&items, &answer, &page);
            prop_assert!(score.exact <= score.near && score.near <= score.expected.min(score.answered));
            prop_assert!(score.near + score.hallucinated <= score.answered);
            prop_assert!((0.0..=1.0).contains(&score.f1()) && score.f1() <= score.near_f1());
        }
    }
}
