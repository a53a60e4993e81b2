//! Text metrics: character and word error rates, numbers, repetition.

use std::collections::{HashMap, HashSet};
use std::ops::AddAssign;

use strsim::{generic_levenshtein, levenshtein};

use crate::rendering::collapse_whitespace;

/// Edit distance and reference length, in characters or words.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ErrorRate {
    /// Insertions, deletions and substitutions.
    pub edits: u64,
    /// Length of the reference.
    pub length: u64,
}

impl ErrorRate {
    /// Edits per reference character or word; above 1 if the answer is much too long, 0 if both are empty.
    pub fn rate(&self) -> f64 {
        match (self.edits, self.length) {
            (0, _) => 0.0,
            (edits, length) => edits as f64 / length.max(1) as f64,
        }
    }
}

impl AddAssign for ErrorRate {
    fn add_assign(&mut self, other: Self) {
        self.edits += other.edits;
        self.length += other.length;
    }
}

/// Character error rate of `answer`; line breaks and runs of spaces are ignored.
pub fn character_errors(expected: &str, answer: &str) -> ErrorRate {
    let (expected, answer) = (collapse_whitespace(expected), collapse_whitespace(answer));
    ErrorRate {
        edits: levenshtein(&expected, &answer) as u64,
        length: expected.chars().count() as u64,
    }
}

/// Word error rate of `answer`.
pub fn word_errors(expected: &str, answer: &str) -> ErrorRate {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let (expected, answer) = (words(expected), words(answer));
    ErrorRate {
        edits: generic_levenshtein::<Words<'_>, Words<'_>, &String, &String>(
            &Words(&expected),
            &Words(&answer),
        ) as u64,
        length: expected.len() as u64,
    }
}

/// `generic_levenshtein` needs a type whose reference is iterable.
struct Words<'a>(&'a [String]);

impl<'a> IntoIterator for &Words<'a> {
    type Item = &'a String;
    type IntoIter = std::slice::Iter<'a, String>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

/// Numbers of a text in order: digits, also with a point, comma, slash or colon between digits ("1,250", "7.35", "158/92").
pub fn numbers(text: &str) -> Vec<&str> {
    let bytes = text.as_bytes();
    let digit = |index: usize| bytes.get(index).is_some_and(u8::is_ascii_digit);
    let mut found = Vec::new();
    let mut index = 0;
    while index < bytes.len() {
        if !digit(index) {
            index += 1;
            continue;
        }
        let start = index;
        while digit(index) || matches!(bytes.get(index), Some(b'.' | b',' | b'/' | b':')) && digit(index + 1)
        {
            index += 1;
        }
        // Digits and separators are ASCII: both ends are character boundaries.
        found.push(&text[start..index]);
    }
    found
}

/// Numbers of an answer, compared with the reference and with the page.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Numbers in the reference.
    pub expected: u64,
    /// How many of them are in the answer; repeated numbers must be repeated.
    pub found: u64,
    /// Numbers in the answer.
    pub answered: u64,
    /// How many of them are not on the page.
    pub hallucinated: u64,
}

impl Numbers {
    /// Counts the numbers of `answer`; `page` is the full text of the page.
    pub fn of(expected: &str, answer: &str, page: &str) -> Self {
        let on_page: HashSet<&str> = numbers(page).into_iter().collect();
        let answered = numbers(answer);
        let hallucinated = answered
            .iter()
            .filter(|number| !on_page.contains(*number))
            .count();
        let mut left: HashMap<&str, u64> = HashMap::new();
        for number in &answered {
            *left.entry(number).or_default() += 1;
        }
        let expected = numbers(expected);
        let found = expected.iter().filter(|number| {
            left.get_mut(**number).is_some_and(|count| {
                let there = *count > 0;
                *count = count.saturating_sub(1);
                there
            })
        });
        Self {
            found: found.count() as u64,
            expected: expected.len() as u64,
            answered: answered.len() as u64,
            hallucinated: hallucinated as u64,
        }
    }
}

impl AddAssign for Numbers {
    fn add_assign(&mut self, other: Self) {
        self.expected += other.expected;
        self.found += other.found;
        self.answered += other.answered;
        self.hallucinated += other.hallucinated;
    }
}

/// Fraction of an answer's 4-grams of words that are repeated; 0 for fewer than five words.
pub fn repetition_rate(answer: &str) -> f64 {
    let words: Vec<&str> = answer.split_whitespace().collect();
    let sequences = words.windows(4).count();
    if sequences < 2 {
        return 0.0;
    }
    let distinct: HashSet<&[&str]> = words.windows(4).collect();
    (sequences - distinct.len()) as f64 / sequences as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn error_rates_are_edits_per_reference_length() {
        assert_eq!(
            character_errors("Sodium 140", "Sodium 14"),
            ErrorRate { edits: 1, length: 10 }
        );
        assert_eq!(character_errors("a b\nc", "a  b c\n").edits, 0);
        assert_eq!(character_errors("", "").rate(), 0.0);
        assert_eq!(character_errors("", "abc").rate(), 3.0);
        assert_eq!(character_errors("ab", "").rate(), 1.0);
        assert_eq!(
            word_errors("take two tablets daily", "take ten tablets"),
            ErrorRate { edits: 2, length: 4 }
        );
    }

    #[test]
    fn numbers_include_separators_between_digits() {
        let text = "BP 158/92, K 3.5 mmol/L; 1,250 mL at 08:30. x10^3/µL 5. -2 v1.2.3 é4";
        assert_eq!(
            numbers(text),
            [
                "158/92", "3.5", "1,250", "08:30", "10", "3", "5", "2", "1.2.3", "4"
            ]
        );
        assert!(numbers("no digits, none.").is_empty());
    }

    #[test]
    fn repeated_numbers_count_and_numbers_that_are_not_on_the_page_are_hallucinated() {
        let score = Numbers::of(
            "5 mg, 5 mg, 10 mg",
            "5 mg 10 mg 77 mg 3",
            "5 mg, 5 mg, 10 mg on day 3",
        );
        assert_eq!(
            score,
            Numbers {
                expected: 3,
                found: 2,
                answered: 4,
                hallucinated: 1
            }
        );
    }

    #[test]
    fn repeated_sequences_are_counted() {
        assert_eq!(repetition_rate("one two three four five"), 0.0);
        assert_eq!(repetition_rate("a b c d"), 0.0);
        let again = "one two three four ".repeat(5);
        assert!(repetition_rate(&again) > 0.7, "{}", repetition_rate(&again));
    }

    proptest! {
        #[test]
        fn edit_distances_are_zero_for_equal_texts_symmetric_and_bounded(a in "[a-c 0-2]{0,40}", b in "[a-c 0-2]{0,40}") {
            prop_assert_eq!(character_errors(&a, &a).edits, 0);
            prop_assert_eq!(word_errors(&a, &a).edits, 0);
            let (one, other) = (character_errors(&a, &b), character_errors(&b, &a));
            prop_assert_eq!(one.edits, other.edits);
            prop_assert!(one.edits <= one.length.max(other.length));
            prop_assert!(one.edits >= one.length.abs_diff(other.length));
            prop_assert!(word_errors(&a, &b).edits <= one.edits.max(word_errors(&a, &b).length + word_errors(&b, &a).length));
        }

        #[test]
        fn numbers_are_substrings_and_counts_are_consistent(text in any::<String>(), other in "[0-9., /]{0,30}") {
            for number in numbers(&text) {
                prop_assert!(text.contains(number) && number.starts_with(|c: char| c.is_ascii_digit()));
            }
            let score = Numbers::of(&other, &other, &other);
            prop_assert_eq!((score.found, score.answered, score.hallucinated), (score.expected, score.expected, 0));
            let score = Numbers::of(&other, &text, &other);
            prop_assert!(score.found <= score.expected && score.hallucinated <= score.answered);
            prop_assert!((0.0..=1.0).contains(&repetition_rate(&text)));
        }
    }
}
