//! Weights in four bits: making them, storing them as other programs read them, and computing with them.
//!
//! A method takes a model folder and writes another one, which transformers loads as it stands: [`nf4::quantize_folder`],
//! [`awq::quantize_folder`]. [`quantize_base`] makes both, measures both and says which to use.
//! What every method shares is [`Source`], the model folder it reads, and
//! [`Staging`](crate::checkpoint::Staging), the folder in the making.

mod accuracy;
pub mod awq;
mod base;
mod choice;
mod config;
mod documents;
pub mod nf4;
mod options;
mod parts;
mod source;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

pub use self::accuracy::{Measured, OutputError, PageAccuracy, measure, measure_with};
pub use self::base::{BaseRun, quantize_base};
pub use self::choice::Calibration;
pub use self::config::{Awq, BitsAndBytes, Quantization};
pub use self::documents::DocumentAccuracy;
pub use self::options::{QuantizeArgs, summary};
pub(crate) use self::parts::{Part, Storage};
pub use self::source::Source;
use crate::{Error, Result};

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

/// How a caller watches and stops a quantization.
#[derive(Clone, Copy)]
pub struct Watch<'a> {
    /// Told how many bytes of the source are to be done.
    pub total: &'a (dyn Fn(u64) + Sync),
    /// Told of every few megabytes of the source that are done: how many bytes more.
    pub progress: &'a (dyn Fn(u64) + Sync),
    /// Set to stop; what is finished is kept for the next run.
    pub stop: &'a AtomicBool,
}

impl Watch<'_> {
    /// `bytes` more are done; the error that ends the work where the caller wants to stop.
    pub fn done(&self, bytes: u64) -> Result<()> {
        (self.progress)(bytes);
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        Ok(())
    }
}

/// What a quantization made.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The folder.
    pub folder: PathBuf,
    /// It was there before, made from the same source in the same way.
    pub up_to_date: bool,
    /// Weights of the source.
    pub parameters: u64,
    /// Bytes of the folder's weights.
    pub bytes: u64,
}

/// A file of a quantized folder, as text.
fn json_text(value: &impl Serialize) -> String {
    // Maps with text keys and finite numbers always serialize.
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}
