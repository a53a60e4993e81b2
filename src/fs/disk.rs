//! Space on a disk.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Bytes that this user may still write to the disk of `folder`.
pub fn disk_free(folder: &Path) -> io::Result<u64> {
    let path = CString::new(folder.as_os_str().as_bytes())?;
    let mut figures = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
    // SAFETY: the path ends with a zero byte and the struct is large enough for what the call writes.
    if unsafe { libc::statvfs(path.as_ptr(), figures.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, and all zeroes is a valid value besides.
    let figures = unsafe { figures.assume_init() };
    Ok(figures.f_bavail.saturating_mul(figures.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_space_is_told_and_a_missing_folder_is_not() {
        assert!(disk_free(Path::new("/")).unwrap() > 0);
        assert!(disk_free(Path::new("/does/not/exist")).is_err());
    }
}
