//! `datasets/download_summary.json`: what `download_datasets` fetched.

use std::fmt;

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

impl fmt::Display for DownloadSummary {
    /// A line for each data set, and one for all.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for dataset in &self.datasets {
            let state = if dataset.success { "complete" } else { "missing" };
            let seconds = dataset.time_seconds.unwrap_or_default();
            let (name, count) = (&dataset.name, dataset.count);
            writeln!(
                formatter,
                "{name:14} {state:8} {count:>7} samples {seconds:>8.1} s"
            )?;
        }
        let (datasets, samples) = (self.total_successful, self.total_samples);
        writeln!(formatter, "{datasets} data sets, {samples} samples")
    }
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
