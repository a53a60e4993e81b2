//! `datasets/formatted/{train,val,test}.json`: lists of samples.

use serde::{Deserialize, Serialize};

use super::Extra;

/// One page, a prompt and the expected response.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataSample {
    /// The page.
    pub image_path: String,
    /// Prompt.
    pub prompt: String,
    /// Expected response.
    pub response: String,
    /// Data set it comes from.
    pub source: SampleSource,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}

impl DataSample {
    /// Returns the prompt and the response to train and evaluate with.
    ///
    /// For a page of a report these are the question for its whole text and that text (`ask`, `text`): by the contract such a
    /// sample's prompt is any of ten and its response the beginning of the report.
    pub fn exchange(&self) -> (&str, &str) {
        let text = |key: &str| self.extra.get(key)?.as_str();
        match (text("ask"), text("text")) {
            (Some(ask), Some(text)) => (ask, text),
            _ => (&self.prompt, &self.response),
        }
    }

    /// The task's id, if the sample has one (see [`crate::synthetic`]).
    pub fn task(&self) -> Option<&str> {
        self.extra.get("task")?.as_str()
    }
}

/// Data set of a sample: the label of its publication.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SampleSource {
    /// Radiology and pathology images with questions.
    #[serde(rename = "PathVQA")]
    PathVqa,
    /// Captioned images from papers.
    PubMedVision,
    /// Transcribed reports, rendered as pages.
    #[serde(rename = "MTSamples")]
    MtSamples,
    /// Any other data set, by its label.
    #[serde(untagged)]
    Other(String),
}

impl SampleSource {
    /// Returns the source with `label`.
    pub fn new(label: &str) -> Self {
        match label {
            "PathVQA" => Self::PathVqa,
            "PubMedVision" => Self::PubMedVision,
            "MTSamples" => Self::MtSamples,
            other => Self::Other(other.to_owned()),
        }
    }

    /// Returns the label, as in JSON.
    pub fn label(&self) -> &str {
        match self {
            Self::PathVqa => "PathVQA",
            Self::PubMedVision => "PubMedVision",
            Self::MtSamples => "MTSamples",
            Self::Other(label) => label,
        }
    }
}
