//! `benchmarks/environment.json`: the machine, as `validate_environment` found it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Extra;

/// The machine and the software on it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Environment {
    /// When it was looked at.
    pub timestamp: String,
    /// The original's interpreter; ours has none.
    pub python_version: Option<String>,
    /// Operating system, kernel and processor architecture.
    pub platform: String,
    /// libtorch's version.
    pub pytorch_version: Option<String>,
    /// A GPU works.
    pub cuda_available: bool,
    /// The CUDA that libtorch was built with.
    pub cuda_version: Option<String>,
    /// The first GPU's name.
    pub gpu_name: Option<String>,
    /// GPUs that CUDA sees.
    pub gpu_count: u64,
    /// The first GPU's memory, GiB, 2 decimals.
    pub total_vram_gb: Option<f64>,
    /// Versions by package: ours are crates and libtorch; `null` where one is missing.
    pub installed_packages: BTreeMap<String, Option<String>>,
    /// Nothing in `errors`.
    pub validation_passed: bool,
    /// What must be mended before the pipeline can run.
    pub errors: Vec<String>,
    /// Keys that no field knows.
    #[serde(flatten)]
    pub extra: Extra,
}
