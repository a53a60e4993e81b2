//! Held-out questions: from a prepared split, or about generated pages if none is prepared.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;

use crate::fs::{PICTURE_BYTES, read_bounded};
use crate::processing::{DecodeLimits, RgbPage, decode};
use crate::project::Project;
use crate::records::{self, DataSample, SampleSource};
use crate::synthetic::{self, TRANSCRIBE};
use crate::{Error, Result};

/// Source of the held-out questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum HeldOutSplit {
    /// The prepared test split, or generated pages if none is prepared
    Test,
    /// The prepared validation split, or generated pages
    Val,
    /// None
    None,
}

/// Seed of the pages generated here; differs from the seed of prepared pages.
const SEED: u64 = 2026;

/// Held-out questions with their expected answers.
pub struct HeldOut {
    /// Source for the record: a file, or "generated".
    pub source: String,
    /// Number of questions in the split.
    pub available: usize,
    /// Number of samples left out: pictures without text, whose answers cannot be scored.
    pub pictures: usize,
    /// The questions to ask.
    pub questions: Vec<HeldOutQuestion>,
}

/// One question.
pub struct HeldOutQuestion {
    /// Prompt.
    pub prompt: String,
    /// Expected answer.
    pub expected: String,
    /// Items of the expected answer; `None` if the whole page is asked for.
    pub items: Option<Vec<String>>,
    /// Full text of the page.
    pub page: String,
    /// Task id.
    pub task: String,
    /// Page style: "document", "report", "typed", "scanned", or "MTSamples", with " unseen" if the base never saw it. Records
    /// call it "look".
    pub style: String,
    image: Image,
}

enum Image {
    File(PathBuf),
    Bytes(Vec<u8>),
}

impl HeldOut {
    /// Reads at most `limit` questions, 0 for all, alternating between tasks and styles. `None` for [`HeldOutSplit::None`].
    pub fn read(project: &Project, split: HeldOutSplit, limit: usize) -> Result<Option<Self>> {
        let (file, generated) = match split {
            HeldOutSplit::Test => (records::paths::TEST, synthetic::Split::Test),
            HeldOutSplit::Val => (records::paths::VAL, synthetic::Split::Validation),
            HeldOutSplit::None => return Ok(None),
        };
        let path = project.file(file);
        // Without a summary the split is not complete.
        let complete = project.file(records::paths::DATA_SUMMARY).exists();
        let samples: Option<Vec<DataSample>> = if complete {
            records::read_if_present(&path)?
        } else {
            None
        };
        let Some(samples) = samples else {
            return Ok(Some(Self::generated(generated, limit)));
        };
        let available = samples.len();
        let questions: Vec<HeldOutQuestion> = samples
            .iter()
            .filter_map(|sample| question(project, sample))
            .collect();
        let pictures = available - questions.len();
        if questions.is_empty() {
            let reason = "holds no page with a text; run prepare_training_data";
            return Err(Error::unsuitable(path, reason));
        }
        Ok(Some(Self {
            source: file.to_owned(),
            available,
            pictures,
            questions: round_robin(questions, limit),
        }))
    }

    fn generated(split: synthetic::Split, limit: usize) -> Self {
        const PAGES: u64 = 200;
        // Two questions per page: enough to choose from.
        let pages = if limit == 0 {
            PAGES
        } else {
            (limit as u64).min(PAGES)
        };
        let questions: Vec<HeldOutQuestion> = (0..pages).flat_map(|index| of_page(split, index)).collect();
        Self {
            source: "generated".to_owned(),
            available: questions.len(),
            pictures: 0,
            questions: round_robin(questions, limit),
        }
    }
}

impl HeldOutQuestion {
    /// Decodes the page image; an error names the file.
    pub fn image(&self) -> Result<RgbPage> {
        let read;
        let (bytes, path) = match &self.image {
            Image::Bytes(bytes) => (bytes, None),
            Image::File(path) => {
                read = read_bounded(path, PICTURE_BYTES).map_err(|error| match error.kind() {
                    std::io::ErrorKind::NotFound => {
                        Error::not_found(path, "the page is missing; run prepare_training_data")
                    }
                    _ => Error::io(path, error),
                })?;
                (&read, Some(path))
            }
        };
        decode(bytes, &DecodeLimits::default()).map_err(|error| match path {
            Some(path) => {
                Error::invalid_file(path, format!("{error}; delete it and run prepare_training_data"))
            }
            None => error.into(),
        })
    }

    /// Whether the page has a style that the embedded base model reads almost without error.
    pub fn is_clean(&self) -> bool {
        matches!(self.style.as_str(), "document" | "report") || self.style.starts_with("MTSamples")
    }
}

fn question(project: &Project, sample: &DataSample) -> Option<HeldOutQuestion> {
    let text = |key: &str| sample.extra.get(key).and_then(Value::as_str).map(str::to_owned);
    let (prompt, expected) = sample.exchange();
    let page = text("text")?;
    let task = sample.task()?.to_owned();
    let items: Option<Vec<String>> = match sample.extra.get("items") {
        Some(items) if task != TRANSCRIBE => serde_json::from_value(items.clone()).ok(),
        _ => None,
    };
    let unseen = sample.extra.get("unseen").and_then(Value::as_bool) == Some(true);
    let style = text("look").unwrap_or_else(|| match (&sample.source, unseen) {
        (SampleSource::MtSamples, true) => "MTSamples unseen".to_owned(),
        (SampleSource::MtSamples, false) => "MTSamples".to_owned(),
        (other, _) => format!("{other:?}"),
    });
    Some(HeldOutQuestion {
        prompt: prompt.to_owned(),
        expected: expected.to_owned(),
        items,
        page,
        task,
        style,
        image: Image::File(project.file(&sample.image_path)),
    })
}

fn of_page(split: synthetic::Split, index: u64) -> Vec<HeldOutQuestion> {
    let page = synthetic::page(split, SEED, index);
    let questions = page.questions.iter();
    questions
        .map(|question| HeldOutQuestion {
            prompt: question.prompt.clone(),
            expected: question.answer.clone(),
            items: (question.task != TRANSCRIBE).then(|| question.items.clone()),
            page: page.text.clone(),
            task: question.task.to_owned(),
            style: page.style.to_owned(),
            image: Image::Bytes(page.image.clone()),
        })
        .collect()
}

/// Selects `limit` questions round-robin over tasks, and over styles for transcriptions.
fn round_robin(questions: Vec<HeldOutQuestion>, limit: usize) -> Vec<HeldOutQuestion> {
    let limit = if limit == 0 { questions.len() } else { limit };
    let mut kinds: BTreeMap<(String, String), std::collections::VecDeque<HeldOutQuestion>> = BTreeMap::new();
    for question in questions {
        // Transcriptions are grouped by style, other questions by task.
        let style = if question.items.is_none() {
            question.style.clone()
        } else {
            String::new()
        };
        kinds
            .entry((question.task.clone(), style))
            .or_default()
            .push_back(question);
    }
    let mut chosen = Vec::new();
    while chosen.len() < limit && !kinds.is_empty() {
        for queue in kinds.values_mut() {
            if chosen.len() < limit {
                chosen.extend(queue.pop_front());
            }
        }
        kinds.retain(|_, queue| !queue.is_empty());
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::HashSet;

    fn project() -> (tempfile::TempDir, Project) {
        let folder = tempfile::tempdir().unwrap();
        let project = Project::open(Some(folder.path())).unwrap();
        std::fs::create_dir_all(project.file("datasets/formatted")).unwrap();
        (folder, project)
    }

    fn write(project: &Project, samples: &Value) {
        std::fs::write(project.file(records::paths::TEST), samples.to_string()).unwrap();
        std::fs::write(project.file(records::paths::DATA_SUMMARY), "{}").unwrap();
    }

    #[test]
    fn without_a_prepared_split_pages_are_generated_and_cover_all_tasks() {
        let (_folder, project) = project();
        let held_out = HeldOut::read(&project, HeldOutSplit::Test, 18).unwrap().unwrap();
        assert_eq!(
            (held_out.source.as_str(), held_out.questions.len()),
            ("generated", 18)
        );
        let tasks: HashSet<&str> = held_out
            .questions
            .iter()
            .map(|question| question.task.as_str())
            .collect();
        assert!(tasks.len() >= 8, "{tasks:?}");
        for question in &held_out.questions {
            assert!(question.image().unwrap().width >= 84);
            assert_eq!(question.items.is_none(), question.task == TRANSCRIBE);
        }
        assert!(HeldOut::read(&project, HeldOutSplit::None, 5).unwrap().is_none());
    }

    #[test]
    fn questions_use_the_training_prompts_and_pictures_are_left_out() {
        let (_folder, project) = project();
        write(
            &project,
            &json!([
                {"image_path": "a.png", "prompt": "List.", "response": "cut", "source": "MTSamples",
                 "task": "transcribe", "ask": "Read it.", "text": "all\nof it", "unseen": true},
                {"image_path": "b.png", "prompt": "What is it?", "response": "a lung", "source": "PathVQA"},
                {"image_path": "c.png", "prompt": "Drugs?", "response": "A 5 mg", "source": "ClinicalDocuments",
                 "task": "medications", "text": "DRUGS\nA 5 mg", "items": ["A 5 mg"], "look": "scanned"},
            ]),
        );
        let held_out = HeldOut::read(&project, HeldOutSplit::Test, 0).unwrap().unwrap();
        assert_eq!(
            (held_out.available, held_out.pictures, held_out.questions.len()),
            (3, 1, 2)
        );
        let (drugs, report) = (&held_out.questions[0], &held_out.questions[1]);
        assert_eq!(
            (report.prompt.as_str(), report.expected.as_str()),
            ("Read it.", "all\nof it")
        );
        assert_eq!(report.style, "MTSamples unseen");
        assert!(report.is_clean() && !drugs.is_clean());
        assert_eq!(drugs.items.as_deref(), Some(&["A 5 mg".to_owned()][..]));
        let message = drugs.image().unwrap_err().to_string();
        assert!(
            message.contains("c.png") && message.contains("prepare_training_data"),
            "{message}"
        );
    }

    #[test]
    fn an_empty_split_is_an_error_that_names_the_program_to_run() {
        let (_folder, project) = project();
        write(&project, &json!([]));
        let message = HeldOut::read(&project, HeldOutSplit::Test, 5)
            .err()
            .unwrap()
            .to_string();
        assert!(
            message.contains("test.json") && message.contains("prepare_training_data"),
            "{message}"
        );
    }
}
