//! `medvision extract` on documents.

use std::fs;

use serde_json::Value;

use super::fixture;
use crate::suite::program::{code, medvision, run, stderr, stdout, text};

fn extract(arguments: &[&str]) -> std::process::Output {
    let fixed = ["extract", "--device", "cpu", "--max-new-tokens", "8"];
    run(&[&fixed, arguments].concat())
}

#[test]
fn every_page_is_read_in_the_order_asked_for() {
    let file = fixture("text.pdf");
    let output = extract(&["--json", "--pages", "-1,1", text(&file)]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let records: Vec<Value> = stdout(&output)
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let pages: Vec<_> = records.iter().map(|record| record["page"].as_u64()).collect();
    assert_eq!(pages, [Some(3), Some(1)]);
    assert!(records.iter().all(|record| record["file"] == text(&file)));
    let (first, second) = (&records[0]["extracted_content"], &records[1]["extracted_content"]);
    assert!(first.as_str().is_some_and(|text| !text.is_empty()));
    assert_ne!(first, second);
    // Rendered at 150 % by its UserUnit, and cropped.
    assert!(
        stderr(&output).contains("text.pdf, page 3: "),
        "{}",
        stderr(&output)
    );

    let output = extract(&[text(&file)]);
    let printed = stdout(&output);
    for number in 1..=3 {
        assert!(
            printed.contains(&format!("==> {}, page {number} <==\n", text(&file))),
            "{printed}"
        );
    }
}

#[test]
fn a_file_with_a_password_needs_it() {
    let file = fixture("aes.pdf");
    let output = extract(&[text(&file)]);
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("--password-file"), "{}", stderr(&output));
    let folder = tempfile::tempdir().expect("a folder");
    let password = folder.path().join("password");
    for (content, status) in [("wärd\n", 0), ("wärd\r\nsecond line", 0), ("word", 1)] {
        fs::write(&password, content).expect("a file");
        let output = extract(&["--pages", "1", "--password-file", text(&password), text(&file)]);
        assert_eq!(code(&output), status, "{}", stderr(&output));
        assert!(
            !stderr(&output).contains("word") || stderr(&output).contains("password"),
            "{}",
            stderr(&output)
        );
    }
    let output = extract(&["--password-file", "/no/such/file", text(&file)]);
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("/no/such/file"), "{}", stderr(&output));
}

#[test]
fn pages_that_do_not_exist_are_named() {
    let file = fixture("text.pdf");
    let output = extract(&["--pages", "4", text(&file)]);
    assert_eq!(code(&output), 1);
    let message = stderr(&output);
    assert!(
        message.contains("there is no page 4; the document has 3"),
        "{message}"
    );
    let output = extract(&["--pages", "3-1", text(&file)]);
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("--pages"), "{}", stderr(&output));
}

#[test]
fn a_damaged_document_does_not_stop_the_others() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("a.pdf"), b"%PDF-1.7 nothing").expect("a file");
    fs::copy(fixture("form.pdf"), folder.path().join("b")).expect("a file");
    let output = extract(&["--json", text(folder.path())]);
    assert_eq!(code(&output), 1);
    assert!(
        stderr(&output).contains("a.pdf: the PDF is damaged"),
        "{}",
        stderr(&output)
    );
    assert_eq!(stdout(&output).lines().count(), 1);
}

#[test]
fn a_worker_without_a_parent_ends() {
    // As started: its input is at its end.
    let output = medvision(&["decode-documents"]).output().expect("it runs");
    assert_eq!(
        (code(&output), stdout(&output), stderr(&output)),
        (0, String::new(), String::new())
    );
}
