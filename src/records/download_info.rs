//! `benchmarks/download_info.json`: the model that `download_model` fetched.

use serde::{Deserialize, Serialize};

use super::Extra;

/// Where the base model came from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DownloadInfo {
    /// Name on the hub, such as "Qwen/Qwen2.5-VL-7B-Instruct".
    pub model_id: String,
    /// Folder it was written to.
    pub local_dir: String,
    /// Size of the folder, GiB, 2 decimals.
    pub model_size_gb: Option<f64>,
    /// How long it took, seconds.
    pub download_time_seconds: Option<f64>,
    /// Keys that no field knows.
    #[serde(flatten)]
    pub extra: Extra,
}
