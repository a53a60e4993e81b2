//! Accuracy of an answer by expected terms and values.

use crate::records::{Accuracy, Extra};

/// Scores an answer: a term or value counts if it occurs as a substring, ignoring case.
///
/// If no terms (or values) are expected, their accuracy is 0 and the combined accuracy is that of the values (or terms).
pub fn score(response: &str, terms: &[String], values: &[String]) -> Accuracy {
    let response = response.to_lowercase();
    let (terms, values) = (Hits::of(&response, terms), Hits::of(&response, values));
    let combined = match (terms.total, values.total) {
        (0, _) => values.percent(),
        (_, 0) => terms.percent(),
        _ => (terms.percent() + values.percent()) / 2.0,
    };
    Accuracy {
        term_accuracy: rounded(terms.percent()),
        value_accuracy: rounded(values.percent()),
        combined_accuracy: rounded(combined),
        terms_found: terms.found,
        terms_total: terms.total,
        terms_missed: terms.missed,
        values_found: values.found,
        values_total: values.total,
        values_missed: values.missed,
        extra: Extra::new(),
    }
}

/// Expected items found in an answer.
struct Hits {
    found: u64,
    total: u64,
    missed: Vec<String>,
}

impl Hits {
    fn of(response: &str, expected: &[String]) -> Self {
        let mut missed: Vec<String> = expected
            .iter()
            .filter(|item| !response.contains(&item.to_lowercase()))
            .cloned()
            .collect();
        let total = expected.len() as u64;
        let found = total - missed.len() as u64;
        missed.sort_unstable();
        missed.dedup();
        Self { found, total, missed }
    }

    fn percent(&self) -> f64 {
        if self.total == 0 {
            return 0.0;
        }
        self.found as f64 / self.total as f64 * 100.0
    }
}

/// Rounds to 2 decimals like Python's `round`: by the exact decimal expansion, ties to even.
fn rounded(percent: f64) -> f64 {
    format!("{percent:.2}").parse().unwrap_or(percent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn list(items: &[&str]) -> Vec<String> {
        items.iter().map(|item| (*item).to_owned()).collect()
    }

    #[test]
    fn matching_ignores_case() {
        let terms = list(&["Metformin", "AKI", "lisinopril"]);
        let accuracy = score(
            "METFORMIN 500 mg PO BID for aki",
            &terms,
            &list(&["500 mg", "po bid"]),
        );
        assert_eq!((accuracy.terms_found, accuracy.terms_total), (2, 3));
        assert_eq!((accuracy.values_found, accuracy.values_total), (2, 2));
        assert_eq!(accuracy.terms_missed, ["lisinopril"]);
        assert!(accuracy.values_missed.is_empty());
        assert_eq!((accuracy.term_accuracy, accuracy.value_accuracy), (66.67, 100.0));
        // The mean of 66.666... and 100, rounded once.
        assert_eq!(accuracy.combined_accuracy, 83.33);
    }

    #[test]
    fn missed_items_are_sorted_without_duplicates() {
        let accuracy = score("", &list(&["b", "B", "a", "b"]), &list(&["10", "1"]));
        assert_eq!(accuracy.terms_missed, ["B", "a", "b"]);
        assert_eq!(accuracy.values_missed, ["1", "10"]);
        assert_eq!((accuracy.terms_found, accuracy.terms_total), (0, 4));
        assert_eq!(accuracy.combined_accuracy, 0.0);
    }

    #[test]
    fn without_expected_values_the_combined_accuracy_is_that_of_the_terms() {
        let accuracy = score("a", &list(&["a", "x"]), &[]);
        assert_eq!((accuracy.term_accuracy, accuracy.value_accuracy), (50.0, 0.0));
        assert_eq!(accuracy.combined_accuracy, 50.0);
        assert_eq!(score("a", &[], &[]).combined_accuracy, 0.0);
    }

    #[test]
    fn rounding_is_pythons() {
        // Python: round(x, 2) of 0.125, 2.675, 1.005, 0.375, 66.66666666666666, 99.995.
        let expected = [0.12, 2.67, 1.0, 0.38, 66.67, 100.0];
        for (value, expected) in [0.125, 2.675, 1.005, 0.375, 66.66666666666666, 99.995]
            .into_iter()
            .zip(expected)
        {
            assert_eq!(rounded(value), expected, "{value}");
        }
    }

    proptest! {
        #[test]
        fn an_answer_that_holds_everything_scores_100(items in vec("[A-Za-z0-9/%., -]{1,20}", 1..20), upper: bool) {
            let text = items.join("\n");
            let text = if upper { text.to_uppercase() } else { text.to_lowercase() };
            let accuracy = score(&text, &items, &items);
            prop_assert_eq!(accuracy.combined_accuracy, 100.0);
            prop_assert!(accuracy.terms_missed.is_empty() && accuracy.values_missed.is_empty());
        }

        #[test]
        fn counts_and_percentages_agree(text in "[ab ]{0,12}", terms in vec("[ab]{1,4}", 0..9), values in vec("[ab]{1,4}", 0..9)) {
            let accuracy = score(&text, &terms, &values);
            let found = terms.iter().filter(|term| text.contains(term.as_str())).count() as u64;
            prop_assert_eq!((accuracy.terms_found, accuracy.terms_total), (found, terms.len() as u64));
            let sides = [
                (accuracy.term_accuracy, accuracy.terms_found, accuracy.terms_total, &accuracy.terms_missed),
                (accuracy.value_accuracy, accuracy.values_found, accuracy.values_total, &accuracy.values_missed),
            ];
            for (percent, found, total, missed) in sides {
                let exact = if total == 0 { 0.0 } else { found as f64 * 100.0 / total as f64 };
                prop_assert!((percent - exact).abs() <= 0.005 + 1e-9);
                prop_assert!(missed.windows(2).all(|pair| pair[0] < pair[1]));
                prop_assert!(missed.len() as u64 <= total - found);
                prop_assert_eq!(missed.is_empty(), found == total);
            }
            // More text never finds less.
            let more = score(&format!("{text} ab"), &terms, &values);
            prop_assert!(more.terms_found >= accuracy.terms_found && more.values_found >= accuracy.values_found);
        }
    }
}
