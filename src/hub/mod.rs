//! Downloads of models and data sets from a Hugging Face hub.
//!
//! The crate `hf-hub` provides URLs and the stored token. The transfer is our own:
//! - Partial files are resumed by range, and restarted if the file changed on the hub.
//! - Every file is hashed; it is renamed to its final path only if the checksum is the hub's.
//! - Failures are retried with exponential backoff, `Retry-After` and rate limits included. A stalled connection is a
//!   failure.
//! - The token is sent to the hub's own host only.
//! - File names from the hub are validated.

mod backoff;
mod checksum;
mod client;
mod download;
mod failure;
mod headers;
mod local;
mod manifest;
mod model;
mod names;
mod range;
mod rate_limit;
mod remote_folder;
mod repository;
mod settings;
mod snapshot;
mod transfer;

pub use self::checksum::{Checksum, Hasher};
pub use self::client::Hub;
pub use self::download::{Incoming, fetch_all, run};
pub(crate) use self::local::files_below;
pub(crate) use self::manifest::tool_version;
pub use self::manifest::{DOWNLOAD_MANIFEST, DownloadManifest, ManifestFile};
pub use self::model::{ModelDownload, ModelRequest, download_model, model_name};
pub(crate) use self::model::{is_excluded, is_pickle};
pub(crate) use self::names::name_fault;
pub(crate) use self::range::{CancelGuard, RemoteReader, hub_error};
pub use self::remote_folder::RemoteFolder;
pub use self::repository::{Repository, RepositoryKind};
pub use self::settings::{DEFAULT_ENDPOINT, HubSettings, Token};
pub use self::snapshot::{RemoteFile, Snapshot};
