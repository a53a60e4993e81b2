//! Raw datasets → pages, prompts and answers in three splits: `datasets/formatted/`.
//!
//! ```text
//! images/              pages drawn and pictures taken over, each named after its content
//! train.json val.json test.json
//! data_summary.json    written last: without it the rest is not complete
//! ```
//!
//! An image is there whole or not at all, under a name that tells its content, so that a run after a kill keeps what was made.

mod clinical;
mod groups;
mod images;
mod samples;
mod split;
mod summary;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rayon::prelude::*;

use self::images::{ImageSource, Images};
use self::samples::{Candidate, Collected, collect, order_key};
use self::summary::Inputs;
use super::RawDataset;
use crate::console::{self, Level, Unit};
use crate::fs::{RunLock, update_folder};
use crate::project::Project;
use crate::records::{self, DataSample, DataSummary, Extra};
use crate::rendering::text_lines;
use crate::synthetic::{TRANSCRIBE, whole_page_prompt};
use crate::{Error, Result};

/// Seed of the shuffle and of the prompts, unless another is given.
pub const DEFAULT_SEED: u64 = 42;

const RAW: &str = "datasets/raw";
const FORMATTED: &str = "datasets/formatted";
const DATASETS: [&str; 3] = ["roco", "pubmedvision", "mtsamples"];

/// How samples are told apart before they are split.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum SplitRule {
    /// Samples of the same text or picture stay together
    Grouped,
    /// Each sample for itself, as the original project did: the same text lands in training and test
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

/// How to prepare.
#[derive(Debug, Clone, Copy)]
pub struct PrepareOptions {
    /// How samples are told apart.
    pub split: SplitRule,
    /// Of the shuffle and of the prompts.
    pub seed: u64,
    /// Generated clinical pages for training, and a tenth of that (500 at most) for validation and for the test each.
    pub clinical: u64,
    /// Generated pages alone: no raw data set is needed.
    pub only_clinical: bool,
}

/// Generated pages for training unless another number is given: enough to learn on a CPU, few enough to be made in seconds.
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

/// What a run did.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// As it stands in `data_summary.json`.
    pub summary: DataSummary,
    /// Everything was there already, made from the same raw datasets in the same way.
    pub up_to_date: bool,
    /// Images made by this run.
    pub images_made: usize,
    /// Images that an earlier run had made.
    pub images_kept: usize,
    /// Everything, seconds.
    pub seconds: f64,
}

/// Prepares `datasets/formatted` from `datasets/raw`: the same input gives the same files, however many threads there are.
pub fn prepare(project: &Project, options: &PrepareOptions) -> Result<Prepared> {
    let start = Instant::now();
    let datasets = match options.only_clinical {
        true => Vec::new(),
        false => open_datasets(&project.file(RAW))?,
    };
    let formatted = project.file(FORMATTED);
    let folder = formatted.join("images");
    fs::create_dir_all(&folder).map_err(|error| Error::io(&folder, error))?;
    let _lock = RunLock::on_folder(&formatted, "prepare_training_data")?;
    let inputs = Inputs::new(&datasets, options);
    if let Some(summary) = inputs.finished(project) {
        return Ok(Prepared {
            images_kept: summary.total_samples as usize,
            summary,
            up_to_date: true,
            images_made: 0,
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
    images::sweep(&folder, &collected.candidates, &clinical.files)?;
    Ok(Prepared {
        summary,
        up_to_date: false,
        images_made: images.made + clinical.made,
        images_kept: images.kept + clinical.kept,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// Puts generated samples among the others, so that the first thousand of a list are like all of it; those of a page stay
/// together.
fn mix(list: &mut Vec<DataSample>, generated: Vec<DataSample>, seed: u64) {
    if generated.is_empty() {
        return;
    }
    list.extend(generated);
    list.sort_by_cached_key(|sample| order_key(seed, "mix", &sample.image_path));
}

fn open_datasets(raw: &Path) -> Result<Vec<RawDataset>> {
    let mut datasets = Vec::new();
    for name in DATASETS {
        match RawDataset::open(&raw.join(name))? {
            Some(dataset) => datasets.push(dataset),
            None => console::say(
                Level::WARN,
                &format!(
                    "{}: not downloaded, or not complete; going on without it",
                    raw.join(name).display()
                ),
            ),
        }
    }
    if datasets.is_empty() {
        return Err(Error::record(
            raw,
            "holds no complete data set; run download_datasets first",
        ));
    }
    Ok(datasets)
}

struct Written {
    made: usize,
    kept: usize,
}

/// Makes the images that are missing, in parallel; candidates whose picture cannot be decoded are dropped and counted.
fn write_images(folder: &Path, collected: &mut Collected) -> Result<Written> {
    let images = Images::new(folder);
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
    let bar = console::progress_of("drawing pages", Unit::Of("images"), unique.len() as u64);
    let outcomes: Vec<(String, images::Outcome)> = unique
        .par_iter()
        .map(|candidate| {
            let outcome = images.write(&candidate.image)?;
            bar.inc(1);
            Ok((candidate.image.identity(), outcome))
        })
        .collect::<Result<_>>()?;
    bar.finish_and_clear();
    images.sync()?;
    let count =
        |wanted: fn(&images::Outcome) -> bool| outcomes.iter().filter(|(_, outcome)| wanted(outcome)).count();
    let written = Written {
        made: count(|outcome| matches!(outcome, images::Outcome::Made { .. })),
        kept: count(|outcome| matches!(outcome, images::Outcome::Kept { .. })),
    };
    collected.place(&outcomes.into_iter().collect());
    Ok(written)
}

fn sample(candidate: &Candidate, split: &split::Split) -> DataSample {
    let mut extra = Extra::new();
    if split.unseen.contains(&candidate.text_key) {
        extra.insert("unseen".to_owned(), true.into());
    }
    if let ImageSource::Text(text) = &candidate.image {
        // What stands on the page, and the question that asks for it: the response is the report's beginning, unbroken.
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

/// A page as it is read: line by line, runs of spaces made one, empty lines left out.
fn page_text(text: &str) -> String {
    let lines = text_lines(text);
    let words = lines
        .iter()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    words
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join("\n")
}

/// The three lists, in the order train, val, test.
fn list_paths(project: &Project) -> [PathBuf; 3] {
    [records::paths::TRAIN, records::paths::VAL, records::paths::TEST].map(|path| project.file(path))
}

/// Writes the lists; the folder has no summary meanwhile.
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
