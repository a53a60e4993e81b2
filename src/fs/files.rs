//! Bounded reads of regular files.
//!
//! Reading a FIFO, a device or a socket could block or never end. Each is refused by its kind, without blocking.

use std::fs::{self, File, FileType, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

/// Maximum size of a configuration file: `config.json` and similar files, a chat template.
pub(crate) const CONFIG_BYTES: u64 = 1 << 20;
/// Maximum size of a `tokenizer.json`; the model's own has 7 MB.
pub(crate) const TOKENIZER_BYTES: u64 = 64 << 20;
/// Maximum size of one image of a data set.
pub(crate) const PICTURE_BYTES: u64 = 64 << 20;

/// Opens a regular file, or a link to one, without blocking.
pub(crate) fn open_regular(path: &Path) -> io::Result<File> {
    // Checked first: a socket cannot be opened, and opening a device can have side effects.
    regular(fs::metadata(path)?.file_type())?;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    // The path may have changed in between.
    regular(file.metadata()?.file_type())?;
    Ok(file)
}

/// Reads a regular file of at most `limit` bytes.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = open_regular(path)?;
    let length = file.metadata()?.len();
    let mut bytes = Vec::new();
    if length <= limit {
        bytes.reserve_exact(length as usize + 1);
        // The file may grow while it is read, and files of /proc report the length 0.
        file.take(limit + 1).read_to_end(&mut bytes)?;
    }
    if length.max(bytes.len() as u64) > limit {
        let reason = format!(
            "{} bytes and more; such a file has at most {limit}",
            length.max(limit + 1)
        );
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
    }
    Ok(bytes)
}

/// As [`read_bounded`], for UTF-8 text.
pub(crate) fn read_text(path: &Path, limit: u64) -> io::Result<String> {
    String::from_utf8(read_bounded(path, limit)?).map_err(|error| {
        let reason = format!("not UTF-8 text: {}", error.utf8_error());
        io::Error::new(io::ErrorKind::InvalidData, reason)
    })
}

/// Who besides its owner can read a file with a secret, and what to do; `None` if nobody. A group of this process's own is not
/// somebody else: containers get secrets that way.
pub(crate) fn readable_by_others(path: &Path) -> Option<String> {
    let file = fs::metadata(path).ok()?;
    // SAFETY: takes no argument and touches no memory of the process.
    let own_group = unsafe { libc::getegid() };
    let mode = file.mode() & 0o777;
    is_exposed(mode, file.gid(), own_group)
        .then(|| format!("other users can read this file (mode {mode:o}); chmod 600 it"))
}

/// Whether others can read a file of the group `group`. The process's own group can be that of a service alone, root's cannot.
fn is_exposed(mode: u32, group: u32, own_group: u32) -> bool {
    let by_group = mode & 0o040 != 0 && (group != own_group || own_group == 0);
    by_group || mode & 0o004 != 0
}

fn regular(kind: FileType) -> io::Result<()> {
    let Some(what) = irregular(kind) else {
        return Ok(());
    };
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("{what}; expected a regular file"),
    ))
}

/// The kind of a file that is not regular; `None` for a regular file.
pub(crate) fn irregular(kind: FileType) -> Option<&'static str> {
    Some(match kind {
        kind if kind.is_file() => return None,
        kind if kind.is_dir() => "a folder",
        kind if kind.is_fifo() => "a FIFO (named pipe)",
        kind if kind.is_socket() => "a socket",
        kind if kind.is_char_device() => "a character device",
        kind if kind.is_block_device() => "a block device",
        _ => "something else",
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use rustix::fs::{CWD, Mode, mkfifoat};

    use super::*;

    /// Reads on a thread of its own, so that blocking fails the test.
    fn refused(path: &Path) -> String {
        let (sender, receiver) = std::sync::mpsc::channel();
        let path = path.to_owned();
        std::thread::spawn(move || sender.send(read_bounded(&path, 100)));
        let outcome = receiver.recv_timeout(std::time::Duration::from_secs(30));
        outcome.expect("it waits").unwrap_err().to_string()
    }

    #[test]
    fn irregular_files_are_refused_without_blocking() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        mkfifoat(CWD, &fifo, Mode::RUSR | Mode::WUSR).unwrap();
        let socket = folder.path().join("socket");
        let _listener = UnixListener::bind(&socket).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&fifo, &link).unwrap();
        for (path, what) in [
            (fifo.as_path(), "FIFO"),
            (&link, "FIFO"),
            (&socket, "socket"),
            (folder.path(), "folder"),
            (Path::new("/dev/zero"), "character device"),
        ] {
            let reason = refused(path);
            assert!(
                reason.contains(what) && reason.contains("regular file"),
                "{reason}"
            );
        }
        let absent = read_bounded(&folder.path().join("absent"), 1).unwrap_err();
        assert_eq!(absent.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn files_that_others_can_read_are_told() {
        for (mode, group, own_group, expected) in [
            (0o600, 7, 7, false),
            (0o644, 7, 7, true),
            (0o604, 7, 7, true),
            (0o640, 7, 8, true),
            // The group of the service, as of a Secret in Kubernetes.
            (0o640, 7, 7, false),
            (0o440, 7, 7, false),
            (0o640, 0, 0, true),
            (0o620, 7, 8, false),
        ] {
            assert_eq!(
                is_exposed(mode, group, own_group),
                expected,
                "{mode:o} {group} {own_group}"
            );
        }
    }

    #[test]
    fn a_file_is_read_up_to_its_limit() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&path, "12345").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(read_bounded(&path, 5).unwrap(), b"12345");
        assert_eq!(read_text(&link, 9).unwrap(), "12345");
        let error = read_bounded(&path, 4).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        assert!(error.to_string().contains("at most 4"), "{error}");
        // Files of /proc report the length 0.
        assert!(read_bounded(Path::new("/proc/self/status"), 10).is_err());
        assert!(
            !read_bounded(Path::new("/proc/self/status"), 1 << 20)
                .unwrap()
                .is_empty()
        );
        fs::write(&path, [0xff]).unwrap();
        assert!(read_text(&path, 9).unwrap_err().to_string().contains("UTF-8"));
    }
}
