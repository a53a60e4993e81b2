//! `datasets/formatted/data_summary.json`: the result of `prepare_training_data`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Extra;

/// The three splits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataSummary {
    /// Number of samples.
    pub total_samples: u64,
    /// Samples for training.
    pub train_count: u64,
    /// Samples for validation.
    pub val_count: u64,
    /// Samples for the test.
    pub test_count: u64,
    /// Samples by data set.
    pub source_counts: BTreeMap<String, u64>,
    /// Seed of the shuffle.
    pub random_seed: u64,
    /// "80/10/10".
    pub split_ratio: String,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}
