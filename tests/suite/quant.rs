//! Four-bit weights: bitsandbytes' bytes, its folders both ways, and what the loaded weights compute.

mod awq;
mod awq_folders;
mod base;
mod binary;
mod folders;
mod outputs;
mod quantizer;

use std::path::{Path, PathBuf};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}
