//! Raw records → candidates for samples: what is shown, asked and answered.

use std::collections::HashMap;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use super::{
    groups::text_key,
    images::{ImageSource, Outcome},
};
use crate::Result;
use crate::data::{RawDataset, RawRecord};
use crate::prompts::PROMPTS;
use crate::records::SampleSource;

/// A shorter text or answer makes no sample.
const MIN_CHARACTERS: usize = 50;
/// How much of a report is put on its page.
const PAGE_CHARACTERS: usize = 2000;
/// How much of a report is the answer; samples that agree in it are one group.
const ANSWER_CHARACTERS: usize = 1500;

/// A sample in the making.
pub(super) struct Candidate {
    pub(super) source: SampleSource,
    pub(super) row: u64,
    pub(super) prompt: String,
    pub(super) response: String,
    pub(super) image: ImageSource,
    /// Tells texts apart.
    pub(super) text_key: String,
    /// Name of its image in `images/`; empty until that is made.
    pub(super) file: String,
}

/// Rows that make no sample, by reason.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Skipped {
    pub(super) without_text: u64,
    pub(super) short: u64,
    pub(super) broken_image: u64,
}

pub(super) struct Collected {
    /// In the order of the datasets and their rows.
    pub(super) candidates: Vec<Candidate>,
    pub(super) skipped: Skipped,
}

/// Reads all records of all datasets.
pub(super) fn collect(datasets: &[RawDataset], seed: u64) -> Result<Collected> {
    let mut collected = Collected {
        candidates: Vec::new(),
        skipped: Skipped::default(),
    };
    for dataset in datasets {
        let source = source(&dataset.manifest().label);
        for record in dataset.records()? {
            let record = record?;
            let picture = dataset.image_path(&record);
            collected.add(&source, record, picture, seed);
        }
    }
    Ok(collected)
}

fn source(label: &str) -> SampleSource {
    match label {
        "PathVQA" => SampleSource::PathVqa,
        "PubMedVision" => SampleSource::PubMedVision,
        "MTSamples" => SampleSource::MtSamples,
        other => SampleSource::Other(other.to_owned()),
    }
}

impl Collected {
    fn add(&mut self, source: &SampleSource, record: RawRecord, picture: Option<PathBuf>, seed: u64) {
        if record.text.trim().is_empty() {
            self.skipped.without_text += 1;
            return;
        }
        if record.text.trim().chars().count() < MIN_CHARACTERS {
            self.skipped.short += 1;
            return;
        }
        let text_key = text_key(beginning(&record.text, ANSWER_CHARACTERS));
        let drawn = drawn_prompt(source, record.row, seed);
        let (image, response) = match picture {
            Some(path) => (
                ImageSource::Picture {
                    path,
                    label: prefix(source),
                },
                record.text,
            ),
            None => {
                let response = beginning(&record.text, ANSWER_CHARACTERS).to_owned();
                let mut text = record.text;
                text.truncate(beginning(&text, PAGE_CHARACTERS).len());
                (ImageSource::Text(text), response)
            }
        };
        let question = record.question.filter(|question| !question.trim().is_empty());
        self.candidates.push(Candidate {
            source: source.clone(),
            row: record.row,
            prompt: question.unwrap_or_else(|| drawn.to_owned()),
            response,
            image,
            text_key,
            file: String::new(),
        });
    }

    /// Gives each candidate the file that its image became; those whose picture is broken leave.
    pub(super) fn place(&mut self, outcomes: &HashMap<String, Outcome>) {
        let before = self.candidates.len();
        self.candidates
            .retain_mut(|candidate| match outcomes.get(&candidate.image.identity()) {
                Some(Outcome::Made { file } | Outcome::Kept { file }) => {
                    candidate.file.clone_from(file);
                    true
                }
                Some(Outcome::Broken) | None => false,
            });
        self.skipped.broken_image += (before - self.candidates.len()) as u64;
    }
}

/// What its pictures' names begin with.
fn prefix(source: &SampleSource) -> &'static str {
    match source {
        SampleSource::PathVqa => "pvqa",
        SampleSource::PubMedVision => "pmv",
        SampleSource::MtSamples => "mt",
        SampleSource::Other(_) => "roco",
    }
}

/// The same for a row whatever else there is.
fn drawn_prompt(source: &SampleSource, row: u64, seed: u64) -> &'static str {
    let hash = order_key(seed, "prompt", &format!("{}:{row}", prefix(source)));
    PROMPTS[(hash % PROMPTS.len() as u64) as usize]
}

/// A number that is as good as random, and the same every time: sorting by it shuffles.
pub(super) fn order_key(seed: u64, purpose: &str, item: &str) -> u64 {
    let digest = Sha256::new()
        .chain_update(seed.to_le_bytes())
        .chain_update(purpose)
        .chain_update([0])
        .chain_update(item);
    let bytes = digest.finalize();
    bytes
        .iter()
        .take(8)
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The first `characters` characters.
fn beginning(text: &str, characters: usize) -> &str {
    text.char_indices()
        .nth(characters)
        .map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_beginning_is_counted_in_characters() {
        assert_eq!(beginning("a\u{e9}\u{4e2d}z", 3), "a\u{e9}\u{4e2d}");
        assert_eq!(beginning("ab", 3), "ab");
        assert_eq!(beginning("", 0), "");
    }

    #[test]
    fn every_prompt_is_drawn() {
        let drawn: std::collections::HashSet<_> = (0..200)
            .map(|row| drawn_prompt(&SampleSource::MtSamples, row, 42))
            .collect();
        assert_eq!(drawn.len(), PROMPTS.len());
        assert_ne!(order_key(42, "a", "b"), order_key(43, "a", "b"));
        assert_ne!(order_key(42, "a", "b"), order_key(42, "ab", ""));
    }
}
