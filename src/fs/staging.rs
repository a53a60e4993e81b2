//! Staging directories: a folder is written beside its target and takes its place when it is complete.
//!
//! `NAME.partial` holds finished files and a manifest. A run that is killed leaves it; the next one keeps every file whose
//! hash matches and makes the others.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{
    atomic::write_atomically,
    directory::{OldFolder, beside, replace_folder, settle_replaced},
    disk::{Shortage, shortage},
    lock::RunLock,
    manifest::{FileDigest, MANIFEST, Manifest, Origin, digest_of},
};
use crate::{Error, Result};

/// What runs in a staging directory, for the error of a second run.
const WORK: &str = "run";

/// A staging directory, locked by this process.
pub struct Staging {
    target: PathBuf,
    dir: PathBuf,
    manifest: Manifest,
    _lock: RunLock,
}

/// What [`Staging::open`] found.
pub enum Staged {
    /// The target is complete, intact and of the same origin.
    UpToDate(Manifest),
    /// Files are missing.
    Work(Staging),
}

impl Staging {
    /// The folder in which the files of `target` are staged.
    pub fn folder_of(target: &Path) -> PathBuf {
        beside(target, "partial")
    }

    /// Prepares to write `target` from `origin`; keeps what an earlier run of the same origin finished.
    pub fn open(target: &Path, origin: Origin) -> Result<Staged> {
        let dir = Self::folder_of(target);
        check_target(target)?;
        settle_replaced(target);
        if let Some(manifest) = finished(target, &origin) {
            // Left by a run that was killed in its last step.
            if dir.is_dir() && RunLock::on_folder(&dir, WORK).is_ok() {
                let _ = fs::remove_dir_all(&dir);
            }
            return Ok(Staged::UpToDate(manifest));
        }
        fs::create_dir_all(&dir).map_err(|error| Error::io(&dir, error))?;
        let lock = RunLock::on_folder(&dir, WORK)?;
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

    /// The error if the disk lacks space for `bytes` more, found before the work is done.
    pub fn check_space(&self, bytes: u64) -> Result<()> {
        let Ok(Some(Shortage { needed, free })) = shortage(&self.dir, bytes) else {
            return Ok(());
        };
        let reason = format!(
            "the disk has {} MiB free, the quantized model needs {} MiB: make room and run again",
            free >> 20,
            needed >> 20
        );
        let error = io::Error::new(io::ErrorKind::StorageFull, reason);
        Err(Error::io(&self.dir, error))
    }

    /// Where files are written.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether `file` was finished, by this run or an earlier one.
    pub fn has(&self, file: &str) -> bool {
        self.manifest.files.contains_key(file)
    }

    /// Records that `file`, now in [`Self::dir`], is finished.
    pub fn add(&mut self, file: &str, digest: FileDigest) -> Result<()> {
        self.manifest.files.insert(file.to_owned(), digest);
        self.manifest.write(&self.dir)
    }

    /// The same with a payload, see [`Self::note`].
    pub fn add_with(&mut self, file: &str, digest: FileDigest, note: Value) -> Result<()> {
        self.manifest.notes.insert(file.to_owned(), note);
        self.add(file, digest)
    }

    /// The payload of `file`, if it was finished with one, by this run or an earlier one.
    pub fn note(&self, file: &str) -> Option<&Value> {
        self.manifest.notes.get(file).filter(|_| self.has(file))
    }

    /// Writes a small file. One that is written again must have the same contents: a run may be killed between the rename
    /// of the file and the manifest's new hash.
    pub fn write(&mut self, file: &str, contents: &[u8]) -> Result<()> {
        use io::Write as _;
        let path = self.dir.join(file);
        write_atomically(&path, |writer| writer.write_all(contents))?;
        let digest = digest_of(&path)?;
        self.add(file, digest)
    }

    /// Puts the folder in the target's place.
    pub fn finish(mut self) -> Result<Manifest> {
        self.manifest.complete = true;
        self.manifest.notes.clear();
        self.manifest.write(&self.dir)?;
        replace_folder(&self.dir, &self.target, OldFolder::Remove)
            .map_err(|error| Error::io(&self.target, error))?;
        Ok(self.manifest)
    }
}

/// A model that this program did not write is not replaced.
fn check_target(target: &Path) -> Result<()> {
    let weights = fs::read_dir(target).into_iter().flatten().flatten().any(|entry| {
        Path::new(&entry.file_name())
            .extension()
            .is_some_and(|extension| extension == "safetensors")
    });
    if weights && Manifest::read(target).is_none() {
        return Err(Error::unsuitable(
            target,
            format!(
                "holds weights that this program did not write (it has no {MANIFEST}); move the folder away first"
            ),
        ));
    }
    Ok(())
}

/// The manifest of `target` if it is complete, intact and of this origin.
fn finished(target: &Path, origin: &Origin) -> Option<Manifest> {
    let manifest = Manifest::read(target)?;
    (manifest.complete && manifest.origin == *origin && manifest.intact(target).len() == manifest.files.len())
        .then_some(manifest)
}

/// Removes files that `manifest` does not list with their hash.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_an_error_before_the_work() {
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
