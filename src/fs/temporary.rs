//! Temporary files and folders beside their targets, and the removal of those that killed runs left behind.
//!
//! A process holds a lock on each of its own. One that can be locked has lost its process, so the next write in the same
//! folder removes it. Not every network file system shows locks to other machines: the names hold the kernel's boot, and what
//! another boot left is removed when it is a day old.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tempfile::{NamedTempFile, TempDir};

use super::atomic::parent_folder;

const PREFIX: &str = ".medvision-";
const FILE_SUFFIX: &str = ".tmp";
const FOLDER_SUFFIX: &str = ".partial";
/// Age from which what another machine, or an earlier boot, left counts as stale.
const FOREIGN_AGE: Duration = Duration::from_secs(24 * 3600);

/// `.medvision-BOOT-`: the beginning of the names that this boot of the kernel makes.
fn prefix() -> &'static str {
    static OWN: OnceLock<String> = OnceLock::new();
    OWN.get_or_init(|| {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let boot = boot.get(..8).unwrap_or("unknown");
        format!("{PREFIX}{boot}-")
    })
}

/// An empty file in the folder of `path`, which it will replace; removed on drop unless it is renamed.
pub(crate) fn temporary_file(path: &Path) -> io::Result<NamedTempFile> {
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return Err(io::Error::other("not a regular file; nothing was written"));
    }
    let folder = parent_folder(path);
    remove_stale(folder);
    loop {
        let file = tempfile::Builder::new()
            .prefix(prefix())
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
                .prefix(prefix())
                .suffix(FOLDER_SUFFIX)
                .permissions(Permissions::from_mode(0o755))
                .tempdir_in(parent)?;
            let lock = match File::open(folder.path()) {
                // Another process found it before it was locked.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                opened => opened?,
            };
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
        let Ok(found) = entry
            .metadata()
            .map(|found| (found.file_type(), found.modified().ok()))
        else {
            continue;
        };
        let (kind, modified) = found;
        let age = modified.and_then(|modified| modified.elapsed().ok());
        let stale = name.to_string_lossy().starts_with(prefix()) || age.is_some_and(|age| age > FOREIGN_AGE);
        if !stale || !(kind.is_file() || kind.is_dir()) {
            continue;
        }
        // Some network file systems lock only what is open for writing.
        let opened = OpenOptions::new()
            .read(true)
            .write(kind.is_file())
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(entry.path());
        if opened.is_ok_and(|file| file.try_lock().is_ok()) {
            let _ = match kind.is_dir() {
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
        let named = |name: &str| folder.path().join(format!("{}{name}", prefix()));
        let (stale, stale_folder, link) = (named("a.tmp"), named("b.partial"), named("d.tmp"));
        let other = folder.path().join("c.tmp");
        let (foreign, old) = (
            folder.path().join(".medvision-0-e.tmp"),
            folder.path().join(".medvision-0-f.tmp"),
        );
        for path in [&foreign, &old] {
            fs::write(path, "another machine's").unwrap();
        }
        let long_ago = std::time::SystemTime::now() - 2 * FOREIGN_AGE;
        File::options()
            .write(true)
            .open(&old)
            .unwrap()
            .set_modified(long_ago)
            .unwrap();
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
        assert!(!old.exists() && foreign.exists());
        assert!(other.exists() && link.is_symlink());
        assert!(live.path().exists() && live_folder.path().exists());
    }
}
