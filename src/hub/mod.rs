//! Models and datasets from a Hugging Face hub: listed, downloaded, checked.

mod checksum;
mod manifest;

pub use self::checksum::{Checksum, Hasher};
pub use self::manifest::ManifestFile;
