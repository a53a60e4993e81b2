//! Training data: published datasets → raw records → pages and their texts.

mod build;
mod cell;
mod download;
mod pictures;
mod published;
mod raw;
mod rows;
mod source;

pub use self::download::{DatasetsRequest, download_datasets};
pub use self::published::{DATASETS, Dataset, Publication};
pub use self::raw::{RAW_FORMAT, RawDataset, RawManifest, RawRecord, RawRecords, RawWriter, SkippedRows};
pub use self::source::LocalSource;
