//! Training data: published data sets → raw records → prepared training, validation and test splits.

mod calibration;
mod datasets;
mod download;
mod image_files;
mod local_source;
mod prepare;
mod raw_builder;
mod raw_dataset;
mod row;
mod row_files;
mod synthetic_reports;

pub use self::calibration::{CalibrationPage, CalibrationPages, calibration_pages};
pub use self::datasets::{DATASETS, Dataset, Publication};
pub use self::download::{DatasetsRequest, download_datasets};
pub use self::local_source::LocalSource;
pub use self::prepare::{DEFAULT_CLINICAL, DEFAULT_SEED, PrepareOptions, Prepared, SplitRule, prepare};
pub use self::raw_dataset::{
    RAW_FORMAT, RawDataset, RawManifest, RawRecord, RawRecords, RawWriter, SkippedRows,
};
pub(crate) use self::synthetic_reports::{is_synthetic, write_synthetic_reports};
