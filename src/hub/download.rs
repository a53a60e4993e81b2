//! Concurrent downloads into a staging folder, which is renamed when it is complete.

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indicatif::HumanBytes;
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, block_in_place};

use super::{
    Hub, ManifestFile, RemoteFile, Snapshot,
    local::files_below,
    manifest::{DOWNLOAD_MANIFEST, DownloadManifest},
    names::PARTS,
    transfer::{fetch, fetched_before},
};
use crate::console::{self, Bars};
use crate::error::HubError;
use crate::fs::{
    OldFolder, RunLock, Shortage, parent_folder, remove_if_present, rename, replace_folder, settle_replaced,
    shortage, sync_parent, update_folder,
};
use crate::{Error, Result};

/// Runs `work` on a runtime of its own.
///
/// The process may be killed at any time: complete files are told apart by their names, partial ones are resumed.
pub fn run<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = runtime()?;
    let outcome = runtime.block_on(work);
    // A name that is still being looked up without network is not waited for.
    runtime.shutdown_background();
    outcome
}

/// Returns a runtime for transfers.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .enable_all()
        .build()
        .map_err(|source| Error::System {
            what: "the asynchronous runtime",
            source,
        })
}

/// The hidden folder `.NAME.incoming` beside a target, in which its files are collected; locked by this process.
#[derive(Debug)]
pub struct Incoming {
    folder: PathBuf,
    target: PathBuf,
    _lock: RunLock,
}

impl Incoming {
    /// The folder for `target`; it still holds what an interrupted run left in it.
    pub fn open(target: &Path) -> Result<Self> {
        let name = target
            .file_name()
            .ok_or_else(|| Error::unsuitable(target, "not the name of a folder to write"))?;
        let name = name.to_string_lossy();
        let folder = target.with_file_name(format!(".{name}.incoming"));
        fs::create_dir_all(&folder).map_err(|error| Error::io(&folder, error))?;
        let lock = target.with_file_name(format!(".{name}.lock"));
        let lock = RunLock::on_file(&lock, target, "download")?;
        settle_replaced(target);
        Ok(Self {
            folder,
            target: target.to_owned(),
            _lock: lock,
        })
    }

    /// Removes what an interrupted run left beside `target`, which is complete.
    pub fn discard(target: &Path) -> Result<()> {
        Self::open(target)?.remove()
    }

    /// Where files are collected.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Moves everything to the target: the whole folder if there is none yet, otherwise file by file, the manifest last.
    pub fn install(self, manifest: &DownloadManifest) -> Result<()> {
        let parts = self.folder.join(PARTS);
        if parts.exists() {
            fs::remove_dir_all(&parts).map_err(|error| Error::io(&parts, error))?;
        }
        // An interrupted run may have left files of another commit.
        let listed = |path: &String| manifest.files.iter().any(|file| file.path == *path);
        let staged = files_below(&self.folder, &|_, _| {})?;
        for path in staged.iter().filter(|path| !listed(path)) {
            let path = self.folder.join(path);
            remove_if_present(&path).map_err(|error| Error::io(&path, error))?;
        }
        if !self.target.exists() {
            manifest.write(&self.folder)?;
            let installed = replace_folder(&self.folder, &self.target, OldFolder::Remove);
            return installed
                .map(drop)
                .map_err(|error| Error::io(&self.target, error));
        }
        let old = DownloadManifest::read(&self.target).unwrap_or_default();
        let nothing_new = !staged.iter().any(listed) && old.as_ref() == Some(manifest);
        if !nothing_new {
            update_folder(
                &self.target.join(DOWNLOAD_MANIFEST),
                || self.merge(manifest, old),
                |_| manifest.write(&self.target),
            )?;
        }
        self.remove()
    }

    /// Moves file by file to the target, and removes there what only the old manifest lists.
    fn merge(&self, manifest: &DownloadManifest, old: Option<DownloadManifest>) -> Result<()> {
        for file in &manifest.files {
            let from = self.folder.join(&file.path);
            if !from.exists() {
                continue;
            }
            let to = self.target.join(&file.path);
            let attempt = || {
                fs::create_dir_all(parent_folder(&to))?;
                rename(&from, &to)?;
                sync_parent(&to)
            };
            attempt().map_err(|error| Error::io(&to, error))?;
        }
        let stays = |old: &ManifestFile| manifest.files.iter().any(|file| file.path == old.path);
        for file in old.iter().flat_map(|old| &old.files).filter(|file| !stays(file)) {
            let path = self.target.join(&file.path);
            remove_if_present(&path).map_err(|error| Error::io(&path, error))?;
        }
        Ok(())
    }

    /// Puts the folder `name` of this one in the target's place and removes everything else.
    pub fn replace_with(self, name: &str) -> Result<()> {
        replace_folder(&self.folder.join(name), &self.target, OldFolder::Remove)
            .map_err(|error| Error::io(&self.target, error))?;
        self.remove()
    }

    fn remove(self) -> Result<()> {
        fs::remove_dir_all(&self.folder).map_err(|error| Error::io(&self.folder, error))
    }
}

/// Downloads `files` of `snapshot` to their paths in `folder`, several at a time. Existing files are verified and kept.
///
/// # Errors
/// [`HubError::NoSpace`] before anything is downloaded, if the disk has too little space for all files.
pub async fn fetch_all(
    hub: &Arc<Hub>,
    snapshot: &Arc<Snapshot>,
    files: &[RemoteFile],
    folder: &Path,
) -> Result<Vec<ManifestFile>> {
    fs::create_dir_all(folder).map_err(|error| Error::io(folder, error))?;
    let (mut fetched, missing) = block_in_place(|| existing_files(folder, files))?;
    let needed = missing
        .iter()
        .map(|file| file.size - fetched_before(folder, file));
    require_space(folder, needed.fold(0, u64::saturating_add))?;
    let bars = console::transfer_bars("downloading");
    let permits = Arc::new(Semaphore::new(hub.settings.jobs));
    let mut tasks = JoinSet::new();
    for file in missing {
        let (hub, snapshot, permits) = (Arc::clone(hub), Arc::clone(snapshot), Arc::clone(&permits));
        let (folder, bars) = (folder.to_owned(), bars.clone());
        tasks.spawn(async move { fetch_one(&hub, &snapshot, &file, &folder, &bars, &permits).await });
    }
    while let Some(outcome) = tasks.join_next().await {
        let outcome = outcome
            .unwrap_or_else(|error| Err(Error::Internal(format!("a download ended unexpectedly: {error}"))));
        // Dropping the set aborts the other tasks; their partial files stay on disk.
        fetched.push(outcome?);
    }
    fetched.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(fetched)
}

async fn fetch_one(
    hub: &Hub,
    snapshot: &Snapshot,
    file: &RemoteFile,
    folder: &Path,
    bars: &Bars,
    permits: &Semaphore,
) -> Result<ManifestFile> {
    // The semaphore is never closed, so this never fails.
    let _permit = permits.acquire().await.ok();
    let bar = bars.add(&file.path, file.size);
    let outcome = fetch(hub, snapshot, file, folder, &bar).await;
    bar.finish_and_clear();
    outcome
}

/// Splits `files` into those in `folder` with the announced checksum, and the missing ones.
pub(super) fn existing_files(
    folder: &Path,
    files: &[RemoteFile],
) -> Result<(Vec<ManifestFile>, Vec<RemoteFile>)> {
    let bars = console::transfer_bars("checking files");
    let (mut existing, mut missing) = (Vec::new(), Vec::new());
    for file in files {
        let bar = bars.add(&file.path, file.size);
        let found = ManifestFile::matching(folder, &file.path, file.size, &file.checksum, &bar);
        bar.finish_and_clear();
        match found? {
            Some(found) => existing.push(found),
            None => missing.push(file.clone()),
        }
    }
    Ok((existing, missing))
}

/// Returns an error if the disk of `folder` has less than `needed` bytes free.
pub(super) fn require_space(folder: &Path, needed: u64) -> Result<()> {
    if needed == 0 {
        return Ok(());
    }
    let found = shortage(folder, needed).map_err(|error| Error::io(folder, error))?;
    match found {
        None => Ok(()),
        Some(Shortage { needed, free }) => Err(HubError::NoSpace {
            folder: folder.display().to_string(),
            needed: HumanBytes(needed).to_string(),
            free: HumanBytes(free).to_string(),
        }
        .into()),
    }
}
