//! Options of the benchmarks, and the pages they read.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use crate::fs::{PICTURE_BYTES, read_bounded, write_atomically};
use crate::processing::{DecodeLimits, RgbPage, decode};
use crate::project::Project;
use crate::rendering::{TEST_PAGE, document_page, encode_rgb};
use crate::test_documents::{DocumentSet, TestDocument};
use crate::{Error, Result};

/// Folder of the pages of the test documents, relative to the project folder.
const TEST_IMAGES: &str = "datasets/test_images";

/// Options of a benchmark.
#[derive(Debug, Clone)]
pub struct BenchmarkOptions {
    /// JSON file with the documents; `None`: the five built-in ones.
    pub documents: Option<PathBuf>,
    /// Maximum number of new tokens per answer.
    pub max_new_tokens: usize,
    /// Read one page before measuring.
    pub warm_up: bool,
}

impl Default for BenchmarkOptions {
    fn default() -> Self {
        Self {
            documents: None,
            max_new_tokens: 512,
            warm_up: true,
        }
    }
}

impl BenchmarkOptions {
    /// Loads the documents.
    ///
    /// # Errors
    /// [`Error::InvalidFile`], if the file cannot be read as a set of documents.
    pub fn load_documents(&self) -> Result<Vec<TestDocument>> {
        let set = match &self.documents {
            Some(path) => DocumentSet::load(path)?,
            None => DocumentSet::test(),
        };
        Ok(set.documents)
    }
}

/// What to do if the image of a page exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// Render it again.
    Render,
    /// Use it as it is; render only missing pages.
    Keep,
}

impl Pages {
    /// Returns the page of each document, after writing missing ones to `datasets/test_images`.
    pub(super) fn load(self, documents: &[TestDocument], project: &Project) -> Result<Vec<RgbPage>> {
        let folder = project.file(TEST_IMAGES);
        fs::create_dir_all(&folder).map_err(|error| Error::io(&folder, error))?;
        documents
            .iter()
            .map(|document| {
                let path = folder.join(&document.filename);
                if self == Self::Keep && path.exists() {
                    let bytes =
                        read_bounded(&path, PICTURE_BYTES).map_err(|error| Error::io(&path, error))?;
                    return decode(&bytes, &DecodeLimits::default()).map_err(|error| {
                        Error::invalid_file(
                            &path,
                            format!("{error}; delete the file to have it rendered again"),
                        )
                    });
                }
                let page = document_page(&document.title, &document.content, TEST_PAGE);
                let mut bytes = Vec::new();
                encode_rgb(&page, &mut bytes).map_err(|error| Error::io(&path, error))?;
                write_atomically(&path, |file| file.write_all(&bytes))?;
                Ok(page)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_rendered_kept_or_rejected() {
        let folder = tempfile::tempdir().unwrap();
        let project = Project::open(Some(folder.path())).unwrap();
        let documents = DocumentSet::test().documents;
        let rendered = Pages::Keep.load(&documents, &project).unwrap();
        assert!(
            rendered
                .iter()
                .all(|page| (page.width, page.height) == (900, 1100))
        );
        let path = project.file(TEST_IMAGES).join(&documents[1].filename);
        let other = project.file(TEST_IMAGES).join(&documents[0].filename);
        fs::copy(&other, &path).unwrap();
        let kept = Pages::Keep.load(&documents, &project).unwrap();
        assert_eq!(kept[1].pixels, rendered[0].pixels);
        let again = Pages::Render.load(&documents, &project).unwrap();
        assert_eq!(again[1].pixels, rendered[1].pixels);
        fs::write(&path, "no picture").unwrap();
        let message = Pages::Keep.load(&documents, &project).unwrap_err().to_string();
        assert!(
            message.contains(&documents[1].filename) && message.contains("delete the file"),
            "{message}"
        );
    }
}
