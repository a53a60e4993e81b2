//! Downloads, against a hub on this machine.

mod check;
mod download_datasets;
mod download_faults;
mod download_model;
mod fake;
mod live;
mod support;
