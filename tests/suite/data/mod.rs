//! `download_datasets` and `prepare_training_data`.

mod download_datasets;
mod prepare;
