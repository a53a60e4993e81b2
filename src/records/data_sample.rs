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
