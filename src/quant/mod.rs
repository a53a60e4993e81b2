//! Weights in four bits: how they are stored, and computing with them. [`quantize`](crate::quantize) makes them.

pub mod awq;
mod config;
pub mod nf4;
mod parts;
mod weight;

pub use self::config::{Awq, BitsAndBytes, Quantization};
pub(crate) use self::parts::{Part, Storage};
pub use self::weight::QuantizedWeight;

use serde::{Deserialize, Serialize};

/// A way of quantizing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Method {
    /// bitsandbytes' NormalFloat 4.
    #[serde(rename = "bitsandbytes_NF4")]
    Nf4,
    /// Activation-aware weight quantization.
    #[serde(rename = "AWQ_INT4")]
    Awq,
}

impl Method {
    /// Its name in the records.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nf4 => "bitsandbytes_NF4",
            Self::Awq => "AWQ_INT4",
        }
    }
}
