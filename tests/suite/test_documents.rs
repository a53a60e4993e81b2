//! The built-in documents: ids and file names of the original project, density, expected terms and values.

use std::collections::HashSet;

use medical_vision::evaluation::score;
use medical_vision::test_documents::{DocumentSet, TestDocument};

const TEST: [(&str, &str); 5] = [
    ("patient_diagnosis", "patient_diagnosis.png"),
    ("radiology_report", "radiology_report.png"),
    ("prescription", "prescription.png"),
    ("lab_results", "lab_results.png"),
    ("discharge_summary", "discharge_summary.png"),
];

const EVALUATION: [(&str, &str); 5] = [
    ("eval_medication_reconciliation", "eval_med_reconciliation.png"),
    ("eval_icu_flowsheet", "eval_icu_flowsheet.png"),
    ("eval_cardiology_consult", "eval_cardiology_consult.png"),
    ("eval_complex_lab_panel", "eval_complex_labs.png"),
    ("eval_surgical_op_note", "eval_operative_note.png"),
];

fn all() -> Vec<TestDocument> {
    [DocumentSet::test(), DocumentSet::evaluation()]
        .into_iter()
        .flat_map(|set| set.documents)
        .collect()
}

fn names(set: &DocumentSet) -> Vec<(&str, &str)> {
    set.documents
        .iter()
        .map(|document| (document.id.as_str(), document.filename.as_str()))
        .collect()
}

#[test]
fn ids_and_file_names_are_those_of_the_original_project() {
    assert_eq!(names(&DocumentSet::test()), TEST);
    assert_eq!(names(&DocumentSet::evaluation()), EVALUATION);
}

#[test]
fn pages_are_dense_and_render() {
    for document in all() {
        let id = &document.id;
        assert!((17..=28).contains(&document.content.len()), "{id}: lines");
        assert!((10..=40).contains(&document.title.len()), "{id}: title");
        for line in &document.content {
            assert!(line.is_ascii(), "{id}: {line}");
            assert!(line.len() <= 95, "{id} is too wide: {line}");
            assert_eq!(line.trim(), line, "{id}");
            assert!(!line.is_empty(), "{id}: an empty line");
        }
        let words = document.content.iter().flat_map(|line| line.split_whitespace());
        assert!(words.count() >= 120, "{id}: too little text");
    }
}

#[test]
fn expected_terms_and_values_are_on_one_line_of_the_page() {
    for document in all() {
        let lines: Vec<String> = document.content.iter().map(|line| line.to_lowercase()).collect();
        let expected = document.expected_terms.iter().chain(&document.expected_values);
        for item in expected {
            let wanted = item.to_lowercase();
            assert!(
                lines.iter().any(|line| line.contains(&wanted)),
                "{}: {item}",
                document.id
            );
            // Models write a run of spaces as one: an item with such a run would never match.
            assert_eq!(
                item.split_whitespace().collect::<Vec<_>>().join(" "),
                *item,
                "{}",
                document.id
            );
        }
        let text = document.content.join("\n");
        let accuracy = score(&text, &document.expected_terms, &document.expected_values);
        assert_eq!(accuracy.combined_accuracy, 100.0, "{}", document.id);
    }
}

#[test]
fn enough_terms_and_values_are_expected_without_duplicates() {
    for document in all() {
        let (terms, values) = (&document.expected_terms, &document.expected_values);
        assert!(
            (19..=28).contains(&terms.len()),
            "{}: {} terms",
            document.id,
            terms.len()
        );
        assert!(
            (19..=30).contains(&values.len()),
            "{}: {} values",
            document.id,
            values.len()
        );
        let distinct: HashSet<String> = terms
            .iter()
            .chain(values)
            .map(|item| item.to_lowercase())
            .collect();
        assert_eq!(
            distinct.len(),
            terms.len() + values.len(),
            "{}: an item twice",
            document.id
        );
    }
}

/// An abbreviation has two capitals; a unit or a frequency is a separate word.
#[test]
fn abbreviations_units_and_frequencies_are_expected() {
    let units = [
        "mg", "mcg", "mL", "mm", "cm", "ng/mL", "g/dL", "mg/dL", "mmol/L", "mmHg", "U/L", "IU/mL",
    ];
    let frequencies = ["BID", "TID", "daily", "q12h", "q6h", "q8h", "q24h", "qHS", "once"];
    let (mut with_units, mut with_frequencies) = (0, 0);
    for document in DocumentSet::evaluation().documents {
        let abbreviation = |item: &&String| item.chars().filter(char::is_ascii_uppercase).count() >= 2;
        assert!(
            document.expected_terms.iter().filter(abbreviation).count() >= 3,
            "{}: abbreviations",
            document.id
        );
        for value in &document.expected_values {
            let words: Vec<&str> = value.split_whitespace().collect();
            with_units += usize::from(words.iter().any(|word| units.contains(word)));
            with_frequencies += usize::from(words.iter().any(|word| frequencies.contains(word)));
        }
    }
    assert!(with_units >= 50, "{with_units} values with units");
    assert!(
        with_frequencies >= 12,
        "{with_frequencies} values with frequencies"
    );
}

#[test]
fn every_document_has_its_own_prompt() {
    let documents = all();
    let prompts: HashSet<&str> = documents
        .iter()
        .map(|document| document.prompt.as_str())
        .collect();
    assert_eq!(prompts.len(), documents.len());
    assert!(prompts.iter().all(|prompt| (40..=200).contains(&prompt.len())));
}

#[test]
fn calibration_pages_share_no_line_with_the_test_documents() {
    let measured = all();
    let lines: HashSet<&str> = measured
        .iter()
        .flat_map(|document| &document.content)
        .map(String::as_str)
        .collect();
    let six_words = |text: &str| -> HashSet<String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        words
            .windows(6)
            .map(|words| words.join(" ").to_lowercase())
            .collect()
    };
    let phrases: HashSet<String> = lines.iter().flat_map(|line| six_words(line)).collect();
    let calibration = DocumentSet::calibration().documents;
    assert_eq!(calibration.len(), 24);
    for document in &calibration {
        for line in &document.content {
            assert!(
                !lines.contains(line.as_str()) || line.split_whitespace().count() < 3,
                "{line}"
            );
            assert!(six_words(line).is_disjoint(&phrases), "{line}");
        }
        assert!(
            measured.iter().all(|other| other.prompt != document.prompt),
            "{}",
            document.prompt
        );
    }
}
