//! Training data: published datasets → raw records → pages and their texts.

mod raw;

pub use self::raw::{RAW_FORMAT, RawDataset, RawManifest, RawRecord, RawRecords, RawWriter, SkippedRows};
