//! `benchmarks/quantization_info.json`: the result of `quantize_base`.

use serde::{Deserialize, Serialize};

use super::{Extra, MemoryFigure};

/// Results of both methods, and the one to use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuantizationInfo {
    /// AWQ.
    pub awq_attempt: AwqAttempt,
    /// NF4.
    pub bnb_setup: BnbSetup,
    /// `method` of the one to use; null if both failed.
    pub active_method: Option<String>,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Result of AWQ.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AwqAttempt {
    /// "AWQ_INT4".
    pub method: String,
    /// Whether the folder was written and loads.
    pub success: bool,
    /// Duration, seconds.
    pub time_seconds: Option<f64>,
    /// The folder.
    pub output_dir: Option<String>,
    /// Its error, verbatim.
    pub error: Option<String>,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Result of NF4.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BnbSetup {
    /// "bitsandbytes_NF4".
    pub method: String,
    /// Whether the folder was written and loads.
    pub success: bool,
    /// Duration, seconds.
    pub time_seconds: Option<f64>,
    /// Time to load the quantized folder, seconds.
    pub load_time_seconds: Option<f64>,
    /// The folder.
    pub output_dir: Option<String>,
    /// GPU memory with the quantized model loaded.
    pub vram_mb: Option<MemoryFigure>,
    /// Number of weights before quantization.
    pub total_params: Option<u64>,
    /// Its error, verbatim.
    pub error: Option<String>,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}
