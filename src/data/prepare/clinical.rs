//! Samples of generated clinical documents: rendered in parallel, reproducible by seed.

use std::path::Path;

use rayon::prelude::*;
use serde_json::{Value, json};

use super::{
    FORMATTED, PrepareOptions,
    images::{ImageWriter, Written},
};
use crate::console::{self, Unit};
use crate::records::{DataSample, Extra, SampleSource};
use crate::synthetic::{Page, Question, Split, page};
use crate::{Error, Result};

/// `source` of the samples.
const SOURCE: &str = "ClinicalDocuments";
/// Prefix of the images' file names, without `_`.
pub(super) const IMAGE_PREFIX: &str = "clinical";
/// Maximum number of pages for validation and for test, each.
const MAX_HELD_OUT: u64 = 500;

/// Generated samples and their images.
pub(super) struct Clinical {
    /// Training, validation and test samples.
    pub(super) lists: [Vec<DataSample>; 3],
    /// File names of the images.
    pub(super) files: Vec<String>,
    pub(super) created: usize,
    pub(super) existing: usize,
}

/// Returns the number of pages of each split: validation and test get a tenth of `training` each.
fn counts(training: u64) -> [(Split, u64); 3] {
    let held_out = training.div_ceil(10).min(MAX_HELD_OUT);
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
        created: 0,
        existing: 0,
    };
    if options.clinical == 0 {
        return Ok(clinical);
    }
    let images = ImageWriter::new(folder);
    let counts = counts(options.clinical);
    let all = counts.iter().map(|(_, count)| count).sum();
    let bar = console::progress_of("rendering clinical documents", Unit::Of("documents"), all);
    for (list, (split, count)) in clinical.lists.iter_mut().zip(counts) {
        let written: Vec<(Written, Vec<DataSample>)> = (0..count)
            .into_par_iter()
            .map(|index| {
                let made = page(split, options.seed, index);
                let image = images.write_generated(&made.image, made.extension)?;
                bar.inc(1);
                let samples = samples(split, &made, image.file());
                Ok::<_, Error>((image, samples))
            })
            .collect::<Result<_>>()?;
        for (image, samples) in written {
            match image {
                Written::Created { .. } => clinical.created += 1,
                _ => clinical.existing += 1,
            }
            clinical.files.extend(image.file().map(str::to_owned));
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

/// Returns the fields that an evaluation needs; training samples, which are many, have the task only.
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
