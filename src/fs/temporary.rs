//! Temporary files and folders beside their targets, and the removal of those that killed runs left behind.
//!
//! A process holds a lock on each of its own. One that can be locked has lost its process, so the next write in the same
//! folder removes it.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use tempfile::{NamedTempFile, TempDir};

use super::atomic::parent_folder;

const PREFIX: &str = ".medvision-";
const FILE_SUFFIX: &str = ".tmp";
const FOLDER_SUFFIX: &str = ".partial";

/// An empty file in the folder of `path`, which it will replace; removed on drop unless it is renamed.
pub(crate) fn temporary_file(path: &Path) -> io::Result<NamedTempFile> {
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return Err(io::Error::other("not a regular file; nothing was written"));
    }
    let folder = parent_folder(path);
    remove_stale(folder);
    loop {
        let file = tempfile::Builder::new()
            .prefix(PREFIX)
            .suffix(FILE_SUFFIX)
            // As any new file: the umask applies.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder)?;
        if claim(file.as_file(), file.path()) {
            return Ok(file);
        }
    }
}

/// A folder that is removed on drop unless it is renamed.
pub(crate) struct TemporaryFolder {
    folder: TempDir,
    _lock: File,
}

impl TemporaryFolder {
    /// An empty one in `parent`.
    pub(crate) fn new_in(parent: &Path) -> io::Result<Self> {
        remove_stale(parent);
        loop {
            let folder = tempfile::Builder::new()
                .prefix(PREFIX)
                .suffix(FOLDER_SUFFIX)
                .permissions(Permissions::from_mode(0o755))
                .tempdir_in(parent)?;
            let lock = File::open(folder.path())?;
            if claim(&lock, folder.path()) {
                return Ok(Self { folder, _lock: lock });
            }
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Whether this module makes names such as `name`.
pub(crate) fn is_temporary(name: &str) -> bool {
    name.starts_with(PREFIX) && (name.ends_with(FILE_SUFFIX) || name.ends_with(FOLDER_SUFFIX))
}

/// Locks what was just created at `path`; false where another process removed it, or is about to, as it was not locked yet.
fn claim(file: &File, path: &Path) -> bool {
    match file.try_lock() {
        Ok(()) => path.exists(),
        Err(TryLockError::WouldBlock) => false,
        // A file system without locks: nothing is removed there as stale.
        Err(TryLockError::Error(_)) => true,
    }
}

/// Removes what killed runs left in `folder`, once per process. What cannot be removed stays.
fn remove_stale(folder: &Path) {
    static SEARCHED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    let mut searched = SEARCHED.lock().unwrap_or_else(PoisonError::into_inner);
    if !searched.insert(folder.to_owned()) {
        return;
    }
    drop(searched);
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if !is_temporary(&name.to_string_lossy()) {
            continue;
        }
        // Neither links nor FIFOs, which this program never makes.
        let Ok(file) = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(entry.path())
        else {
            continue;
        };
        if file.try_lock().is_ok() {
            let _ = match file.metadata().is_ok_and(|found| found.is_dir()) {
                true => fs::remove_dir_all(entry.path()),
                false => fs::remove_file(entry.path()),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dead_process_left_is_removed_and_what_a_live_one_writes_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let live = temporary_file(&folder.path().join("file")).unwrap();
        let live_folder = TemporaryFolder::new_in(folder.path()).unwrap();
        let stale = folder.path().join(".medvision-a.tmp");
        let stale_folder = folder.path().join(".medvision-b.partial");
        let (other, link) = (
            folder.path().join("c.tmp"),
            folder.path().join(".medvision-d.tmp"),
        );
        fs::write(&stale, "half").unwrap();
        fs::create_dir(&stale_folder).unwrap();
        fs::write(stale_folder.join("file"), "half").unwrap();
        fs::write(&other, "").unwrap();
        std::os::unix::fs::symlink(&other, &link).unwrap();
        // Another path of the same folder: the search is once per process and path.
        let elsewhere = tempfile::tempdir().unwrap();
        let alias = elsewhere.path().join("alias");
        std::os::unix::fs::symlink(folder.path(), &alias).unwrap();
        remove_stale(&alias);
        assert!(!stale.exists() && !stale_folder.exists());
        assert!(other.exists() && link.exists());
        assert!(live.path().exists() && live_folder.path().exists());
    }
}
