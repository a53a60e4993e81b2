//! Writing and renaming files that others read.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use tempfile::NamedTempFile;

use super::temporary::temporary_file;
use crate::{Error, Result};

/// Writes a file so that `path` either holds all of it or is left as it was: temporary name, sync, rename.
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<()> {
    let attempt = || {
        let temporary = write_temporary(path, write)?;
        temporary.as_file().sync_all()?;
        persist(temporary, path)?;
        sync_parent(path)
    };
    attempt().map_err(|source| Error::io(path, source))
}

/// As [`write_atomically`] without the syncs: for many files, which [`sync_file_system`] forces to the disk together.
pub(crate) fn write_unsynced(path: &Path, bytes: &[u8]) -> Result<()> {
    write_temporary(path, |file| file.write_all(bytes))
        .and_then(|temporary| persist(temporary, path))
        .map_err(|source| Error::io(path, source))
}

/// Forces everything that was written to the file system of `folder` to the disk.
pub(crate) fn sync_file_system(folder: &Path) -> Result<()> {
    let attempt = || Ok(rustix::fs::syncfs(File::open(folder)?)?);
    attempt().map_err(|source: io::Error| Error::io(folder, source))
}

fn write_temporary(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<NamedTempFile> {
    let temporary = temporary_file(path)?;
    let mut writer = BufWriter::new(temporary.as_file().try_clone()?);
    write(&mut writer)?;
    writer.flush()?;
    Ok(temporary)
}

/// Renames a temporary file to `path`.
pub(crate) fn persist(temporary: NamedTempFile, path: &Path) -> io::Result<()> {
    #[cfg(test)]
    failpoint::pass();
    temporary.persist(path)?;
    Ok(())
}

/// Renames a file or folder that others read.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(test)]
    failpoint::pass();
    fs::rename(from, to)
}

/// The folder of `path`; `.` for a bare name.
pub(crate) fn parent_folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Forces the names in the folder of `path` to the disk.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(parent_folder(path))?.sync_all()
}

/// Removes a file; one that is missing is no error.
pub(crate) fn remove_if_present(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Ends the process before a rename, as a kill does, in the children of tests.
#[cfg(test)]
pub(crate) mod failpoint {
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Number of the rename before which the process ends, from 1.
    pub(crate) const VARIABLE: &str = "MEDVISION_TEST_KILL_AT_RENAME";
    static PASSED: AtomicU64 = AtomicU64::new(0);

    /// Renames so far in this process.
    pub(crate) fn passed() -> u64 {
        PASSED.load(Ordering::SeqCst)
    }

    pub(crate) fn pass() {
        let number = PASSED.fetch_add(1, Ordering::SeqCst) + 1;
        let wanted = std::env::var(VARIABLE).ok().and_then(|text| text.parse().ok());
        if wanted == Some(number) {
            // SAFETY: ends the process at once, nothing else runs.
            unsafe { libc::_exit(137) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_or_device_is_never_replaced() {
        let error = write_atomically(Path::new("/dev/null"), |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains("not a regular file"), "{error}");
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("record.json");
        write_atomically(&path, |file| file.write_all(b"old")).unwrap();
        let broken = write_atomically(&path, |file| {
            file.write_all(b"half")?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        });
        assert!(broken.unwrap_err().to_string().contains("record.json"));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_bare_name_is_in_the_current_folder() {
        assert_eq!(parent_folder(Path::new("a.json")), Path::new("."));
        assert_eq!(parent_folder(Path::new("b/a.json")), Path::new("b"));
        assert_eq!(parent_folder(Path::new("/a.json")), Path::new("/"));
    }
}
