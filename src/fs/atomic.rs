//! Writing and renaming files that others read.

use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::{Error, Result};

/// Writes a file so that `path` either holds all of it or is left as it was: temporary name, sync, rename.
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let attempt = || {
        if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            return Err(io::Error::other("not a regular file; nothing was written"));
        }
        let temporary = tempfile::Builder::new()
            .prefix(".medvision-")
            .suffix(".tmp")
            // As any new file: the umask takes its share.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder)?;
        let mut writer = BufWriter::new(temporary.as_file().try_clone()?);
        write(&mut writer)?;
        writer.flush()?;
        temporary.as_file().sync_all()?;
        #[cfg(test)]
        failpoint::pass();
        temporary.persist(path)?;
        File::open(folder)?.sync_all()
    };
    attempt().map_err(|source| Error::io(path, source))
}

/// Renames a file or folder that others read.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(test)]
    failpoint::pass();
    fs::rename(from, to)
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
}
