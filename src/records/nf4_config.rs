//! `quantization_config.json` in the NF4 model's folder: how it was quantized.

use serde::{Deserialize, Serialize};

use super::Extra;

/// How a folder was quantized.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Nf4QuantizationConfig {
    /// "bitsandbytes_NF4".
    pub method: String,
    /// Folder of the model that was quantized.
    pub base_model_dir: String,
    /// bitsandbytes' settings.
    pub config: Nf4Config,
    /// A note for the user.
    pub notes: Option<String>,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}

/// bitsandbytes' settings, by its own names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Nf4Config {
    /// Whether weights have 4 bits.
    pub load_in_4bit: bool,
    /// "nf4".
    pub bnb_4bit_quant_type: String,
    /// "bfloat16".
    pub bnb_4bit_compute_dtype: String,
    /// Whether the scales are quantized too (double quantization).
    pub bnb_4bit_use_double_quant: bool,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}
