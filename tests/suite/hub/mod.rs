//! Downloads from a hub on this machine.

mod check;
mod download_faults;
mod download_model;
pub mod fake;
mod live;
pub mod support;
