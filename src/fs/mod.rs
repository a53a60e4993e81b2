//! Files that are whole or not there: bounded reading, atomic writing, folders in the making, manifests.

mod atomic;
mod directory;
mod disk;
mod files;
pub(crate) mod hub_cache;
pub(crate) mod json;
mod manifest;

#[cfg(test)]
pub(crate) use self::atomic::failpoint;
pub(crate) use self::atomic::{rename, write_atomically};
pub(crate) use self::directory::{HALF_WRITTEN, exchange};
pub use self::directory::{Staged, Staging};
pub use self::disk::disk_free;
pub(crate) use self::files::*;

pub(crate) use self::manifest::hexadecimal;
pub use self::manifest::{FileDigest, MANIFEST, Manifest, Origin, digest_of, revision};
