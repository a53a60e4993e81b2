//! Raw records → candidates for samples: image, prompt and response.

use std::collections::HashMap;
use std::path::PathBuf;

use super::{
    duplicates::text_key,
    images::{ImageSource, Written},
};
use crate::Result;
use crate::data::datasets::image_prefix;
use crate::data::{RawDataset, RawRecord};
use crate::prompts::PROMPTS;
use crate::random::shuffle_key;
use crate::records::SampleSource;

/// Minimum length of a text or answer, in characters.
const MIN_CHARACTERS: usize = 50;
/// Maximum length of the text on a page, in characters.
const PAGE_CHARACTERS: usize = 2000;
/// Maximum length of a report's response, in characters; samples that agree in it are duplicates.
const ANSWER_CHARACTERS: usize = 1500;

/// A sample whose image is not written yet.
pub(super) struct Candidate {
    pub(super) source: SampleSource,
    pub(super) row: u64,
    pub(super) prompt: String,
    pub(super) response: String,
    pub(super) image: ImageSource,
    /// Key of its text, for deduplication.
    pub(super) text_key: String,
    /// File name of its image in `images/`; empty until that is written.
    pub(super) file: String,
}

/// Numbers of skipped records, by reason.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Skipped {
    pub(super) without_text: u64,
    pub(super) short: u64,
    pub(super) broken_image: u64,
}

pub(super) struct Collected {
    /// Candidates in the order of data sets and rows.
    pub(super) candidates: Vec<Candidate>,
    pub(super) skipped: Skipped,
}

/// Reads all records of all data sets.
pub(super) fn collect(datasets: &[RawDataset], seed: u64) -> Result<Collected> {
    let mut collected = Collected {
        candidates: Vec::new(),
        skipped: Skipped::default(),
    };
    for dataset in datasets {
        let label = &dataset.manifest().label;
        let origin = Origin {
            source: SampleSource::new(label),
            image_prefix: image_prefix(label),
        };
        for record in dataset.records()? {
            let record = record?;
            let image = dataset.image_path(&record);
            collected.add(&origin, record, image, seed);
        }
    }
    Ok(collected)
}

/// What all records of a raw data set share.
struct Origin {
    source: SampleSource,
    image_prefix: &'static str,
}

impl Collected {
    fn add(&mut self, origin: &Origin, record: RawRecord, image: Option<PathBuf>, seed: u64) {
        if record.text.trim().is_empty() {
            self.skipped.without_text += 1;
            return;
        }
        if record.text.trim().chars().count() < MIN_CHARACTERS {
            self.skipped.short += 1;
            return;
        }
        let text_key = text_key(first_characters(&record.text, ANSWER_CHARACTERS));
        let prefix = origin.image_prefix;
        let prompt = sampled_prompt(prefix, record.row, seed);
        let (image, response) = match image {
            Some(path) => (ImageSource::File { path, prefix }, record.text),
            None => {
                let response = first_characters(&record.text, ANSWER_CHARACTERS).to_owned();
                let mut text = record.text;
                text.truncate(first_characters(&text, PAGE_CHARACTERS).len());
                (ImageSource::Text { text }, response)
            }
        };
        let question = record.question.filter(|question| !question.trim().is_empty());
        self.candidates.push(Candidate {
            source: origin.source.clone(),
            row: record.row,
            prompt: question.unwrap_or_else(|| prompt.to_owned()),
            response,
            image,
            text_key,
            file: String::new(),
        });
    }

    /// Sets the file of each candidate; drops and counts those whose image cannot be decoded.
    pub(super) fn assign_files(&mut self, written: &HashMap<String, Written>) {
        let before = self.candidates.len();
        self.candidates
            .retain_mut(|candidate| match written.get(&candidate.image.identity()) {
                Some(Written::Created { file } | Written::Existing { file }) => {
                    candidate.file.clone_from(file);
                    true
                }
                Some(Written::Undecodable) | None => false,
            });
        self.skipped.broken_image += (before - self.candidates.len()) as u64;
    }
}

/// Returns a prompt chosen by row and seed, independent of all other rows.
fn sampled_prompt(image_prefix: &str, row: u64, seed: u64) -> &'static str {
    let hash = shuffle_key(seed, "prompt", &format!("{image_prefix}:{row}"));
    PROMPTS[(hash % PROMPTS.len() as u64) as usize]
}

/// Returns the first `characters` characters of `text`.
fn first_characters(text: &str, characters: usize) -> &str {
    text.char_indices()
        .nth(characters)
        .map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_counted_in_characters() {
        assert_eq!(first_characters("a\u{e9}\u{4e2d}z", 3), "a\u{e9}\u{4e2d}");
        assert_eq!(first_characters("ab", 3), "ab");
        assert_eq!(first_characters("", 0), "");
    }

    #[test]
    fn every_prompt_is_sampled() {
        let sampled: std::collections::HashSet<_> =
            (0..200).map(|row| sampled_prompt("mt", row, 42)).collect();
        assert_eq!(sampled.len(), PROMPTS.len());
    }
}
