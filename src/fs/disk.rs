//! Free disk space.

use std::io;
use std::path::Path;

/// Space that stays free beside what is written.
pub(crate) const SPARE_BYTES: u64 = 64 << 20;

/// Bytes that this user may still write to the file system of `folder`.
pub fn disk_free(folder: &Path) -> io::Result<u64> {
    let figures = rustix::fs::statvfs(folder)?;
    Ok(figures.f_bavail.saturating_mul(figures.f_frsize))
}

/// A file system with too little free space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shortage {
    /// Bytes to write and [`SPARE_BYTES`].
    pub(crate) needed: u64,
    /// Bytes free.
    pub(crate) free: u64,
}

/// Whether `folder` lacks space for `bytes` more.
pub(crate) fn shortage(folder: &Path, bytes: u64) -> io::Result<Option<Shortage>> {
    let (needed, free) = (bytes.saturating_add(SPARE_BYTES), disk_free(folder)?);
    Ok((free < needed).then_some(Shortage { needed, free }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_space_is_read_and_a_missing_folder_is_an_error() {
        assert!(disk_free(Path::new("/")).unwrap() > 0);
        assert!(disk_free(Path::new("/does/not/exist")).is_err());
        let found = shortage(Path::new("/"), u64::MAX).unwrap().unwrap();
        assert!(found.needed == u64::MAX && found.free > 0);
    }
}
