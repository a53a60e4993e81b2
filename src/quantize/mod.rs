//! Makes weights in four bits from a model folder, measures what they cost, and merges adapters.
//!
//! A method takes a model folder and writes another one, which transformers loads as it stands: [`nf4::quantize_folder`],
//! [`awq::quantize_folder`]. [`quantize_base`] makes both, measures both and says which to use.
//! What every method shares is [`Source`], the model folder it reads, and
//! [`Staging`](crate::fs::Staging), the folder in the making.

mod accuracy;
pub mod awq;
#[cfg(test)]
mod crash_tests;
mod documents;
mod merge;
pub mod nf4;
mod run;
mod saved;
mod select;
mod shards;
mod source;
mod summary;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

pub use self::accuracy::{Measured, OutputError, PageAccuracy, measure, measure_with};
pub use self::documents::DocumentAccuracy;
pub use self::merge::{MergeError, merge_error, merge_folder};
pub use self::run::{BaseRun, quantize_base};
pub use self::select::Calibration;
pub use self::source::Source;
pub use self::summary::summary;
use crate::console::Unit;
use crate::{Error, Result};

/// Most bytes of a report beside quantized weights.
const MAX_REPORT_BYTES: u64 = 64 << 20;

/// How a caller watches and stops a quantization.
#[derive(Clone, Copy)]
pub struct Watch<'a> {
    /// Told of every stage that begins: its name, what it counts, and how many of them it has, 0 where that is not known yet.
    pub stage: &'a (dyn Fn(&str, Unit, u64) + Sync),
    /// Told how many of them the stage has: bytes of the source, pages, documents.
    pub total: &'a (dyn Fn(u64) + Sync),
    /// Told how many more are done.
    pub progress: &'a (dyn Fn(u64) + Sync),
    /// Set to stop; what is finished is kept for the next run.
    pub stop: &'a AtomicBool,
}

impl Watch<'static> {
    /// Of a caller who watches nothing and never stops.
    pub fn none() -> Self {
        static NEVER: AtomicBool = AtomicBool::new(false);
        Self {
            stage: &|_, _, _| {},
            total: &|_| {},
            progress: &|_| {},
            stop: &NEVER,
        }
    }
}

impl Watch<'_> {
    /// The stage `name` of `count` units begins; the error that ends the work where the caller wants to stop.
    pub fn begin(&self, name: &str, unit: Unit, count: u64) -> Result<()> {
        (self.stage)(name, unit, count);
        self.go_on()
    }

    /// `count` more are done; the error that ends the work where the caller wants to stop.
    pub fn done(&self, count: u64) -> Result<()> {
        (self.progress)(count);
        self.go_on()
    }

    /// The error that ends the work where the caller wants to stop.
    fn go_on(&self) -> Result<()> {
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

/// The stage in which a model's files are hashed.
const CHECKING: &str = "checking the model's files";

/// A file of a quantized folder, as text.
fn json_text(value: &impl Serialize) -> String {
    // Maps with text keys and finite numbers always serialize.
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}
