//! A prepared split as the model trains on it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{
    batches::{ByPage, Shape},
    options::TrainingOptions,
};
use crate::Result;
use crate::error::TrainingError;
use crate::fs::{PICTURE_BYTES, hex, read_bounded};
use crate::processing::{Content, DecodeLimits, Grid, ImageProcessor, Message, Role, TextProcessor, decode};
use crate::project::Project;
use crate::records::{self, DataSample};

/// One more than this share of the pages, percent, may be missing or broken.
const BROKEN_PERCENT: f64 = 0.5;

/// One page, what is asked and what is to be answered, as token ids.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The page.
    pub image: PathBuf,
    /// The prompt alone, for greedy answers.
    pub prompt: String,
    /// What is to be answered.
    pub response: String,
    /// Prompt, answer and the end of the turn.
    pub ids: Vec<i64>,
    /// Where the answer begins in `ids`.
    pub answer: usize,
    /// Number of the page among those of the split.
    pub page: usize,
    /// The page's patches.
    pub grid: Grid,
}

impl Sample {
    /// Tokens that are learnt.
    pub fn labels(&self) -> usize {
        self.ids.len() - self.answer
    }
}

/// Samples that were left out, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// The page is missing or cannot be read.
    pub broken_page: u64,
    /// More tokens than allowed.
    pub too_long: u64,
    /// Nothing to answer.
    pub empty_answer: u64,
}

/// A split, ready for training.
pub struct Samples {
    /// In the split's order.
    pub samples: Vec<Sample>,
    /// Samples in the file.
    pub available: usize,
    /// Those that were not taken although they were wanted.
    pub left_out: LeftOut,
    /// sha256 over everything that was taken.
    pub sha256: String,
}

impl Samples {
    /// The samples of a batch by their pages, which lie side by side.
    pub(super) fn groups<'a>(&self, batch: &'a [usize]) -> Vec<&'a [usize]> {
        let page = |sample: usize| self.samples[sample].page;
        batch.chunk_by(|&a, &b| page(a) == page(b)).collect()
    }

    /// The samples as batches see them.
    pub fn by_page(&self) -> ByPage {
        let shape = |sample: &Sample| Shape {
            tokens: sample.ids.len(),
            page: sample.page,
        };
        ByPage::new(self.samples.iter().map(shape).collect())
    }
}

/// Makes samples: what a model folder's processors and the settings say.
pub struct Encoder<'a> {
    /// Text → ids.
    pub text: &'a TextProcessor,
    /// Pages → patches.
    pub images: &'a ImageProcessor,
    /// Longer samples are left out.
    pub max_tokens: usize,
    /// Answers are cut there.
    pub max_response_characters: Option<usize>,
}

/// A page that was looked at, or why it cannot be read.
type Page = std::result::Result<Look, String>;

/// A page that can be read.
struct Look {
    /// Its place among the split's pages.
    number: usize,
    sha256: [u8; 32],
    grid: Grid,
}

/// What became of one entry of a split.
enum Outcome {
    Taken(Box<Sample>, [u8; 32]),
    TooLong,
    EmptyAnswer,
    Broken(PathBuf, String),
}

impl Encoder<'_> {
    /// Reads at most `most` samples of the split at `relative`; every page is looked at once.
    ///
    /// Pages that cannot be read are left out and counted; too many of them are an error.
    pub fn read(&self, project: &Project, relative: &str, most: usize) -> Result<Samples> {
        let path = project.file(relative);
        let no_samples = |reason: &str| TrainingError::NoSamples {
            path: path.clone(),
            reason: reason.to_owned(),
        };
        let entries: Vec<DataSample> =
            records::read_if_present(&path)?.ok_or_else(|| no_samples("there is no such file"))?;
        if entries.is_empty() {
            return Err(no_samples("holds no samples").into());
        }
        let wanted = &entries[..entries.len().min(most)];
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        for entry in wanted {
            let number = numbers.len();
            numbers.entry(&entry.image_path).or_insert(number);
        }
        let pages: HashMap<&str, Page> = numbers
            .into_par_iter()
            .map(|(page, number)| (page, self.look_at(&project.root().join(page), number)))
            .collect();
        let outcomes = wanted
            .par_iter()
            .map(|entry| self.encode(project.root(), entry, &pages[entry.image_path.as_str()]))
            .collect::<Result<Vec<_>>>()?;
        let mut found = Samples {
            samples: Vec::new(),
            available: entries.len(),
            left_out: LeftOut::default(),
            sha256: String::new(),
        };
        let (mut hasher, mut first) = (Sha256::new(), None);
        for outcome in outcomes {
            match outcome {
                Outcome::Taken(sample, digest) => {
                    hasher.update(digest);
                    found.samples.push(*sample);
                }
                Outcome::TooLong => found.left_out.too_long += 1,
                Outcome::EmptyAnswer => found.left_out.empty_answer += 1,
                Outcome::Broken(page, reason) => {
                    found.left_out.broken_page += 1;
                    first.get_or_insert((page, reason));
                }
            }
        }
        found.sha256 = hex(&hasher.finalize());
        let broken = found.left_out.broken_page as usize;
        let tolerated = (wanted.len() as f64 * BROKEN_PERCENT / 100.0).max(1.0);
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
                "holds no sample that can be used: {} have more than {} tokens, {} have an empty answer (--max-seq-length, \
                 --max-pixels)",
                found.left_out.too_long, self.max_tokens, found.left_out.empty_answer
            );
            return Err(no_samples(&reason).into());
        }
        Ok(found)
    }

    fn look_at(&self, page: &Path, number: usize) -> Page {
        let bytes = read_bounded(page, PICTURE_BYTES).map_err(|error| error.to_string())?;
        let decoded = decode(&bytes, &DecodeLimits::default()).map_err(|error| error.to_string())?;
        let grid = self.images.grid(decoded.height, decoded.width);
        Ok(Look {
            number,
            sha256: Sha256::digest(&bytes).into(),
            grid: grid.map_err(|error| error.to_string())?,
        })
    }

    fn encode(&self, root: &Path, entry: &DataSample, page: &Page) -> Result<Outcome> {
        let (prompt, response) = entry.exchange();
        let response = match self.max_response_characters {
            Some(most) => response.chars().take(most).collect(),
            None => response.to_owned(),
        };
        if response.trim().is_empty() {
            return Ok(Outcome::EmptyAnswer);
        }
        let image = root.join(&entry.image_path);
        let page = match page {
            Ok(page) => page,
            Err(reason) => return Ok(Outcome::Broken(image, reason.clone())),
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
            return Ok(Outcome::TooLong);
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
        Ok(Outcome::Taken(Box::new(sample), hasher.finalize().into()))
    }
}

/// Most tokens of a sample.
pub(super) fn max_tokens(options: &TrainingOptions, context: usize) -> usize {
    const DEFAULT: u64 = 4096;
    (options.max_seq_length.unwrap_or(DEFAULT) as usize).min(context)
}
