//! Training data: published datasets → raw records → pages and their texts.

mod build;
mod calibration;
mod cell;
mod download;
mod pictures;
mod prepare;
mod published;
mod raw;
mod rows;
mod source;
mod synthetic;

pub use self::calibration::{CalibrationPage, CalibrationPages, calibration_pages};
pub use self::download::{DatasetsRequest, download_datasets};
pub use self::prepare::{DEFAULT_CLINICAL, DEFAULT_SEED, PrepareOptions, Prepared, SplitRule, prepare};
pub use self::published::{DATASETS, Dataset, Publication};
pub use self::raw::{RAW_FORMAT, RawDataset, RawManifest, RawRecord, RawRecords, RawWriter, SkippedRows};
pub use self::source::LocalSource;
pub(crate) use self::synthetic::{is_synthetic, write_synthetic_reports};
