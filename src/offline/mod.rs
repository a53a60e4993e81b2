//! What a network without the hub and without an image registry needs, in one folder: `medvision save-offline` and
//! `load-offline`.
//!
//! ```text
//! models/NAME/...     a model, and its adapter beside it
//! image.tar           the image, as docker and podman save it
//! licences/, sbom.cdx.json    of the installation, where it has them
//! README.txt, SHA256SUMS      for who has neither this program nor its documentation yet
//! manifest.json       size and SHA-256 of every file; written last
//! ```
//!
//! The sums show damage on the way, not who made the folder: it is not signed.

mod contents;
mod copy;
mod engine;
mod load;
mod save;

pub use self::engine::ContainerEngine;
pub use self::load::{LoadOptions, Loaded, LoadedModel, load};
pub use self::save::{SaveOptions, Saved, save};

/// Folder of the models.
const MODELS: &str = "models";
/// The image.
const IMAGE: &str = "image.tar";
/// Sums in the form of `sha256sum`.
const SUMS: &str = "SHA256SUMS";
/// How to use the folder.
const README: &str = "README.txt";
/// Folder of the licences, here as in an installation.
const LICENCES: &str = "licences";
/// Bill of materials, here as in an installation.
const SBOM: &str = "sbom.cdx.json";
