//! `data_summary.json`: sample counts, skipped records, duplicates and a hash of the inputs.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{PrepareOptions, list_paths, samples::Collected, split::SplitAssignment};
use crate::data::RawDataset;
use crate::fs::hex;
use crate::project::Project;
use crate::records::{self, DataSample, DataSummary, Extra, SampleSource};
use crate::rendering::RENDERING_VERSION;
use crate::synthetic::DOCUMENTS_VERSION;

/// Must change whenever the same raw data sets would give other samples.
const PREPARATION_VERSION: u32 = 2;
const INPUTS: &str = "inputs_sha256";

/// SHA-256 of everything that the splits depend on.
pub(super) struct Inputs(String);

impl Inputs {
    pub(super) fn new(datasets: &[RawDataset], options: &PrepareOptions) -> Self {
        let manifests = datasets.iter().map(RawDataset::manifest);
        let datasets: Vec<Value> = manifests
            .map(|raw| {
                json!([
                    raw.name,
                    raw.label,
                    raw.records,
                    raw.records_sha256,
                    raw.image_bytes
                ])
            })
            .collect();
        let inputs = json!([
            PREPARATION_VERSION,
            RENDERING_VERSION,
            options.split.name(),
            options.seed,
            datasets,
            [u64::from(DOCUMENTS_VERSION), options.clinical],
        ]);
        Self(hex(&Sha256::digest(inputs.to_string())))
    }

    /// Returns the summary of an earlier run with the same inputs, if all its files still exist.
    pub(super) fn finished(&self, project: &Project) -> Option<DataSummary> {
        let summary: DataSummary = records::read(&project.file(records::paths::DATA_SUMMARY)).ok()?;
        if summary.extra.get(INPUTS)?.as_str()? != self.0 {
            return None;
        }
        let mut counts = Vec::new();
        let mut images = HashSet::new();
        for path in list_paths(project) {
            let samples: Vec<DataSample> = records::read(&path).ok()?;
            counts.push(samples.len() as u64);
            images.extend(samples.into_iter().map(|sample| sample.image_path));
        }
        let all = images
            .iter()
            .all(|image| project.file(image).metadata().is_ok_and(|file| file.len() > 0));
        (all && counts == [summary.train_count, summary.val_count, summary.test_count]).then_some(summary)
    }

    /// Builds the record. `lists` are training, validation and test.
    pub(super) fn summary(
        &self,
        options: &PrepareOptions,
        collected: &Collected,
        split: &SplitAssignment,
        lists: &[Vec<DataSample>; 3],
    ) -> DataSummary {
        let counts = lists.each_ref().map(|list| list.len() as u64);
        let different = split.groups.iter().collect::<HashSet<_>>().len();
        let skipped = collected.skipped;
        let extra = json!({
            "split_rule": options.split.name(),
            "different_texts": different,
            "duplicate_samples": collected.candidates.len() - different,
            "test_samples_whose_text_is_trained_on": train_test_overlap(split),
            "skipped": {
                "without_text": skipped.without_text,
                "shorter_than_50_characters": skipped.short,
                "broken_image": skipped.broken_image,
            },
            "test": figures(split, collected, |_| true),
            "clinical_pages_for_training": options.clinical,
            "unseen": figures(split, collected, |key| split.unseen.contains(key)),
            INPUTS: self.0,
        });
        DataSummary {
            total_samples: counts.iter().sum(),
            train_count: counts[0],
            val_count: counts[1],
            test_count: counts[2],
            source_counts: by_source(lists.iter().flatten().map(|sample| &sample.source)),
            random_seed: options.seed,
            split_ratio: "80/10/10".to_owned(),
            extra: match extra {
                Value::Object(extra) => extra,
                _ => Extra::new(),
            },
        }
    }
}

fn by_source<'a>(sources: impl Iterator<Item = &'a SampleSource>) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for source in sources {
        *counts.entry(source.label().to_owned()).or_default() += 1;
    }
    counts
}

/// Returns counts of the test samples whose text key is `wanted`.
fn figures(split: &SplitAssignment, collected: &Collected, wanted: impl Fn(&str) -> bool) -> Value {
    let test = split.indices[2]
        .iter()
        .filter_map(|index| collected.candidates.get(*index));
    let chosen: Vec<_> = test.filter(|candidate| wanted(&candidate.text_key)).collect();
    let texts: HashSet<&str> = chosen
        .iter()
        .map(|candidate| candidate.text_key.as_str())
        .collect();
    json!({
        "samples": chosen.len(),
        "different_texts": texts.len(),
        "source_counts": by_source(chosen.iter().map(|candidate| &candidate.source)),
    })
}

/// Counts the test samples that duplicate a training sample (leakage).
fn train_test_overlap(split: &SplitAssignment) -> usize {
    let [train, _, test] = &split.indices;
    let trained: HashSet<usize> = train
        .iter()
        .filter_map(|index| split.groups.get(*index))
        .copied()
        .collect();
    let tested = test.iter().filter_map(|index| split.groups.get(*index));
    tested.filter(|group| trained.contains(group)).count()
}
