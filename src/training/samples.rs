//! Training samples: a prepared split, tokenized.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::batches::{PageGroups, SampleInfo};
use crate::Result;
use crate::error::TrainingError;
use crate::fs::{PICTURE_BYTES, hex, read_bounded};
use crate::processing::{Content, DecodeLimits, Grid, ImageProcessor, Message, Role, TextProcessor, decode};
use crate::project::Project;
use crate::records::{self, DataSample};

/// Maximum percentage of unreadable pages tolerated (at least one is always allowed).
const MAX_BROKEN_PERCENT: f64 = 0.5;

/// A page, a prompt and the answer to it, tokenized.
#[derive(Debug, Clone)]
pub struct Sample {
    /// File of the page.
    pub image: PathBuf,
    /// The prompt, for greedy answers.
    pub prompt: String,
    /// The answer.
    pub response: String,
    /// Token ids of prompt, answer and end of turn.
    pub ids: Vec<i64>,
    /// Index of the answer's first token in `ids`.
    pub answer: usize,
    /// Number of the page within the split.
    pub page: usize,
    /// Patch grid of the page.
    pub grid: Grid,
}

impl Sample {
    /// Number of label tokens.
    pub fn labels(&self) -> usize {
        self.ids.len() - self.answer
    }
}

/// Number of skipped samples, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkippedSamples {
    /// The page is missing or unreadable.
    pub broken_page: u64,
    /// Longer than the maximum sequence length.
    pub too_long: u64,
    /// The answer is empty.
    pub empty_answer: u64,
}

impl SkippedSamples {
    /// The counts in words; `None` if no sample was skipped.
    pub(super) fn reasons(&self, max_tokens: usize) -> Option<String> {
        let too_long = format!("longer than {max_tokens} tokens (--max-seq-length)");
        let reasons: Vec<String> = [
            (self.too_long, too_long.as_str()),
            (self.broken_page, "with a missing or broken page"),
            (self.empty_answer, "without an answer"),
        ]
        .into_iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, reason)| format!("{count} {reason}"))
        .collect();
        (!reasons.is_empty()).then(|| reasons.join(", "))
    }
}

/// A tokenized split.
pub struct Samples {
    /// The samples, in the split's order.
    pub samples: Vec<Sample>,
    /// Number of samples in the file.
    pub available: usize,
    /// Samples that were requested but skipped.
    pub skipped: SkippedSamples,
    /// sha256 of pages and token ids.
    pub sha256: String,
}

impl Samples {
    /// Splits a batch into runs of samples of the same page.
    pub(super) fn groups<'a>(&self, batch: &'a [usize]) -> Vec<&'a [usize]> {
        let page = |sample: usize| self.samples[sample].page;
        batch.chunk_by(|&a, &b| page(a) == page(b)).collect()
    }

    /// The samples, grouped by page.
    pub fn page_groups(&self) -> PageGroups {
        let info = |sample: &Sample| SampleInfo {
            tokens: sample.ids.len(),
            page: sample.page,
        };
        PageGroups::new(self.samples.iter().map(info).collect())
    }
}

/// Tokenizes samples.
pub struct Encoder<'a> {
    /// Tokenizer and chat template.
    pub text: &'a TextProcessor,
    /// Resizes the pages.
    pub images: &'a ImageProcessor,
    /// Maximum sequence length; longer samples are skipped.
    pub max_tokens: usize,
    /// Answers are truncated to this many characters.
    pub max_response_characters: Option<usize>,
}

/// A page, or why it is unreadable.
type Page = std::result::Result<PageInfo, String>;

/// A readable page.
struct PageInfo {
    /// Number of the page within the split.
    number: usize,
    sha256: [u8; 32],
    grid: Grid,
}

/// Result of tokenizing one entry of a split.
enum Encoded {
    Sample(Box<Sample>, [u8; 32]),
    TooLong,
    EmptyAnswer,
    Broken(PathBuf, String),
}

impl Encoder<'_> {
    /// Reads the first `most` samples of the split at `relative`; every page is decoded once.
    ///
    /// Samples of unreadable pages are skipped and counted; too many of them are an error.
    pub fn read(&self, project: &Project, relative: &str, most: usize) -> Result<Samples> {
        let path = project.file(relative);
        let no_samples = |reason: &str| TrainingError::NoSamples {
            path: path.clone(),
            reason: reason.to_owned(),
        };
        let entries: Vec<DataSample> =
            records::read_if_present(&path)?.ok_or_else(|| no_samples("there is no such file"))?;
        if entries.is_empty() {
            return Err(no_samples("has no samples").into());
        }
        let wanted = &entries[..entries.len().min(most)];
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        for entry in wanted {
            let number = numbers.len();
            numbers.entry(&entry.image_path).or_insert(number);
        }
        let pages: HashMap<&str, Page> = numbers
            .into_par_iter()
            .map(|(page, number)| (page, self.inspect(&project.root().join(page), number)))
            .collect();
        let outcomes = wanted
            .par_iter()
            .map(|entry| self.encode(project.root(), entry, &pages[entry.image_path.as_str()]))
            .collect::<Result<Vec<_>>>()?;
        let mut found = Samples {
            samples: Vec::new(),
            available: entries.len(),
            skipped: SkippedSamples::default(),
            sha256: String::new(),
        };
        let (mut hasher, mut first) = (Sha256::new(), None);
        for outcome in outcomes {
            match outcome {
                Encoded::Sample(sample, digest) => {
                    hasher.update(digest);
                    found.samples.push(*sample);
                }
                Encoded::TooLong => found.skipped.too_long += 1,
                Encoded::EmptyAnswer => found.skipped.empty_answer += 1,
                Encoded::Broken(page, reason) => {
                    found.skipped.broken_page += 1;
                    first.get_or_insert((page, reason));
                }
            }
        }
        found.sha256 = hex(&hasher.finalize());
        let broken = found.skipped.broken_page as usize;
        let tolerated = (wanted.len() as f64 * MAX_BROKEN_PERCENT / 100.0).max(1.0);
        match first {
            Some((first, reason)) if broken as f64 > tolerated || broken == wanted.len() => {
                return Err(TrainingError::BrokenPages {
                    path,
                    broken,
                    samples: wanted.len(),
                    first,
                    reason,
                }
                .into());
            }
            _ => {}
        }
        if found.samples.is_empty() {
            let reason = format!(
                "has no usable samples: {} are longer than {} tokens, {} have an empty answer (--max-seq-length, \
                 --max-pixels)",
                found.skipped.too_long, self.max_tokens, found.skipped.empty_answer
            );
            return Err(no_samples(&reason).into());
        }
        Ok(found)
    }

    /// Hash and patch grid of a page.
    fn inspect(&self, page: &Path, number: usize) -> Page {
        let bytes = read_bounded(page, PICTURE_BYTES).map_err(|error| error.to_string())?;
        let decoded = decode(&bytes, &DecodeLimits::default()).map_err(|error| error.to_string())?;
        let grid = self.images.grid(decoded.height, decoded.width);
        Ok(PageInfo {
            number,
            sha256: Sha256::digest(&bytes).into(),
            grid: grid.map_err(|error| error.to_string())?,
        })
    }

    fn encode(&self, root: &Path, entry: &DataSample, page: &Page) -> Result<Encoded> {
        let (prompt, response) = entry.exchange();
        let response = match self.max_response_characters {
            Some(most) => response.chars().take(most).collect(),
            None => response.to_owned(),
        };
        if response.trim().is_empty() {
            return Ok(Encoded::EmptyAnswer);
        }
        let image = root.join(&entry.image_path);
        let page = match page {
            Ok(page) => page,
            Err(reason) => return Ok(Encoded::Broken(image, reason.clone())),
        };
        let messages = [Message {
            role: Role::User,
            content: vec![Content::Image, Content::Text(prompt.to_owned())],
        }];
        let mut ids = self.text.encode_chat(&messages, &[page.grid])?;
        let answer = ids.len();
        ids.extend(self.text.encode_plain(&response)?);
        ids.push(self.text.end_of_turn());
        if ids.len() > self.max_tokens {
            return Ok(Encoded::TooLong);
        }
        let mut hasher = Sha256::new();
        hasher.update(page.sha256);
        ids.iter().for_each(|id| hasher.update(id.to_le_bytes()));
        hasher.update(answer.to_le_bytes());
        let sample = Sample {
            image,
            prompt: prompt.to_owned(),
            response,
            ids,
            answer,
            page: page.number,
            grid: page.grid,
        };
        Ok(Encoded::Sample(Box::new(sample), hasher.finalize().into()))
    }
}
