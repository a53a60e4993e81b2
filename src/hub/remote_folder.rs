//! A repository on the hub as a [`FolderFiles`]: a model folder is checked without downloading it.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use reqwest::Url;
use tokio::runtime::Runtime;

use super::download::runtime;
use super::{Hub, HubSettings, RemoteFile, Repository, Snapshot};
use crate::checkpoint::FolderFiles;
use crate::{Error, Result};

/// A repository on the hub at one commit.
#[derive(Debug)]
pub struct RemoteFolder {
    hub: Hub,
    snapshot: Snapshot,
    /// Signed URL of each file that was read.
    signed: Vec<Mutex<Option<Url>>>,
    fetched: AtomicU64,
    /// `Some` until drop, which shuts it down in the background.
    runtime: Option<Runtime>,
}

impl RemoteFolder {
    /// Lists the files of `repository`.
    pub fn open(repository: &Repository, settings: HubSettings) -> Result<Self> {
        let hub = Hub::new(settings)?;
        let runtime = runtime()?;
        let snapshot = runtime.block_on(hub.snapshot(repository));
        let snapshot = match snapshot {
            Ok(snapshot) => snapshot,
            Err(error) => {
                runtime.shutdown_background();
                return Err(error);
            }
        };
        Ok(Self {
            signed: snapshot.files.iter().map(|_| Mutex::new(None)).collect(),
            hub,
            snapshot,
            fetched: AtomicU64::new(0),
            runtime: Some(runtime),
        })
    }

    /// The commit's hash.
    pub fn commit(&self) -> &str {
        self.snapshot.commit()
    }

    /// Bytes downloaded so far.
    pub fn fetched_bytes(&self) -> u64 {
        self.fetched.load(Ordering::Relaxed)
    }

    /// Names of the files.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.snapshot.files.iter().map(|file| file.path.as_str())
    }

    fn find(&self, name: &str) -> Option<(&RemoteFile, &Mutex<Option<Url>>)> {
        let at = self
            .snapshot
            .files
            .binary_search_by(|file| file.path.as_str().cmp(name))
            .ok()?;
        Some((self.snapshot.files.get(at)?, self.signed.get(at)?))
    }
}

impl Drop for RemoteFolder {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl FolderFiles for RemoteFolder {
    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("{}/{name}", self.snapshot.repository.id))
    }

    fn size(&self, name: &str) -> Result<Option<u64>> {
        Ok(self.find(name).map(|(file, _)| file.size))
    }

    fn read(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>> {
        let (Some((file, signed)), Some(runtime)) = (self.find(name), &self.runtime) else {
            return Err(Error::not_found(self.path(name), "no such file"));
        };
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let repository = &self.snapshot.repository;
        let mut address = signed.lock().unwrap_or_else(PoisonError::into_inner).take();
        let bytes = runtime.block_on(self.hub.fetch_range(repository, file, range, &mut address))?;
        *signed.lock().unwrap_or_else(PoisonError::into_inner) = address;
        self.fetched.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(bytes)
    }

    fn jobs(&self) -> usize {
        self.hub.jobs()
    }
}
