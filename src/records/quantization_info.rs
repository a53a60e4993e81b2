//! `benchmarks/quantization_info.json`: what `quantize_base` made.

use serde::{Deserialize, Serialize};

use super::{Extra, MemoryFigure};

/// Both quantizations, and the one to use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuantizationInfo {
    /// AWQ.
    pub awq_attempt: AwqAttempt,
    /// NF4.
    pub bnb_setup: BnbSetup,
    /// `method` of the one to use; null where neither worked.
    pub active_method: Option<String>,
    /// Keys that no field knows.
    #[serde(flatten)]
    pub extra: Extra,
}

/// What became of AWQ.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AwqAttempt {
    /// "AWQ_INT4".
    pub method: String,
    /// The folder was written.
    pub success: bool,
    /// How long it took, seconds.
    pub time_seconds: Option<f64>,
    /// The folder.
    pub output_dir: Option<String>,
    /// Why it failed, verbatim.
    pub error: Option<String>,
    /// Keys that no field knows.
    #[serde(flatten)]
    pub extra: Extra,
}

/// What became of NF4.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BnbSetup {
    /// "bitsandbytes_NF4".
    pub method: String,
    /// The folder was written and loads.
    pub success: bool,
    /// How long it took, seconds.
    pub time_seconds: Option<f64>,
    /// How long the quantized folder took to load, seconds.
    pub load_time_seconds: Option<f64>,
    /// The folder.
    pub output_dir: Option<String>,
    /// GPU memory with the quantized model loaded.
    pub vram_mb: Option<MemoryFigure>,
    /// Weights, counted as before quantization.
    pub total_params: Option<u64>,
    /// Why it failed, verbatim.
    pub error: Option<String>,
    /// Keys that no field knows.
    #[serde(flatten)]
    pub extra: Extra,
}
