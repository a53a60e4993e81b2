//! Flags of the benchmarks, and the pages they read.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use clap::value_parser;

use crate::documents::{Document, DocumentSet};
use crate::fs::{PICTURE_BYTES, read_bounded, write_atomically};
use crate::processing::{DecodeLimits, RgbPage, decode};
use crate::project::Project;
use crate::rendering::{TEST_PAGE, document_page, encode_rgb};
use crate::{Error, Result};

/// Where the pages of the test documents lie.
const TEST_IMAGES: &str = "datasets/test_images";

/// Flags of the benchmarks.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Benchmark options")]
pub struct BenchmarkArgs {
    /// Documents to use instead of the five built-in ones
    ///
    /// {"documents": [{"id", "filename", "title", "content": ["line", ...], "prompt", "expected_terms": ["..."], ...}]}
    #[arg(long, value_name = "FILE.json", env = "MVP_DOCUMENTS", hide_env_values = true)]
    pub documents: Option<PathBuf>,

    /// Maximum number of new tokens per answer
    #[arg(long, value_name = "N", env = "MVP_MAX_NEW_TOKENS", default_value_t = 512, hide_env_values = true,
          value_parser = value_parser!(u32).range(1..))]
    pub max_new_tokens: u32,

    /// Skip the warm-up page before measuring
    #[arg(long, env = "MVP_NO_WARM_UP", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    pub no_warm_up: bool,
}

impl BenchmarkArgs {
    /// The documents to read.
    pub fn documents(&self) -> Result<Vec<Document>> {
        let set = match &self.documents {
            Some(path) => DocumentSet::load(path)?,
            None => DocumentSet::test(),
        };
        Ok(set.documents)
    }
}

/// What to do where a page lies already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pages {
    /// Draw it anew.
    Draw,
    /// Read it as it is; draw it only where it is missing.
    Keep,
}

impl Pages {
    /// The page of each document, as it lies in `datasets/test_images` from now on.
    pub(super) fn of(self, documents: &[Document], project: &Project) -> Result<Vec<RgbPage>> {
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
                        Error::record(
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
    fn pages_are_drawn_kept_and_refused() {
        let folder = tempfile::tempdir().unwrap();
        let project = Project::open(Some(folder.path())).unwrap();
        let documents = DocumentSet::test().documents;
        let drawn = Pages::Keep.of(&documents, &project).unwrap();
        assert!(drawn.iter().all(|page| (page.width, page.height) == (900, 1100)));
        let path = project.file(TEST_IMAGES).join(&documents[1].filename);
        let other = project.file(TEST_IMAGES).join(&documents[0].filename);
        fs::copy(&other, &path).unwrap();
        let kept = Pages::Keep.of(&documents, &project).unwrap();
        assert_eq!(kept[1].pixels, drawn[0].pixels);
        let anew = Pages::Draw.of(&documents, &project).unwrap();
        assert_eq!(anew[1].pixels, drawn[1].pixels);
        fs::write(&path, "no picture").unwrap();
        let message = Pages::Keep.of(&documents, &project).unwrap_err().to_string();
        assert!(
            message.contains(&documents[1].filename) && message.contains("delete the file"),
            "{message}"
        );
    }
}
