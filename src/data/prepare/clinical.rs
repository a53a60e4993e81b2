//! Generated clinical documents among the samples: made in parallel, the same for a seed.

use std::path::Path;

use rayon::prelude::*;
use serde_json::{Value, json};

use super::{
    FORMATTED, PrepareOptions,
    images::{Images, Outcome},
};
use crate::console::{self, Unit};
use crate::records::{DataSample, Extra, SampleSource};
use crate::synthetic::{Page, Question, Split, page};
use crate::{Error, Result};

/// Source of their samples.
const SOURCE: &str = "ClinicalDocuments";
/// Most pages for validation, and for the test.
const MOST_HELD_OUT: u64 = 500;

/// What was made.
pub(super) struct Clinical {
    /// Training, validation, test.
    pub(super) lists: [Vec<DataSample>; 3],
    /// Names of the images.
    pub(super) files: Vec<String>,
    pub(super) made: usize,
    pub(super) kept: usize,
}

/// Pages of each split for `training` of them: a tenth for validation and test each.
fn counts(training: u64) -> [(Split, u64); 3] {
    let held_out = training.div_ceil(10).min(MOST_HELD_OUT);
    [
        (Split::Train, training),
        (Split::Validation, held_out),
        (Split::Test, held_out),
    ]
}

pub(super) fn write(folder: &Path, options: &PrepareOptions) -> Result<Clinical> {
    let mut clinical = Clinical {
        lists: Default::default(),
        files: Vec::new(),
        made: 0,
        kept: 0,
    };
    if options.clinical == 0 {
        return Ok(clinical);
    }
    let images = Images::new(folder);
    let counts = counts(options.clinical);
    let all = counts.iter().map(|(_, count)| count).sum();
    let bar = console::progress_of("drawing clinical documents", Unit::Of("documents"), all);
    for (list, (split, count)) in clinical.lists.iter_mut().zip(counts) {
        let written: Vec<(Outcome, Vec<DataSample>)> = (0..count)
            .into_par_iter()
            .map(|index| {
                let made = page(split, options.seed, index);
                let outcome = images.write_generated("clinical", &made.image, made.extension)?;
                bar.inc(1);
                let samples = samples(split, &made, outcome.file());
                Ok::<_, Error>((outcome, samples))
            })
            .collect::<Result<_>>()?;
        for (outcome, samples) in written {
            match outcome {
                Outcome::Made { .. } => clinical.made += 1,
                _ => clinical.kept += 1,
            }
            clinical.files.extend(outcome.file().map(str::to_owned));
            list.extend(samples);
        }
    }
    bar.finish_and_clear();
    images.sync()?;
    Ok(clinical)
}

fn samples(split: Split, page: &Page, file: Option<&str>) -> Vec<DataSample> {
    let image_path = format!("{FORMATTED}/images/{}", file.unwrap_or_default());
    page.questions
        .iter()
        .map(|question| DataSample {
            image_path: image_path.clone(),
            prompt: question.prompt.clone(),
            response: question.answer.clone(),
            source: SampleSource::Other(SOURCE.to_owned()),
            extra: extra(split, page, question),
        })
        .collect()
}

/// What an evaluation needs; the training split, of which there is much, says the task alone.
fn extra(split: Split, page: &Page, question: &Question) -> Extra {
    let known = match split {
        Split::Train => json!({"task": question.task}),
        Split::Validation | Split::Test => json!({
            "task": question.task,
            "items": question.items,
            "text": page.text,
            "document": page.document,
            "look": page.style,
            "font": page.font,
            "font_px": page.font_px,
        }),
    };
    match known {
        Value::Object(known) => known,
        _ => Extra::new(),
    }
}
