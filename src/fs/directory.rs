//! Making a folder so that it is whole or not there: files gather beside it, and take its place when all are done.
//!
//! `NAME.partial` holds finished files and a manifest. A run that is killed leaves it; the next one keeps every file
//! whose hash is right and goes on. The folder itself changes in one step, so that a reader never sees half of it.

use std::ffi::CString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{
    disk::disk_free,
    manifest::{FileDigest, MANIFEST, Manifest, Origin, digest_of},
};
use crate::fs::{rename, write_atomically};
use crate::{Error, Result};

/// Names of files that are being written begin with this.
pub(crate) const HALF_WRITTEN: &str = ".partial-";
/// Room left on the disk beside what is written.
const SPARE_BYTES: u64 = 64 << 20;

/// A folder in the making.
pub struct Staging {
    target: PathBuf,
    dir: PathBuf,
    manifest: Manifest,
    _lock: File,
}

/// What [`Staging::open`] found.
pub enum Staged {
    /// The folder is there, complete, intact and from the same origin: nothing is to be done.
    UpToDate(Manifest),
    /// Files are missing.
    Work(Staging),
}

impl Staging {
    /// Prepares to make `target` from `origin`; keeps what an earlier run of the same origin finished.
    pub fn open(target: &Path, origin: Origin) -> Result<Staged> {
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let dir = target.with_file_name(format!("{name}.partial"));
        check_target(target)?;
        let _ = fs::remove_dir_all(replaced(target));
        if let Some(manifest) = finished(target, &origin) {
            // What a run left that was killed in its very last step.
            if dir.is_dir() && lock(&dir).is_ok() {
                let _ = fs::remove_dir_all(&dir);
            }
            return Ok(Staged::UpToDate(manifest));
        }
        fs::create_dir_all(&dir).map_err(|error| Error::io(&dir, error))?;
        let lock = lock(&dir)?;
        let manifest = match Manifest::read(&dir) {
            Some(found) if found.origin == origin => keep_intact(&dir, found)?,
            _ => {
                empty(&dir)?;
                Manifest::new(origin)
            }
        };
        let staging = Self {
            target: target.to_owned(),
            dir,
            manifest,
            _lock: lock,
        };
        if staging.manifest.complete {
            // Killed just before the last step.
            return staging.finish().map(Staged::UpToDate);
        }
        staging.manifest.write(&staging.dir)?;
        Ok(Staged::Work(staging))
    }

    /// The error where the disk has no room for `bytes` more, found before the work is done.
    pub fn check_space(&self, bytes: u64) -> Result<()> {
        let needed = bytes + SPARE_BYTES;
        match disk_free(self.dir()) {
            Ok(free) if free < needed => Err(Error::io(
                self.dir(),
                std::io::Error::new(
                    std::io::ErrorKind::StorageFull,
                    format!(
                        "the disk has {} MiB free, the quantized model needs {} MiB: make room and run again",
                        free >> 20,
                        needed >> 20
                    ),
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Where files are to be written.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether `file` was finished, by this run or an earlier one.
    pub fn has(&self, file: &str) -> bool {
        self.manifest.files.contains_key(file)
    }

    /// Notes that `file`, now in [`Self::dir`], is finished.
    pub fn add(&mut self, file: &str, digest: FileDigest) -> Result<()> {
        self.manifest.files.insert(file.to_owned(), digest);
        self.manifest.write(&self.dir)
    }

    /// The same with what came of it: see [`Self::note`].
    pub fn add_with(&mut self, file: &str, digest: FileDigest, note: Value) -> Result<()> {
        self.manifest.notes.insert(file.to_owned(), note);
        self.add(file, digest)
    }

    /// What came of `file`, where it was finished with a note, by this run or an earlier one.
    pub fn note(&self, file: &str) -> Option<&Value> {
        self.manifest.notes.get(file).filter(|_| self.has(file))
    }

    /// Writes a small file. One that is written again must hold the same: between its new name and the manifest's new hash
    /// a run may be killed.
    pub fn write(&mut self, file: &str, contents: &[u8]) -> Result<()> {
        use io::Write as _;
        let path = self.dir.join(file);
        write_atomically(&path, |writer| writer.write_all(contents))?;
        let digest = digest_of(&path)?;
        self.add(file, digest)
    }

    /// Puts the folder in its place.
    pub fn finish(mut self) -> Result<Manifest> {
        self.manifest.complete = true;
        self.manifest.notes.clear();
        self.manifest.write(&self.dir)?;
        if self.target.exists() {
            if exchange(&self.dir, &self.target).is_err() {
                // A file system that cannot: there is a moment without the folder, and the next run ends it.
                let old = replaced(&self.target);
                let fault = |error| Error::io(&self.target, error);
                rename(&self.target, &old).map_err(fault)?;
                rename(&self.dir, &self.target).map_err(fault)?;
                let _ = fs::remove_dir_all(&old);
            } else {
                let _ = fs::remove_dir_all(&self.dir);
            }
        } else {
            rename(&self.dir, &self.target).map_err(|error| Error::io(&self.target, error))?;
        }
        if let Some(parent) = self.target.parent()
            && let Ok(parent) = File::open(parent)
        {
            let _ = parent.sync_all();
        }
        Ok(self.manifest)
    }
}

/// Where the folder before goes while a new one takes its place, on a file system that cannot swap two.
fn replaced(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!("{name}.replaced"))
}

/// A model that this program did not make is not replaced.
fn check_target(target: &Path) -> Result<()> {
    let weights = fs::read_dir(target).into_iter().flatten().flatten().any(|entry| {
        Path::new(&entry.file_name())
            .extension()
            .is_some_and(|extension| extension == "safetensors")
    });
    if weights && Manifest::read(target).is_none() {
        return Err(Error::checkpoint(
            target,
            format!(
                "holds weights that this program did not make (it has no {MANIFEST}); move the folder away first"
            ),
        ));
    }
    Ok(())
}

/// The manifest of `target` where it is complete, intact and of this origin.
fn finished(target: &Path, origin: &Origin) -> Option<Manifest> {
    let manifest = Manifest::read(target)?;
    (manifest.complete && manifest.origin == *origin && manifest.intact(target).len() == manifest.files.len())
        .then_some(manifest)
}

/// One run at a time.
fn lock(dir: &Path) -> Result<File> {
    let file = File::open(dir).map_err(|error| Error::io(dir, error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::checkpoint(
            dir,
            "another run is making this folder: wait until it ends",
        )),
        Err(TryLockError::Error(error)) => Err(Error::io(dir, error)),
    }
}

/// Removes what `manifest` does not vouch for.
fn keep_intact(dir: &Path, mut manifest: Manifest) -> Result<Manifest> {
    let intact = manifest.intact(dir);
    let lost = intact.len() < manifest.files.len();
    manifest.files.retain(|name, _| intact.contains(name));
    manifest.notes.retain(|name, _| intact.contains(name));
    manifest.complete &= !lost;
    for entry in fs::read_dir(dir)
        .map_err(|error| Error::io(dir, error))?
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name != MANIFEST && !intact.contains(&name) {
            remove(&entry.path())?;
        }
    }
    Ok(manifest)
}

fn empty(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)
        .map_err(|error| Error::io(dir, error))?
        .flatten()
    {
        remove(&entry.path())?;
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    let result = if path.is_dir() && !path.is_symlink() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    result.map_err(|error| Error::io(path, error))
}

/// Swaps two folders in one step.
pub(crate) fn exchange(one: &Path, other: &Path) -> io::Result<()> {
    let path = |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other);
    let (one, other) = (path(one)?, path(other)?);
    #[cfg(test)]
    crate::fs::failpoint::pass();
    // SAFETY: both are C strings that outlive the call.
    let result = unsafe {
        libc::renameat2(
            libc::AT_FDCWD,
            one.as_ptr(),
            libc::AT_FDCWD,
            other.as_ptr(),
            libc::RENAME_EXCHANGE,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_without_room_is_said_before_the_work() {
        let home = tempfile::tempdir().unwrap();
        let origin = Origin {
            method: "test".to_owned(),
            options: serde_json::Value::Null,
            source: "model".to_owned(),
            source_revision: "1".to_owned(),
            tool: "test".to_owned(),
        };
        let Staged::Work(staging) = Staging::open(&home.path().join("made"), origin).unwrap() else {
            panic!("nothing is there yet");
        };
        staging.check_space(0).unwrap();
        let error = staging.check_space(1 << 60).unwrap_err().to_string();
        assert!(
            error.contains("make room") && error.contains("made.partial"),
            "{error}"
        );
    }
}
