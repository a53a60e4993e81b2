//! `datasets/download_summary.json`: the result of `download_datasets`.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Extra;

/// All data sets.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DownloadSummary {
    /// One per data set.
    pub datasets: Vec<DatasetDownload>,
    /// Number of complete data sets.
    pub total_successful: u64,
    /// Their samples.
    pub total_samples: u64,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}

impl fmt::Display for DownloadSummary {
    /// One line per data set, and one for all.
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
    /// Whether it is complete.
    pub success: bool,
    /// Samples.
    pub count: u64,
    /// Duration, seconds.
    pub time_seconds: Option<f64>,
    /// Why it failed.
    pub error: Option<String>,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}
