//! Fixed document sets: the built-in test documents and evaluation cases, or the user's own in the same format.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::fs::{read_text, write_atomically};
use crate::processing::RgbPage;
use crate::rendering::{PageSize, document_page, encode_rgb};
use crate::{Error, Result};

const TEST: &str = include_str!("../datasets/documents/test_documents.json");
const EVALUATION: &str = include_str!("../datasets/documents/evaluation_cases.json");
const CALIBRATION: &str = include_str!("../datasets/documents/calibration_pages.json");
/// Maximum size of a set's file: every page of it is rendered and read.
const MAX_BYTES: u64 = 16 << 20;

/// A page's text, a prompt about it, and the terms and values that the answer must contain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TestDocument {
    /// Id in records.
    pub id: String,
    /// File name of the page image, `NAME.png`.
    pub filename: String,
    /// Title of the page.
    pub title: String,
    /// Lines below the title.
    pub content: Vec<String>,
    /// Prompt.
    pub prompt: String,
    /// Expected words: drugs, diagnoses, findings, abbreviations.
    pub expected_terms: Vec<String>,
    /// Expected values, with units and frequencies.
    pub expected_values: Vec<String>,
}

impl TestDocument {
    /// Renders the page: border, title, rule, lines.
    pub fn page(&self, size: PageSize) -> RgbPage {
        document_page(&self.title, &self.content, size)
    }
}

/// A set of documents: `{"documents": [...]}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DocumentSet {
    /// At least one; ids and file names are unique.
    pub documents: Vec<TestDocument>,
}

impl DocumentSet {
    /// The five documents of the benchmarks.
    pub fn test() -> Self {
        built_in(TEST)
    }

    /// The five cases of the evaluation.
    pub fn evaluation() -> Self {
        built_in(EVALUATION)
    }

    /// Synthetic pages for quantization calibration, without expected terms; they share no line with the other sets.
    pub fn calibration() -> Self {
        built_in(CALIBRATION)
    }

    /// Reads a set from a file (`--documents FILE.json`). Errors name the document and the key.
    pub fn load(path: &Path) -> Result<Self> {
        let text = read_text(path, MAX_BYTES).map_err(|error| Error::io(path, error))?;
        Self::parse(&text).map_err(|reason| Error::invalid_file(path, reason))
    }

    /// Renders every page to `folder`, which is created if needed; returns the paths in the set's order.
    pub fn write_pages(&self, folder: &Path, size: PageSize) -> Result<Vec<PathBuf>> {
        std::fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
        self.documents
            .par_iter()
            .map(|document| {
                let path = folder.join(&document.filename);
                let page = document.page(size);
                write_atomically(&path, |file| encode_rgb(&page, file))?;
                Ok(path)
            })
            .collect()
    }

    fn parse(text: &str) -> Result<Self, String> {
        let set: Self =
            serde_json::from_str(text).map_err(|error| format!("not a set of documents: {error}"))?;
        set.check()?;
        Ok(set)
    }

    fn check(&self) -> Result<(), String> {
        if self.documents.is_empty() {
            return Err("\"documents\" is empty".to_owned());
        }
        let (mut ids, mut filenames) = (HashSet::new(), HashSet::new());
        for (index, document) in self.documents.iter().enumerate() {
            let fault = |reason: &str| Err(format!("document {} ({:?}): {reason}", index + 1, document.id));
            if document.id.trim().is_empty() {
                return fault("\"id\" is empty");
            }
            if !ids.insert(&document.id) {
                return fault("\"id\" occurs twice");
            }
            if !is_page_name(&document.filename) {
                return fault("\"filename\" must be a plain file name that ends in .png");
            }
            if !filenames.insert(document.filename.to_lowercase()) {
                return fault("\"filename\" occurs twice");
            }
            if document.content.iter().all(|line| line.trim().is_empty()) {
                return fault("\"content\" has no text");
            }
            if document.prompt.trim().is_empty() {
                return fault("\"prompt\" is empty");
            }
            let mut expected = document.expected_terms.iter().chain(&document.expected_values);
            if expected.any(|item| item.trim().is_empty()) {
                return fault("an expected term or value is empty");
            }
        }
        Ok(())
    }
}

/// Whether the file name is safe to write to: no path separators, not hidden.
fn is_page_name(name: &str) -> bool {
    let stem = name.strip_suffix(".png").unwrap_or_default();
    name.len() <= 255
        && !stem.is_empty()
        && !stem.starts_with('.')
        && !name.contains(['/', '\\', ':'])
        && !name.chars().any(char::is_control)
}

fn built_in(text: &str) -> DocumentSet {
    DocumentSet::parse(text).expect("the built-in documents are checked by the tests")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processing::{DecodeLimits, decode};
    use crate::rendering::TEST_PAGE;
    use serde_json::{Value, json};

    fn document(change: impl FnOnce(&mut Value)) -> Value {
        let mut document = json!({
            "id": "one", "filename": "one.png", "title": "ONE", "content": ["a line"], "prompt": "Read.",
            "expected_terms": ["line"], "expected_values": [],
        });
        change(&mut document);
        document
    }

    fn fault(documents: &[Value]) -> String {
        DocumentSet::parse(&json!({ "documents": documents }).to_string()).unwrap_err()
    }

    #[test]
    fn a_valid_set_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine.json");
        let set = json!({"documents": [document(|_| ())], "comment": "kept by its author"});
        std::fs::write(&path, set.to_string()).unwrap();
        let read = DocumentSet::load(&path).unwrap();
        assert_eq!(read.documents.len(), 1);
        assert_eq!(read.documents[0].content, ["a line"]);
    }

    #[test]
    fn pages_are_written_under_their_file_names() {
        let folder = tempfile::tempdir().unwrap();
        let images = folder.path().join("datasets/test_images");
        let paths = DocumentSet::test().write_pages(&images, TEST_PAGE).unwrap();
        assert_eq!(paths.len(), 5);
        assert_eq!(paths[4], images.join("discharge_summary.png"));
        let page = decode(&std::fs::read(&paths[4]).unwrap(), &DecodeLimits::default()).unwrap();
        assert_eq!(page, DocumentSet::test().documents[4].page(TEST_PAGE));
        assert_eq!(std::fs::read_dir(&images).unwrap().count(), 5);
    }

    #[test]
    fn errors_name_the_document_and_the_key() {
        assert!(fault(&[]).contains("empty"));
        for name in [
            "",
            "one.jpg",
            ".png",
            ".x.png",
            "../one.png",
            "a/b.png",
            "a\\b.png",
            "a\nb.png",
        ] {
            let reason = fault(&[document(|d| d["filename"] = json!(name))]);
            assert!(reason.contains("\"filename\" must be"), "{name:?}: {reason}");
        }
        let twice = fault(&[document(|_| ()), document(|d| d["filename"] = json!("two.png"))]);
        assert!(
            twice.contains("document 2 (\"one\"): \"id\" occurs twice"),
            "{twice}"
        );
        let twice = fault(&[
            document(|_| ()),
            document(|d| {
                d["id"] = json!("two");
                d["filename"] = json!("ONE.png");
            }),
        ]);
        assert!(twice.contains("\"filename\" occurs twice"), "{twice}");
        for (key, value) in [
            ("id", json!(" ")),
            ("content", json!([])),
            ("content", json!([" "])),
            ("prompt", json!("\n")),
            ("expected_terms", json!([""])),
            ("expected_values", json!([" "])),
        ] {
            let reason = fault(&[document(|d| d[key] = value)]);
            assert!(reason.contains("document 1"), "{key}: {reason}");
        }
    }

    #[test]
    fn missing_keys_wrong_types_and_missing_files_are_named() {
        for key in [
            "id",
            "filename",
            "title",
            "content",
            "prompt",
            "expected_terms",
            "expected_values",
        ] {
            let reason = fault(&[document(|d| {
                d.as_object_mut().unwrap().remove(key);
            })]);
            assert!(reason.contains(&format!("`{key}`")), "{reason}");
        }
        assert!(fault(&[document(|d| d["content"] = json!("text"))]).contains("sequence"));
        let error = DocumentSet::load(Path::new("absent.json"))
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("absent.json: "), "{error}");
    }
}
