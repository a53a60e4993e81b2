//! The data sets of the pipeline: one table with everything that distinguishes them.

use super::image_files::base_name;
use super::row::{Cell, ImageRef, Row, WrongType};
use super::row_files::Format;

/// A data set and the repositories that publish it.
#[derive(Debug)]
pub struct Dataset {
    /// Folder name under `datasets/raw`, and value of `--dataset`.
    pub name: &'static str,
    /// Contents, for the help text.
    pub description: &'static str,
    /// Maximum number of rows to download; `None` for all.
    pub row_limit: Option<u64>,
    /// Publications, in the order in which they are tried.
    pub publications: &'static [Publication],
    /// Substrings by which a local copy is recognized.
    pub hints: &'static [&'static str],
}

/// One form in which a data set is published.
#[derive(Debug)]
pub struct Publication {
    /// `OWNER/NAME` on the hub.
    pub repository: &'static str,
    /// `source` of the prepared samples.
    pub label: &'static str,
    /// Prefix of the prepared images' file names, without `_`. It also seeds the sampled prompts: do not change it.
    pub image_prefix: &'static str,
    /// File with the rows; `None` for all files of the training split.
    file: Option<&'static str>,
    columns: &'static Columns,
}

/// Column names; the first column that exists and is not blank is used.
#[derive(Debug)]
struct Columns {
    /// Empty for a data set of reports, which are rendered as pages.
    image: &'static [&'static str],
    question: &'static [&'static str],
    text: &'static [&'static str],
    specialty: &'static [&'static str],
}

const IMAGE_COLUMNS: Columns = Columns {
    image: &["image", "images", "file_name"],
    question: &["question"],
    text: &["answer", "caption", "text"],
    specialty: &[],
};

const REPORT_COLUMNS: Columns = Columns {
    image: &[],
    question: &[],
    text: &["transcription", "text"],
    specialty: &["medical_specialty", "label"],
};

/// All data sets, in the order in which they are downloaded and prepared. This is their only declaration.
pub const DATASETS: &[Dataset] = &[
    Dataset {
        name: "roco",
        description: "radiology images (ROCO, or PathVQA as a fallback), first 3,000 rows",
        row_limit: Some(3_000),
        publications: &[
            Publication {
                repository: "eltorio/ROCOv2-radiology",
                label: "ROCO",
                image_prefix: "roco",
                file: None,
                columns: &IMAGE_COLUMNS,
            },
            Publication {
                repository: "mdwiratathya/ROCO-radiology",
                label: "ROCO",
                image_prefix: "roco",
                file: None,
                columns: &IMAGE_COLUMNS,
            },
            Publication {
                repository: "flaviagiammarino/path-vqa",
                label: "PathVQA",
                image_prefix: "pvqa",
                file: None,
                columns: &IMAGE_COLUMNS,
            },
        ],
        hints: &["roco", "pathvqa", "path-vqa", "path_vqa"],
    },
    Dataset {
        name: "pubmedvision",
        description: "captioned images, first 2,000",
        row_limit: Some(2_000),
        publications: &[Publication {
            repository: "FreedomIntelligence/PubMedVision",
            label: "PubMedVision",
            image_prefix: "pmv",
            file: Some("PubMedVision_Alignment_VQA.json"),
            columns: &IMAGE_COLUMNS,
        }],
        hints: &["pubmedvision"],
    },
    Dataset {
        name: "mtsamples",
        description: "all transcribed reports",
        row_limit: None,
        publications: &[Publication {
            repository: "rungalileo/medical_transcription_40",
            label: "MTSamples",
            image_prefix: "mt",
            file: None,
            columns: &REPORT_COLUMNS,
        }],
        hints: &["mtsamples", "medical_transcription"],
    },
];

impl Dataset {
    /// Returns the data set called `name`.
    pub fn named(name: &str) -> Option<&'static Self> {
        DATASETS.iter().find(|dataset| dataset.name == name)
    }

    /// Returns the publication that a file or folder called `name` is a copy of; `None` if it is not of this data set.
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

/// Returns the image prefix of the publication with `label`. Unknown labels, of raw data sets that others wrote, get that of
/// the first publication.
pub(super) fn image_prefix(label: &str) -> &'static str {
    let publications = || DATASETS.iter().flat_map(|dataset| dataset.publications);
    let found = publications().find(|publication| publication.label == label);
    found
        .or(publications().next())
        .map_or("", |publication| publication.image_prefix)
}

/// The columns of a row that are used.
#[derive(Debug, PartialEq)]
pub(super) struct Sample<'a> {
    pub question: Option<&'a str>,
    pub text: Option<&'a str>,
    pub image: Option<ImageRef<'a>>,
    pub specialty: Option<&'a str>,
}

impl Publication {
    /// Returns whether rows have images; otherwise they are reports.
    pub(super) fn has_images(&self) -> bool {
        !self.columns.image.is_empty()
    }

    /// Extracts the used columns of a row.
    pub(super) fn sample<'a>(&self, row: &'a Row) -> Result<Sample<'a>, WrongType> {
        let columns = self.columns;
        let (question, text) = match row.get("conversations") {
            Cell::Null => (row.text(columns.question)?, row.text(columns.text)?),
            turns => (turn(turns, "human")?, turn(turns, "gpt")?),
        };
        let mut image = None;
        for column in columns.image {
            if image.is_none() {
                image = row.get(column).image()?;
            }
        }
        Ok(Sample {
            question,
            text,
            image,
            // A class number is not a name.
            specialty: row.text(columns.specialty).unwrap_or_default(),
        })
    }

    /// Returns the files with rows among `names`, in order: one format only, and the training split if there is one.
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
        if self.has_images() && files.iter().any(|(_, name)| is_training(name)) {
            files.retain(|(_, name)| is_training(name));
        }
        files.sort();
        let best = files.first().map(|(format, _)| *format);
        files.retain(|(format, _)| Some(*format) == best);
        files.into_iter().map(|(_, name)| name).collect()
    }
}

/// Returns the first message of `role`, without the image placeholder.
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

/// Returns whether a file describes a data set and contains no rows.
fn is_description(name: &str) -> bool {
    let name = base_name(name);
    name.starts_with('.')
        || name.contains("dataset_info")
        || name.contains("manifest")
        || name == "state.json"
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_and_labels_are_unambiguous() {
        let names: HashSet<&str> = DATASETS.iter().map(|dataset| dataset.name).collect();
        assert_eq!(names.len(), DATASETS.len());
        let mut prefixes: HashSet<(&str, &str)> = HashSet::new();
        let publications = DATASETS.iter().flat_map(|dataset| dataset.publications);
        prefixes.extend(publications.map(|one| (one.label, one.image_prefix)));
        let labels: HashSet<&str> = prefixes.iter().map(|(label, _)| *label).collect();
        let distinct: HashSet<&str> = prefixes.iter().map(|(_, prefix)| *prefix).collect();
        assert_eq!((labels.len(), distinct.len()), (prefixes.len(), prefixes.len()));
    }

    fn publication(label: &str) -> &'static Publication {
        let mut all = DATASETS.iter().flat_map(|dataset| dataset.publications);
        all.find(|publication| publication.label == label).unwrap()
    }

    fn row(json: serde_json::Value) -> Row {
        match Cell::from(json) {
            Cell::Struct(row) => row,
            _ => panic!("not an object"),
        }
    }

    #[test]
    fn a_conversation_gives_a_question_and_an_answer() {
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
        assert_eq!(sample.image, Some(ImageRef::Path("images/a.jpg")));
    }

    #[test]
    fn columns_of_other_types_are_malformed() {
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
    fn the_training_split_in_the_preferred_format_is_selected() {
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
        // Reports are read from all splits.
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
    fn a_local_copy_is_recognized_by_its_name() {
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
