//! `datasets/formatted/{train,val,test}.json`: lists of samples.

use serde::{Deserialize, Serialize};

use super::Extra;

/// One page, what is asked about it and what is to be answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataSample {
    /// The page.
    pub image_path: String,
    /// What is asked.
    pub prompt: String,
    /// What is to be answered.
    pub response: String,
    /// Data set it comes from.
    pub source: SampleSource,
    /// Keys that no field knows.
    #[serde(flatten)]
    pub extra: Extra,
}

impl DataSample {
    /// What a model is asked and what it is to answer.
    ///
    /// The prompt and the response; but for a page of a report the question for its whole text, and that text (`ask`, `text`):
    /// by the contract such a sample's prompt is any of ten and its response the report's beginning, whatever is asked.
    pub fn exchange(&self) -> (&str, &str) {
        let text = |key: &str| self.extra.get(key)?.as_str();
        match (text("ask"), text("text")) {
            (Some(ask), Some(text)) => (ask, text),
            _ => (&self.prompt, &self.response),
        }
    }

    /// The task's id, where the sample says it ([`crate::synthetic`]).
    pub fn task(&self) -> Option<&str> {
        self.extra.get("task")?.as_str()
    }
}

/// Data set of a sample.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SampleSource {
    /// Radiology and pathology pictures with questions.
    #[serde(rename = "PathVQA")]
    PathVqa,
    /// Captioned pictures from papers.
    PubMedVision,
    /// Transcribed reports, rendered as pages.
    #[serde(rename = "MTSamples")]
    MtSamples,
    /// One that the contract doesn't know.
    #[serde(untagged)]
    Other(String),
}
