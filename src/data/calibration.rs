//! Calibration pages for quantization: from the training split, never from the evaluation documents.

use std::path::Path;

use crate::fs::{PICTURE_BYTES, read_bounded};
use crate::processing::{DecodeLimits, RgbPage, decode};
use crate::project::Project;
use crate::records::{self, DataSample, SampleSource};
use crate::rendering::{TEST_PAGE, text_lines, text_page};
use crate::test_documents::DocumentSet;
use crate::{Error, Result};

/// One calibration page.
#[derive(Debug, Clone)]
pub struct CalibrationPage {
    /// Image of the page.
    pub image: RgbPage,
    /// Question about it.
    pub prompt: String,
    /// Expected response: the text of a report page, line by line, or the answer about an image.
    pub text: String,
}

/// Calibration pages and their origin.
#[derive(Debug, Clone)]
pub struct CalibrationPages {
    /// At most the requested number.
    pub pages: Vec<CalibrationPage>,
    /// Origin, for records: "training split" or "shipped synthetic pages".
    pub source: &'static str,
}

/// Returns the first `count` pages of the training split, or of the embedded synthetic pages if there is no training split.
///
/// Reports of the split are rendered again from their responses, so that `text` is exactly the text of the page. Images are
/// used if there are too few reports. There may be fewer than `count` pages. The same data gives the same pages.
pub fn calibration_pages(project: &Project, count: usize) -> Result<CalibrationPages> {
    // Without a summary the split is not complete.
    let prepared = project.file(records::paths::DATA_SUMMARY).exists();
    let train = project.file(records::paths::TRAIN);
    let samples: Option<Vec<DataSample>> = if prepared {
        records::read_if_present(&train)?
    } else {
        None
    };
    match samples {
        Some(samples) if !samples.is_empty() => Ok(CalibrationPages {
            pages: from_samples(project.root(), &samples, count)?,
            source: "training split",
        }),
        _ => Ok(CalibrationPages {
            pages: synthetic(count),
            source: "shipped synthetic pages",
        }),
    }
}

fn from_samples(root: &Path, samples: &[DataSample], count: usize) -> Result<Vec<CalibrationPage>> {
    let (reports, images): (Vec<_>, Vec<_>) = samples
        .iter()
        .partition(|sample| sample.source == SampleSource::MtSamples);
    let chosen = reports.into_iter().chain(images).take(count);
    chosen.map(|sample| page(root, sample)).collect()
}

fn page(root: &Path, sample: &DataSample) -> Result<CalibrationPage> {
    let prompt = sample.prompt.clone();
    if sample.source == SampleSource::MtSamples {
        let lines = text_lines(&sample.response);
        return Ok(CalibrationPage {
            image: text_page(&lines).to_rgb(),
            prompt,
            text: lines.join("\n"),
        });
    }
    let path = root.join(&sample.image_path);
    let bytes = read_bounded(&path, PICTURE_BYTES).map_err(|error| Error::io(&path, error))?;
    Ok(CalibrationPage {
        image: decode(&bytes, &DecodeLimits::default())?,
        prompt,
        text: sample.response.clone(),
    })
}

fn synthetic(count: usize) -> Vec<CalibrationPage> {
    let documents = DocumentSet::calibration().documents.into_iter().take(count);
    documents
        .map(|document| CalibrationPage {
            image: document.page(TEST_PAGE),
            text: format!("{}\n{}", document.title, document.content.join("\n")),
            prompt: document.prompt,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn project() -> (tempfile::TempDir, Project) {
        let folder = tempfile::tempdir().unwrap();
        let project = Project::open(Some(folder.path())).unwrap();
        (folder, project)
    }

    #[test]
    fn without_a_training_split_synthetic_pages_are_used() {
        let (_folder, project) = project();
        let calibration = calibration_pages(&project, 5).unwrap();
        assert_eq!(calibration.pages.len(), 5);
        assert_eq!(calibration.source, "shipped synthetic pages");
        for page in &calibration.pages {
            assert_eq!((page.image.width, page.image.height), (900, 1100));
            assert!(page.text.lines().count() > 20 && !page.prompt.is_empty());
        }
        assert_eq!(calibration_pages(&project, 1000).unwrap().pages.len(), 24);
    }

    #[test]
    fn the_training_split_is_preferred_and_its_reports_come_first() {
        let (folder, project) = project();
        let picture = folder.path().join("picture.png");
        let mut file = Vec::new();
        crate::rendering::encode_grey(&text_page(&["a picture"]), &mut file).unwrap();
        std::fs::write(&picture, file).unwrap();
        let samples: Vec<DataSample> = serde_json::from_value(json!([
            {"image_path": "picture.png", "prompt": "What?", "response": "A picture.", "source": "PathVQA"},
            {"image_path": "absent.png", "prompt": "List.", "response": "One line\n\nand another", "source": "MTSamples"},
        ]))
        .unwrap();
        records::write_list(&project.file(records::paths::TRAIN), &samples).unwrap();
        assert_eq!(
            calibration_pages(&project, 2).unwrap().source,
            "shipped synthetic pages",
            "not complete"
        );
        std::fs::write(project.file(records::paths::DATA_SUMMARY), "{}").unwrap();
        let calibration = calibration_pages(&project, 2).unwrap();
        assert_eq!(calibration.source, "training split");
        assert_eq!(calibration.pages[0].text, "One line\n\nand another");
        assert_eq!(
            calibration.pages[0].image,
            text_page(&["One line", "", "and another"]).to_rgb()
        );
        assert_eq!(calibration.pages[1].text, "A picture.");
        assert_eq!(calibration_pages(&project, 1).unwrap().pages.len(), 1);
    }
}
