//! `datasets/download_summary.json`: what `download_datasets` fetched.

use serde::{Deserialize, Serialize};

use super::Extra;

/// Every data set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DownloadSummary {
    /// One a data set.
    pub datasets: Vec<DatasetDownload>,
    /// Data sets that are there.
    pub total_successful: u64,
    /// Samples of all of them.
    pub total_samples: u64,
    /// Keys that no field knows.
    #[serde(flatten)]
    pub extra: Extra,
}

/// One data set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DatasetDownload {
    /// Its name.
    pub name: String,
    /// It is there.
    pub success: bool,
    /// Samples.
    pub count: u64,
    /// How long it took, seconds.
    pub time_seconds: Option<f64>,
    /// Why it failed.
    pub error: Option<String>,
    /// Keys that no field knows.
    #[serde(flatten)]
    pub extra: Extra,
}
