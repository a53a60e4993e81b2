//! Copies that are read again, and sums that can be stopped.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{Advice, fadvise};
use sha2::{Digest, Sha256};

use crate::fs::{FileDigest, hex, open_regular};
use crate::quantize::Watch;
use crate::{Error, Result};

/// Bytes between two looks at the watch.
pub(super) const CHUNK: usize = 1 << 20;

/// Opens a regular file that is no link, without blocking.
pub(super) fn open_plain(path: &Path) -> io::Result<File> {
    let found = path.symlink_metadata()?;
    if found.is_symlink() {
        return Err(io::Error::other("a link"));
    }
    // Refuses what is no regular file before it is opened.
    drop(open_regular(path)?);
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("not a regular file")),
    }
}

/// Size and sum of `file`; `path` is for errors.
pub(super) fn hash(file: &File, path: &Path, watch: Watch<'_>) -> Result<FileDigest> {
    each_chunk(file, path, watch, |_| Ok(()))
}

/// Writes `from` to the new file `to`, forces it to the disk, and compares what is there with what was read.
pub(super) fn copy(from: &File, from_path: &Path, to: &Path, watch: Watch<'_>) -> Result<FileDigest> {
    let io = |error| Error::io(to, error);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(to)
        .map_err(io)?;
    let read = each_chunk(from, from_path, watch, |chunk| file.write_all(chunk).map_err(io))?;
    check_written(&file, to, &read, watch)?;
    Ok(read)
}

/// Forces the new file to the disk and compares what is there with `expected`.
pub(super) fn check_written(file: &File, path: &Path, expected: &FileDigest, watch: Watch<'_>) -> Result<()> {
    file.sync_all().map_err(|error| Error::io(path, error))?;
    // Read from the disk, not from memory, where the file system can.
    let _ = fadvise(file, 0, None, Advice::DontNeed);
    let again = File::open(path).map_err(|error| Error::io(path, error))?;
    if hash(&again, path, watch)? != *expected {
        return Err(Error::invalid_file(
            path,
            "differs from what was written: the disk is damaged",
        ));
    }
    Ok(())
}

/// Reads all of `file`, which `take` gets in chunks.
pub(super) fn each_chunk(
    mut file: impl Read,
    path: &Path,
    watch: Watch<'_>,
    mut take: impl FnMut(&[u8]) -> Result<()>,
) -> Result<FileDigest> {
    let (mut hasher, mut buffer, mut bytes) = (Sha256::new(), vec![0; CHUNK], 0);
    loop {
        let count = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::io(path, error)),
        };
        hasher.update(&buffer[..count]);
        take(&buffer[..count])?;
        bytes += count as u64;
        watch.done(count as u64)?;
    }
    Ok(FileDigest {
        bytes,
        sha256: hex(&hasher.finalize()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::digest_of;

    #[test]
    fn a_copy_has_the_sum_of_its_source_and_replaces_nothing() {
        let home = tempfile::tempdir().unwrap();
        let (from, to) = (home.path().join("from"), home.path().join("to"));
        std::fs::write(&from, vec![7; CHUNK + 5]).unwrap();
        let file = open_plain(&from).unwrap();
        let digest = copy(&file, &from, &to, Watch::none()).unwrap();
        assert!(digest == digest_of(&from).unwrap() && digest == digest_of(&to).unwrap());
        assert!(copy(&file, &from, &to, Watch::none()).is_err());
        let other = FileDigest { bytes: 1, ..digest };
        let error = check_written(&File::open(&to).unwrap(), &to, &other, Watch::none()).unwrap_err();
        assert!(error.to_string().contains("damaged"), "{error}");
    }

    #[test]
    fn links_are_not_opened() {
        let home = tempfile::tempdir().unwrap();
        let link = home.path().join("link");
        std::os::unix::fs::symlink("/etc/hostname", &link).unwrap();
        assert!(open_plain(&link).unwrap_err().to_string().contains("link"));
        assert!(
            open_plain(home.path())
                .unwrap_err()
                .to_string()
                .contains("folder")
        );
    }
}
