//! Four-bit weight formats: bitsandbytes NF4 and FP4, AWQ. [`quantize`](crate::quantize) writes such weights.

pub mod awq;
mod config;
pub mod nf4;
mod storage;
pub mod tiles;
mod weight;

pub use self::config::{Awq, BitsAndBytes, Quantization};
pub(crate) use self::storage::{SizeSpec, Storage, TensorSpec};
pub use self::weight::QuantizedWeight;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::project::{AWQ_SUFFIX, NF4_SUFFIX};

/// A quantization method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum Method {
    /// bitsandbytes' NormalFloat 4.
    #[serde(rename = "bitsandbytes_NF4")]
    Nf4,
    /// Activation-aware weight quantization.
    #[serde(rename = "AWQ_INT4")]
    Awq,
}

impl Method {
    /// Suffix of the folder name of models quantized with it.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Nf4 => NF4_SUFFIX,
            Self::Awq => AWQ_SUFFIX,
        }
    }

    /// Its name in the records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "bitsandbytes_NF4",
            Self::Awq => "AWQ_INT4",
        }
    }
}
