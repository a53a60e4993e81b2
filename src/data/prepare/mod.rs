//! Raw data sets → images, prompts and responses in three splits: `datasets/formatted/`.
//!
//! ```text
//! images/              rendered pages and copied images, each named by a hash of its content
//! train.json val.json test.json
//! data_summary.json    written last, so output without it is not complete
//! ```
//!
//! An image file is complete or absent, so a run after a kill reuses the existing ones.

mod clinical;
mod duplicates;
mod images;
mod samples;
mod split;
mod summary;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rayon::prelude::*;

use self::images::{ImageSource, ImageWriter, Written};
use self::samples::{Candidate, Collected, collect};
use self::summary::Inputs;
use super::{DATASETS, RawDataset};
use crate::console::{self, Level, Notify, Unit};
use crate::fs::{RunLock, update_folder};
use crate::project::Project;
use crate::random::shuffle_key;
use crate::records::{self, DataSample, DataSummary, Extra};
use crate::rendering::{collapse_whitespace, text_lines};
use crate::synthetic::{TRANSCRIBE, whole_page_prompt};
use crate::{Error, Result};

/// Default seed of shuffling and prompts.
pub const DEFAULT_SEED: u64 = 42;

const RAW: &str = "datasets/raw";
const FORMATTED: &str = "datasets/formatted";

/// How samples are grouped before splitting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum SplitRule {
    /// Samples with the same text or image stay together
    Grouped,
    /// Each sample on its own, as in the original project: the same text may be in training and test
    Original,
}

impl SplitRule {
    fn name(self) -> &'static str {
        match self {
            Self::Grouped => "grouped",
            Self::Original => "original",
        }
    }
}

/// Options of [`prepare`].
#[derive(Debug, Clone, Copy)]
pub struct PrepareOptions {
    /// How samples are grouped before splitting.
    pub split: SplitRule,
    /// Seed of shuffling and prompts.
    pub seed: u64,
    /// Number of generated clinical pages for training; validation and test get a tenth of it each, at most 500.
    pub clinical: u64,
    /// Generated pages only; no raw data set is needed.
    pub only_clinical: bool,
}

/// Default number of generated pages for training: enough to learn on a CPU, few enough to render in seconds.
pub const DEFAULT_CLINICAL: u64 = 400;

impl Default for PrepareOptions {
    fn default() -> Self {
        Self {
            split: SplitRule::Grouped,
            seed: DEFAULT_SEED,
            clinical: DEFAULT_CLINICAL,
            only_clinical: false,
        }
    }
}

/// Result of [`prepare`].
#[derive(Debug, Clone)]
pub struct Prepared {
    /// Content of `data_summary.json`.
    pub summary: DataSummary,
    /// The output already existed, from the same inputs and options.
    pub up_to_date: bool,
    /// Number of images created by this run.
    pub images_created: usize,
    /// Number of images reused from an earlier run.
    pub images_reused: usize,
    /// Duration in seconds.
    pub seconds: f64,
}

/// Prepares `datasets/formatted` from `datasets/raw`. The same input gives the same files, for any number of threads.
pub fn prepare(project: &Project, options: &PrepareOptions, notify: Notify<'_>) -> Result<Prepared> {
    let start = Instant::now();
    let datasets = match options.only_clinical {
        true => Vec::new(),
        false => open_datasets(&project.file(RAW), notify)?,
    };
    let formatted = project.file(FORMATTED);
    let folder = formatted.join("images");
    fs::create_dir_all(&folder).map_err(|error| Error::io(&folder, error))?;
    let _lock = RunLock::on_folder(&formatted, "prepare_training_data")?;
    let inputs = Inputs::new(&datasets, options);
    if let Some(summary) = inputs.finished(project) {
        return Ok(Prepared {
            images_reused: summary.total_samples as usize,
            summary,
            up_to_date: true,
            images_created: 0,
            seconds: start.elapsed().as_secs_f64(),
        });
    }
    let mut collected = collect(&datasets, options.seed)?;
    let images = write_images(&folder, &mut collected)?;
    let clinical = clinical::write(&folder, options)?;
    let split = split::split(&collected.candidates, options);
    let mut lists = split.indices.each_ref().map(|indices| {
        let samples = indices
            .iter()
            .filter_map(|index| collected.candidates.get(*index));
        samples
            .map(|candidate| sample(candidate, &split))
            .collect::<Vec<_>>()
    });
    for (list, generated) in lists.iter_mut().zip(clinical.lists) {
        mix(list, generated, options.seed);
    }
    let summary = inputs.summary(options, &collected, &split, &lists);
    publish(project, &lists, &summary)?;
    images::remove_stale(&folder, &collected.candidates, &clinical.files)?;
    Ok(Prepared {
        summary,
        up_to_date: false,
        images_created: images.created + clinical.created,
        images_reused: images.existing + clinical.existing,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// Shuffles generated samples among the others, so that a prefix of the list is representative. Samples of a page stay
/// together.
fn mix(list: &mut Vec<DataSample>, generated: Vec<DataSample>, seed: u64) {
    if generated.is_empty() {
        return;
    }
    list.extend(generated);
    list.sort_by_cached_key(|sample| shuffle_key(seed, "mix", &sample.image_path));
}

fn open_datasets(raw: &Path, notify: Notify<'_>) -> Result<Vec<RawDataset>> {
    let mut datasets = Vec::new();
    for dataset in DATASETS {
        let folder = raw.join(dataset.name);
        match RawDataset::open(&folder)? {
            Some(dataset) => datasets.push(dataset),
            None => notify(
                Level::WARN,
                &format!(
                    "{}: not downloaded, or not complete; continuing without it",
                    folder.display()
                ),
            ),
        }
    }
    if datasets.is_empty() {
        return Err(Error::not_found(
            raw,
            "contains no complete data set; run download_datasets first, or use --only-clinical for generated pages",
        ));
    }
    Ok(datasets)
}

struct ImageCounts {
    created: usize,
    existing: usize,
}

/// Writes missing images in parallel; drops and counts candidates whose image cannot be decoded.
fn write_images(folder: &Path, collected: &mut Collected) -> Result<ImageCounts> {
    let images = ImageWriter::new(folder);
    let mut first: HashMap<String, usize> = HashMap::new();
    for (index, candidate) in collected.candidates.iter().enumerate() {
        first.entry(candidate.image.identity()).or_insert(index);
    }
    let unique: Vec<&Candidate> = {
        let mut indices: Vec<usize> = first.values().copied().collect();
        indices.sort_unstable();
        indices
            .iter()
            .filter_map(|index| collected.candidates.get(*index))
            .collect()
    };
    let bar = console::progress_of("rendering pages", Unit::Of("images"), unique.len() as u64);
    let written: Vec<(String, Written)> = unique
        .par_iter()
        .map(|candidate| {
            let file = images.write(&candidate.image)?;
            bar.inc(1);
            Ok((candidate.image.identity(), file))
        })
        .collect::<Result<_>>()?;
    bar.finish_and_clear();
    images.sync()?;
    let count = |wanted: fn(&Written) -> bool| written.iter().filter(|(_, file)| wanted(file)).count();
    let counts = ImageCounts {
        created: count(|file| matches!(file, Written::Created { .. })),
        existing: count(|file| matches!(file, Written::Existing { .. })),
    };
    collected.assign_files(&written.into_iter().collect());
    Ok(counts)
}

fn sample(candidate: &Candidate, split: &split::SplitAssignment) -> DataSample {
    let mut extra = Extra::new();
    if split.unseen.contains(&candidate.text_key) {
        extra.insert("unseen".to_owned(), true.into());
    }
    if let ImageSource::Text { text, .. } = &candidate.image {
        // The text of the page and its question: the response is the start of the report, without line breaks.
        extra.insert("task".to_owned(), TRANSCRIBE.into());
        extra.insert("ask".to_owned(), whole_page_prompt().into());
        extra.insert("text".to_owned(), page_text(text).into());
    }
    DataSample {
        image_path: format!("{FORMATTED}/images/{}", candidate.file),
        prompt: candidate.prompt.clone(),
        response: candidate.response.clone(),
        source: candidate.source.clone(),
        extra,
    }
}

/// Returns the page as a model should transcribe it: line by line, spaces collapsed, without empty lines.
fn page_text(text: &str) -> String {
    let lines = text_lines(text);
    let lines = lines.iter().map(|line| collapse_whitespace(line));
    lines
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("\n")
}

/// Returns the paths of the train, val and test lists.
fn list_paths(project: &Project) -> [PathBuf; 3] {
    [records::paths::TRAIN, records::paths::VAL, records::paths::TEST].map(|path| project.file(path))
}

/// Writes the lists and the summary; meanwhile the folder has no summary.
fn publish(project: &Project, lists: &[Vec<DataSample>; 3], summary: &DataSummary) -> Result<()> {
    update_folder(
        &project.file(records::paths::DATA_SUMMARY),
        || {
            let mut paths = list_paths(project).into_iter().zip(lists);
            paths.try_for_each(|(path, list)| records::write_list(&path, list))
        },
        |path| records::write(path, summary),
    )
}
