//! One run at a time: exclusive locks on folders and lock files.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::{Error, Result};

/// An exclusive advisory lock (`flock`). The system releases it when the process ends, however it ends.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
}

impl RunLock {
    /// Locks `folder`, which must exist, for `work`, the name of what runs there ("training").
    pub fn on_folder(folder: &Path, work: &'static str) -> Result<Self> {
        let file = File::open(folder).map_err(|error| Error::io(folder, error))?;
        Self::acquire(file, folder, work)
    }

    /// Locks the file `path`, which stands for `guarded`. It is created if missing and never removed: a lock on a removed
    /// file excludes nobody.
    pub fn on_file(path: &Path, guarded: &Path, work: &'static str) -> Result<Self> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .map_err(|error| Error::io(path, error))?;
        Self::acquire(file, guarded, work)
    }

    fn acquire(file: File, guarded: &Path, work: &'static str) -> Result<Self> {
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(Error::Locked {
                path: guarded.to_owned(),
                work,
                holder: holder(&file),
            }),
            Err(TryLockError::Error(error)) => Err(Error::io(guarded, error)),
        }
    }
}

/// The process that holds the lock on `file`, as "process 42, medvision"; `None` where the system does not show it, as for
/// one in another container.
fn holder(file: &File) -> Option<String> {
    let found = file.metadata().ok()?;
    let (major, minor) = (rustix::fs::major(found.dev()), rustix::fs::minor(found.dev()));
    let place = format!("{major:02x}:{minor:02x}:{}", found.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    // 1: FLOCK  ADVISORY  WRITE 4242 08:02:1234 0 EOF
    let process = locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields.get(1) == Some(&"FLOCK") && fields.get(5) == Some(&place.as_str()))
            .then(|| fields[4].parse::<u32>().ok())?
    })?;
    // The program by the name that it was started under.
    let command = fs::read_to_string(format!("/proc/{process}/cmdline")).ok()?;
    let program = Path::new(command.split('\0').next()?).file_name()?;
    Some(format!("process {process}, {}", program.to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_lock_names_the_holder_of_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(".lock");
        let first = [
            RunLock::on_folder(folder.path(), "training").unwrap(),
            RunLock::on_file(&path, folder.path(), "download").unwrap(),
        ];
        let refused = [
            RunLock::on_folder(folder.path(), "training").unwrap_err(),
            RunLock::on_file(&path, folder.path(), "download").unwrap_err(),
        ];
        for (error, work) in refused.iter().zip(["another training", "another download"]) {
            let text = error.to_string();
            let shown = folder.path().to_str().unwrap();
            assert!(text.starts_with(shown) && text.contains(work), "{text}");
            // Sandboxed kernels hide /proc/locks.
            if fs::read_to_string("/proc/locks").is_ok_and(|locks| locks.contains("FLOCK")) {
                assert!(
                    text.contains(&format!("process {}", std::process::id())),
                    "{text}"
                );
            }
        }
        drop(first);
        RunLock::on_folder(folder.path(), "training").unwrap();
    }
}
