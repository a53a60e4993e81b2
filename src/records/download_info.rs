//! `benchmarks/download_info.json`: the model that `download_model` downloaded.

use serde::{Deserialize, Serialize};

use super::Extra;

/// Source of the base model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DownloadInfo {
    /// Name on the hub, such as "Qwen/Qwen2.5-VL-7B-Instruct".
    pub model_id: String,
    /// Folder it was written to.
    pub local_dir: String,
    /// Size of the folder, GiB, 2 decimals.
    pub model_size_gb: Option<f64>,
    /// Duration, seconds.
    pub download_time_seconds: Option<f64>,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}
