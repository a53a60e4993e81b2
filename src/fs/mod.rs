//! Files and folders that are complete or absent: bounded reads, atomic writes, staging directories with manifests, locks.

mod atomic;
mod directory;
mod disk;
mod files;
pub(crate) mod hub_cache;
pub(crate) mod json;
mod lock;
mod manifest;
mod staging;
mod temporary;

#[cfg(test)]
pub(crate) use self::atomic::failpoint;
pub(crate) use self::atomic::{
    parent_folder, persist, remove_if_present, rename, sync_file_system, sync_parent, write_atomically,
    write_unsynced,
};
pub(crate) use self::directory::{OldFolder, replace_folder, settle_replaced, update_folder};
pub use self::disk::disk_free;
pub(crate) use self::disk::{Shortage, shortage};
pub(crate) use self::files::*;
pub use self::lock::RunLock;
pub use self::staging::{Staged, Staging};
pub(crate) use self::temporary::{TemporaryFolder, is_temporary, temporary_file};

pub(crate) use self::manifest::digest_of_file;
pub(crate) use self::manifest::hex;
pub use self::manifest::{FileDigest, MANIFEST, Manifest, Origin, digest_of, revision};
