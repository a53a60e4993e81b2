//! Quantization of model folders to four bits, its measurement, and merging of adapters.
//!
//! A method reads a model folder ([`Source`]) and writes another one, which transformers loads without changes:
//! [`nf4::quantize_folder`], [`awq::quantize_folder`]. [`quantize_base`] runs and measures both and chooses one. Output is written to a
//! staging directory ([`Staging`](crate::fs::Staging)), so that a killed run is resumed.

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

/// Maximum size of a report beside quantized weights.
const MAX_REPORT_BYTES: u64 = 64 << 20;

/// Progress and cancellation of a quantization.
#[derive(Clone, Copy)]
pub struct Watch<'a> {
    /// Called when a stage begins: its name, its unit, and its length in that unit, 0 if unknown.
    pub stage: &'a (dyn Fn(&str, Unit, u64) + Sync),
    /// Called with the length of the stage once it is known.
    pub total: &'a (dyn Fn(u64) + Sync),
    /// Called with the number of units done since the last call.
    pub progress: &'a (dyn Fn(u64) + Sync),
    /// Set to stop; finished work is kept for the next run.
    pub stop: &'a AtomicBool,
}

impl Watch<'static> {
    /// Without progress and cancellation.
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
    /// Begins the stage `name` of `count` units.
    ///
    /// # Errors
    /// [`Error::Interrupted`] if the caller wants to stop.
    pub fn begin(&self, name: &str, unit: Unit, count: u64) -> Result<()> {
        (self.stage)(name, unit, count);
        self.check_stop()
    }

    /// Reports `count` more units as done. Errors as [`Self::begin`].
    pub fn done(&self, count: u64) -> Result<()> {
        (self.progress)(count);
        self.check_stop()
    }

    fn check_stop(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        Ok(())
    }
}

/// A folder that was written, or was up to date.
#[derive(Debug, Clone, PartialEq)]
pub struct OutputFolder {
    /// The folder.
    pub folder: PathBuf,
    /// Whether an earlier run had written it from the same source with the same options.
    pub up_to_date: bool,
    /// Number of weights of the source.
    pub parameters: u64,
    /// Bytes of the folder's weights.
    pub bytes: u64,
}

/// The stage in which a model's files are hashed.
const CHECKING: &str = "checking the model's files";

/// JSON text of a file of a quantized folder.
fn json_text(value: &impl Serialize) -> String {
    // Maps with text keys and finite numbers always serialize.
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}
