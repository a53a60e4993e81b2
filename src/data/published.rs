//! The three data sets of the pipeline: where they are published, and what their columns are called.

use super::cell::{Cell, Picture, Row, WrongType};
use super::pictures::base_name;
use super::rows::Format;

/// One data set, with the repositories that publish it in the order they are tried.
#[derive(Debug)]
pub struct Dataset {
    /// Its folder under `datasets/raw`.
    pub name: &'static str,
    /// Most rows that are taken.
    pub row_limit: Option<u64>,
    /// Where it is published.
    pub publications: &'static [Publication],
    /// Names of local copies hold one of these.
    pub hints: &'static [&'static str],
}

/// One form in which a data set is published.
#[derive(Debug)]
pub struct Publication {
    /// `OWNER/NAME` on the hub.
    pub repository: &'static str,
    /// `source` of the formatted samples.
    pub label: &'static str,
    /// Its file of rows; none for every file of its training split.
    file: Option<&'static str>,
    columns: &'static Columns,
}

/// Names of columns; the first that is there and not blank counts.
#[derive(Debug)]
struct Columns {
    /// Empty for a data set of texts.
    image: &'static [&'static str],
    question: &'static [&'static str],
    text: &'static [&'static str],
    specialty: &'static [&'static str],
}

const PICTURES: Columns = Columns {
    image: &["image", "images", "file_name"],
    question: &["question"],
    text: &["answer", "caption", "text"],
    specialty: &[],
};

const REPORTS: Columns = Columns {
    image: &[],
    question: &[],
    text: &["transcription", "text"],
    specialty: &["medical_specialty", "label"],
};

/// Every data set, in the order they are downloaded.
pub const DATASETS: [Dataset; 3] = [
    Dataset {
        name: "roco",
        row_limit: Some(3_000),
        publications: &[
            Publication {
                repository: "eltorio/ROCOv2-radiology",
                label: "ROCO",
                file: None,
                columns: &PICTURES,
            },
            Publication {
                repository: "mdwiratathya/ROCO-radiology",
                label: "ROCO",
                file: None,
                columns: &PICTURES,
            },
            Publication {
                repository: "flaviagiammarino/path-vqa",
                label: "PathVQA",
                file: None,
                columns: &PICTURES,
            },
        ],
        hints: &["roco", "pathvqa", "path-vqa", "path_vqa"],
    },
    Dataset {
        name: "pubmedvision",
        row_limit: Some(2_000),
        publications: &[Publication {
            repository: "FreedomIntelligence/PubMedVision",
            label: "PubMedVision",
            file: Some("PubMedVision_Alignment_VQA.json"),
            columns: &PICTURES,
        }],
        hints: &["pubmedvision"],
    },
    Dataset {
        name: "mtsamples",
        row_limit: None,
        publications: &[Publication {
            repository: "rungalileo/medical_transcription_40",
            label: "MTSamples",
            file: None,
            columns: &REPORTS,
        }],
        hints: &["mtsamples", "medical_transcription"],
    },
];

impl Dataset {
    /// The data set called `name`.
    pub fn named(name: &str) -> Option<&'static Self> {
        static ALL: [Dataset; 3] = DATASETS;
        ALL.iter().find(|dataset| dataset.name == name)
    }

    /// The form of a local copy called `name`, if it is one of this data set.
    pub(super) fn publication_of(&self, name: &str) -> Option<&'static Publication> {
        let name = name.to_ascii_lowercase();
        let hint = self.hints.iter().find(|hint| name.contains(**hint))?;
        let of_label = |publication: &&Publication| {
            publication
                .label
                .eq_ignore_ascii_case(&hint.replace(['-', '_'], ""))
        };
        self.publications
            .iter()
            .find(of_label)
            .or(self.publications.first())
    }
}

/// What a row holds.
#[derive(Debug, PartialEq)]
pub(super) struct Sample<'a> {
    pub question: Option<&'a str>,
    pub text: Option<&'a str>,
    pub picture: Option<Picture<'a>>,
    pub specialty: Option<&'a str>,
}

impl Publication {
    /// Its rows have pictures.
    pub(super) fn has_pictures(&self) -> bool {
        !self.columns.image.is_empty()
    }

    /// What is read of a row.
    pub(super) fn sample<'a>(&self, row: &'a Row) -> Result<Sample<'a>, WrongType> {
        let columns = self.columns;
        let (question, text) = match row.get("conversations") {
            Cell::Null => (row.text(columns.question)?, row.text(columns.text)?),
            turns => (turn(turns, "human")?, turn(turns, "gpt")?),
        };
        let mut picture = None;
        for column in columns.image {
            if picture.is_none() {
                picture = row.get(column).picture()?;
            }
        }
        Ok(Sample {
            question,
            text,
            picture,
            // A class number without its name tells nothing.
            specialty: row.text(columns.specialty).unwrap_or_default(),
        })
    }

    /// The files of rows among `names`, in the order of their rows: one format, the training split where there is one.
    pub(super) fn row_files<'a>(&self, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
        let mut files: Vec<(Format, &str)> = names
            .filter(|name| !is_description(name))
            .filter_map(|name| Some((Format::of(name)?.0, name)))
            .collect();
        if let Some(wanted) = self
            .file
            .filter(|wanted| files.iter().any(|(_, name)| name == wanted))
        {
            files.retain(|(_, name)| *name == wanted);
        }
        let is_training = |name: &str| base_name(name).contains("train") || name.contains("train/");
        if self.has_pictures() && files.iter().any(|(_, name)| is_training(name)) {
            files.retain(|(_, name)| is_training(name));
        }
        files.sort();
        let best = files.first().map(|(format, _)| *format);
        files.retain(|(format, _)| Some(*format) == best);
        files.into_iter().map(|(_, name)| name).collect()
    }
}

/// What the first speaker called `role` says, without the mark of the picture.
fn turn<'a>(turns: &'a Cell, role: &str) -> Result<Option<&'a str>, WrongType> {
    let Cell::List(turns) = turns else {
        return Err(WrongType);
    };
    for turn in turns {
        let Cell::Struct(turn) = turn else {
            return Err(WrongType);
        };
        if turn.text(&["from"])? == Some(role) {
            let text = turn.text(&["value"])?;
            return Ok(text.map(|text| {
                text.trim_start_matches("<image>")
                    .trim_end_matches("<image>")
                    .trim()
            }));
        }
    }
    Ok(None)
}

/// Files that describe a data set and hold no rows.
fn is_description(name: &str) -> bool {
    let name = base_name(name);
    name.starts_with('.')
        || name.contains("dataset_info")
        || name.contains("manifest")
        || name == "state.json"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn publication(label: &str) -> &'static Publication {
        let mut all = DATASETS.iter().flat_map(|dataset| dataset.publications);
        all.find(|publication| publication.label == label).unwrap()
    }

    fn row(json: serde_json::Value) -> Row {
        match Cell::from(json) {
            Cell::Struct(row) => row,
            _ => panic!("no object"),
        }
    }

    #[test]
    fn a_conversation_is_a_question_and_an_answer() {
        let row = row(serde_json::json!({
            "id": "x", "image": ["images/a.jpg", "images/b.jpg"], "modality": "CT",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A liver."},
                {"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes."},
            ],
        }));
        let sample = publication("PubMedVision").sample(&row).unwrap();
        assert_eq!(
            (sample.question, sample.text),
            (Some("What is it?"), Some("A liver."))
        );
        assert_eq!(sample.picture, Some(Picture::Path("images/a.jpg")));
    }

    #[test]
    fn rows_of_other_types_are_malformed() {
        let pubmed = publication("PubMedVision");
        for json in [
            serde_json::json!({"conversations": "x"}),
            serde_json::json!({"conversations": ["x"]}),
            serde_json::json!({"conversations": [{"from": "gpt", "value": 1}]}),
            serde_json::json!({"answer": 1}),
            serde_json::json!({"answer": "x", "image": 1}),
        ] {
            assert_eq!(pubmed.sample(&row(json.clone())), Err(WrongType), "{json}");
        }
        let report = row(serde_json::json!({"text": "x", "label": 7}));
        assert_eq!(publication("MTSamples").sample(&report).unwrap().specialty, None);
    }

    #[test]
    fn the_training_split_in_the_best_format_is_read() {
        let files = |label: &str, names: &[&'static str]| publication(label).row_files(names.iter().copied());
        let split = [
            "data/test-0.parquet",
            "data/train-1.parquet",
            "data/train-0.parquet",
            "dataset_infos.json",
            "x.jsonl",
        ];
        assert_eq!(
            files("PathVQA", &split),
            ["data/train-0.parquet", "data/train-1.parquet"]
        );
        // Of the reports all are wanted.
        assert_eq!(files("MTSamples", &split).len(), 3);
        let configurations = [
            "PubMedVision_InstructionTuning_VQA.json",
            "PubMedVision_Alignment_VQA.json",
        ];
        assert_eq!(
            files("PubMedVision", &configurations),
            ["PubMedVision_Alignment_VQA.json"]
        );
        assert_eq!(
            files("PubMedVision", &["mine.jsonl", "README.md"]),
            ["mine.jsonl"]
        );
        assert!(files("MTSamples", &["a.pkl", "README.md"]).is_empty());
    }

    #[test]
    fn a_local_copy_is_known_by_its_name() {
        let label = |name: &str| {
            let mut found = DATASETS.iter().filter_map(|dataset| dataset.publication_of(name));
            found.next().map(|publication| publication.label)
        };
        assert_eq!(label("mtsamples.jsonl.gz"), Some("MTSamples"));
        assert_eq!(label("Path-VQA"), Some("PathVQA"));
        assert_eq!(label("ROCOv2-radiology"), Some("ROCO"));
        assert_eq!(label("PubMedVision_Alignment_VQA.json"), Some("PubMedVision"));
        assert_eq!(label("data.csv"), None);
    }
}
