//! The guard against endless repetition: cuts loops, spares tables.

use std::path::Path;

use medical_vision::generation::{RepetitionDetection, RepetitionGuard};
use medical_vision::processing::TextProcessor;
use proptest::prelude::*;
use serde_json::Value;

/// Position of the token at which the guard fires, and what it says.
fn fires(options: RepetitionDetection, tokens: &[i64]) -> Option<(usize, usize)> {
    let mut guard = RepetitionGuard::new(options);
    tokens
        .iter()
        .enumerate()
        .find_map(|(at, &token)| guard.push(token).map(|n| (at, n)))
}

fn tokenizer() -> TextProcessor {
    TextProcessor::from_dir(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/qwen25-vl-nano")).unwrap()
}

#[test]
fn loops_of_every_length_are_cut_and_trimmed_to_one_copy() {
    for size in 1..=512_usize {
        let start: Vec<i64> = (10_000..10_050).collect();
        let pattern: Vec<i64> = (0..size as i64).collect();
        let mut tokens = start.clone();
        tokens.extend(pattern.iter().cycle().take(4096));
        let (at, repeats) = fires(RepetitionDetection::default(), &tokens).expect("a loop must be cut");
        let covered = at + 1 - start.len();
        let allowed = 160.max(72 * size).min(640).max(4 * size);
        assert_eq!(covered, allowed, "{size}");
        assert_eq!(tokens[..at + 1 - repeats], [start, pattern].concat(), "{size}");
    }
}

#[test]
fn a_loop_of_text_is_cut_soon() {
    let tokenizer = tokenizer();
    let page = "Patient: Jane Roe\nMRN: 100234\n";
    for (looped, most) in [
        ("!", 160),
        ("0", 160),
        (" the", 160),
        ("\n", 170),
        ("0.", 160),
        (" and and", 160),
        ("N/A, ", 300),
        ("Glucose 5.4 mmol/L\n", 660),
        ("The patient denies chest pain, dyspnea, or syncope. ", 680),
        ("<tr><td>Normal</td><td>5.4</td></tr>\n", 700),
    ] {
        let tokens = tokenizer
            .encode_plain(&format!("{page}{}", looped.repeat(2000)))
            .unwrap();
        let start = tokenizer.encode_plain(page).unwrap().len();
        let (at, repeats) = fires(RepetitionDetection::default(), &tokens).expect(looped);
        assert!(
            at <= start + most,
            "{looped:?} was cut after {} tokens",
            at - start
        );
        let kept = tokenizer.decode(&tokens[..at + 1 - repeats]).unwrap();
        assert!(kept.len() <= page.len() + 3 * looped.len() + 16, "{kept:?}");
    }
}

#[test]
fn tables_that_rightly_repeat_are_not_cut() {
    let tokenizer = tokenizer();
    let rows = |row: &str, count: usize| format!("RESULTS\n{}END\n", format!("{row}\n").repeat(count));
    let tables = [
        rows("Normal | Normal | Normal | Normal | Normal | Normal", 40),
        rows("| Normal | Normal | Normal | Normal |", 40),
        rows("| --- | --- | --- |", 40),
        rows("|   |   |   |", 50),
        rows("N/A", 60),
        rows("WNL", 66),
        rows("0", 66),
        rows("[ ]", 66),
        rows("", 60),
        rows(" ", 60),
        rows("-----", 66),
        rows(&"-".repeat(95), 60),
        rows(&"=".repeat(60), 8),
        rows(&"_".repeat(90), 25),
        rows(&".".repeat(110), 5),
        rows(&". ".repeat(60), 5),
        rows(&"*".repeat(140), 4),
        rows("Metoprolol tartrate 25 mg tablet PO BID", 30),
        rows("Acetaminophen 650 mg PO every 6 hours as needed for pain", 30),
        rows("  - Metformin 500 mg PO BID with meals; refills: 3", 30),
        rows("120/80 | 72 | 98.6 | 16 | 98%", 24),
        rows("Name: ________ Date: ________ Initials: ________", 30),
        rows(
            "Drug: ________\nDose: ________\nRoute: ________\nTime: ________",
            12,
        ),
        rows("<tr><td>Normal</td><td>Normal</td></tr>", 20),
    ];
    for table in tables {
        let tokens = tokenizer.encode_plain(&table).unwrap();
        let cut = fires(RepetitionDetection::default(), &tokens);
        assert_eq!(
            cut,
            None,
            "{} tokens of {:?}",
            tokens.len(),
            &table[..60.min(table.len())]
        );
    }
}

#[test]
fn ordinary_pages_are_not_cut() {
    let tokenizer = tokenizer();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pages.json");
    let pages: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let pages = pages["pages"].as_array().unwrap();
    assert!(pages.len() >= 20);
    for page in pages {
        let tokens = tokenizer.encode_plain(page["text"].as_str().unwrap()).unwrap();
        assert_eq!(
            fires(RepetitionDetection::default(), &tokens),
            None,
            "{}",
            page["file"]
        );
    }
}

#[test]
fn a_break_in_the_pattern_starts_the_count_anew() {
    let options = RepetitionDetection {
        max_pattern_size: 4,
        min_pattern_size: 1,
        min_count: 3,
        min_span: 0,
    };
    assert_eq!(fires(options, &[1, 2, 1, 2, 9, 1, 2, 1, 2]), None);
    assert_eq!(fires(options, &[1, 2, 1, 2, 9, 1, 2, 1, 2, 1, 2]), Some((10, 4)));
}

#[test]
fn a_guard_without_a_rule_never_fires() {
    for (max_pattern_size, min_pattern_size, min_count) in [(0, 0, 3), (3, 1, 0), (3, 1, 1), (2, 3, 2)] {
        let options = RepetitionDetection {
            max_pattern_size,
            min_pattern_size,
            min_count,
            min_span: 0,
        };
        assert_eq!(fires(options, &[5; 100]), None);
    }
    // Sizes nobody checked take no memory ahead of the tokens.
    let huge = RepetitionDetection {
        max_pattern_size: usize::MAX,
        min_pattern_size: 1,
        min_count: 2,
        min_span: usize::MAX,
    };
    assert_eq!(fires(huge, &[5; 100]), None);
}

/// vLLM's `check_sequence_repetition` at the end of `tokens`: the smallest pattern that stands there often enough.
fn naive(tokens: &[i64], options: &RepetitionDetection) -> Option<usize> {
    (options.min_pattern_size..=options.max_pattern_size).find(|&size| {
        let span = size * options.min_count;
        span <= tokens.len()
            && tokens[tokens.len() - span..]
                .chunks(size)
                .all(|c| *c == tokens[tokens.len() - size..])
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn without_a_span_the_rule_is_vllms(
        tokens in prop::collection::vec(0..3_i64, 0..80), min in 1..4_usize, more in 0..5_usize, count in 2..5_usize
    ) {
        let options = RepetitionDetection {
            max_pattern_size: min + more, min_pattern_size: min, min_count: count, min_span: 0,
        };
        let mut guard = RepetitionGuard::new(options);
        for (at, &token) in tokens.iter().enumerate() {
            let fired = guard.push(token);
            let size = naive(&tokens[..=at], &options);
            prop_assert_eq!(fired.is_some(), size.is_some());
            if let (Some(repeats), Some(size)) = (fired, size) {
                // That many tokens equal the one a pattern before them, and the one before those does not.
                let (kept, end) = tokens[..=at].split_at(at + 1 - repeats);
                prop_assert!(kept.len() >= size);
                prop_assert!(end.iter().enumerate().all(|(i, t)| *t == tokens[kept.len() + i - size]));
                prop_assert!(kept.len() == size || tokens[kept.len() - 1] != tokens[kept.len() - 1 - size]);
            }
        }
    }
}
