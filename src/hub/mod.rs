//! Models and datasets from a Hugging Face hub: listed, downloaded, checked.
//!
//! The crate `hf-hub` knows the addresses and where the token is stored. The transfer is our own, since it must outlive
//! what happens to a download of 16 GB: a partial file is continued by range and starts anew where the file changed, every
//! file is hashed and gets its name only when the hash is the hub's, failures are repeated with growing pauses, silence on
//! a connection is a failure, and the token never leaves the hub's own host. The hub is not trusted with file names.

mod checksum;
mod client;
mod download;
mod local;
mod manifest;
mod model;
mod patience;
mod published;
mod range;
mod repository;
mod settings;
mod snapshot;
mod transfer;

pub use self::checksum::{Checksum, Hasher};
pub use self::client::Hub;
pub use self::download::{Staging, fetch_all, run};
pub(crate) use self::local::files_below;
pub(crate) use self::manifest::tool;
pub use self::manifest::{DOWNLOAD_MANIFEST, DownloadManifest, ManifestFile};
pub use self::model::{ModelDownload, ModelRequest, download_model, model_name};
pub(crate) use self::model::{is_left_out, is_pickle};
pub use self::published::PublishedFolder;
pub(crate) use self::range::{Leash, RemoteReader, hub_error};
pub use self::repository::{Repository, RepositoryKind};
pub use self::settings::{DEFAULT_ENDPOINT, HubArgs, HubSettings, Token};
pub(crate) use self::snapshot::name_fault;
pub use self::snapshot::{RemoteFile, Snapshot};
