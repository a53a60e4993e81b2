//! An answer as a list of items against the list that it should be.

use std::collections::HashMap;
use std::ops::AddAssign;

use strsim::levenshtein;

use super::text::{flat, numbers};
use crate::synthetic::empty_answer;

/// What became of an answer's items.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ItemScore {
    /// There should be.
    pub expected: u64,
    /// Lines of the answer.
    pub answered: u64,
    /// Right in every character, letter case and spacing aside.
    pub exact: u64,
    /// Right in every number, and in nine of ten characters.
    pub near: u64,
    /// Lines of the answer that the page does not say, in whatever order.
    pub invented: u64,
}

/// A share of so much.
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

impl ItemScore {
    /// Of the answered items, how many are right.
    pub fn precision(&self) -> f64 {
        share(self.exact, self.answered)
    }

    /// Of the expected items, how many were answered.
    pub fn recall(&self) -> f64 {
        share(self.exact, self.expected)
    }

    /// Harmonic mean of both; 1 where nothing should be answered and nothing was.
    pub fn f1(&self) -> f64 {
        self.f1_of(self.exact)
    }

    /// The same with items that are nearly right.
    pub fn near_f1(&self) -> f64 {
        self.f1_of(self.near)
    }

    fn f1_of(&self, right: u64) -> f64 {
        match self.expected + self.answered {
            0 => 1.0,
            both => share(2 * right, both),
        }
    }

    /// Of the answered items, how many are invented.
    pub fn invented_share(&self) -> f64 {
        share(self.invented, self.answered)
    }
}

impl AddAssign for ItemScore {
    fn add_assign(&mut self, other: Self) {
        self.expected += other.expected;
        self.answered += other.answered;
        self.exact += other.exact;
        self.near += other.near;
        self.invented += other.invented;
    }
}

/// An item without what makes no difference.
fn plain(item: &str) -> String {
    flat(item).to_lowercase()
}

/// The items of an answer: its lines; none where it says that there is nothing of the kind.
pub fn answered_items(answer: &str) -> Vec<String> {
    let empty = plain(empty_answer());
    let lines = answer.lines().map(plain);
    lines.filter(|line| !line.is_empty() && *line != empty).collect()
}

/// Scores an answer about a page; an item that is expected twice is to be answered twice.
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
        } else if !page.says(&item) {
            score.invented += 1;
        }
    }
    score
}

/// Removes pairs of equal items from both lists and counts them.
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

/// The same numbers, and one character in ten wrong at most.
fn is_near(expected: &str, answered: &str) -> bool {
    let most = expected.chars().count() / 10;
    numbers(expected) == numbers(answered) && levenshtein(expected, answered) <= most
}

/// What a page says, to look items up in.
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

    /// The item stands on the page, or three quarters of its words do: reading errors are not inventions.
    fn says(&self, item: &str) -> bool {
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

    /// One letter of five may be wrong, no digit.
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

/// A word without what stands around it.
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
    fn items_are_counted_by_kind_of_error() {
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
                invented: 1
            }
        );
        assert_eq!((score.precision(), score.recall()), (0.25, 1.0 / 3.0));
        assert!((score.f1() - 2.0 / 7.0).abs() < 1e-12);
    }

    #[test]
    fn another_number_is_no_near_miss() {
        let expected = list(&["Carvedilol 12.5 mg PO BID"]);
        let score = score_items(&expected, "Carvedilol 12.0 mg PO BID", PAGE);
        assert_eq!((score.exact, score.near), (0, 0));
    }

    #[test]
    fn nothing_is_no_item_and_right_where_nothing_is_expected() {
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
    fn the_whole_page_is_a_poor_answer_to_a_question_about_a_part() {
        let score = score_items(&list(&["Sodium 131 mmol/L L"]), PAGE, PAGE);
        assert_eq!(
            (score.recall(), score.precision(), score.invented),
            (1.0, 0.25, 0)
        );
    }

    proptest! {
        #[test]
        fn the_expected_answer_scores_one_in_any_order(items in vec("[a-z]{1,8} [0-9]{1,3}", 1..12), turn in 0usize..12) {
            let mut turned = items.clone();
            turned.rotate_left(turn % items.len());
            let score = score_items(&items, &turned.join("\n"), &items.join("\n"));
            prop_assert_eq!((score.exact, score.near, score.invented), (items.len() as u64, items.len() as u64, 0));
            prop_assert_eq!(score.f1(), 1.0);
        }

        #[test]
        fn counts_never_exceed_what_there_is(items in vec("[ab]{1,3}", 0..9), answer in "[ab\n]{0,40}", page in "[ab ]{0,20}") {
            let score = score_items(&items, &answer, &page);
            prop_assert!(score.exact <= score.near && score.near <= score.expected.min(score.answered));
            prop_assert!(score.near + score.invented <= score.answered);
            prop_assert!((0.0..=1.0).contains(&score.f1()) && score.f1() <= score.near_f1());
        }
    }
}
