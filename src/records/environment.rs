//! `benchmarks/environment.json`: the machine, as `validate_environment` found it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Extra;

/// The machine and the software on it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// Time of the check.
    pub timestamp: String,
    /// The original's Python version; null here.
    pub python_version: Option<String>,
    /// Operating system, kernel and processor architecture.
    pub platform: String,
    /// libtorch's version.
    pub pytorch_version: Option<String>,
    /// Whether a GPU works.
    pub cuda_available: bool,
    /// CUDA version that libtorch was built with.
    pub cuda_version: Option<String>,
    /// The first GPU's name.
    pub gpu_name: Option<String>,
    /// Number of CUDA GPUs.
    pub gpu_count: u64,
    /// The first GPU's memory, GiB, 2 decimals.
    pub total_vram_gb: Option<f64>,
    /// Versions of crates and libtorch; `null` for one that is missing.
    pub installed_packages: BTreeMap<String, Option<String>>,
    /// Whether `errors` is empty.
    pub validation_passed: bool,
    /// Problems that must be fixed before the pipeline can run.
    pub errors: Vec<String>,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}
