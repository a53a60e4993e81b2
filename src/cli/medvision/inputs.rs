//! Resolves the inputs of `extract` (files, folders, standard input) and reads them.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::console::{self, Level};
use crate::documents::{Kind, START_BYTES};
use crate::fs::{irregular, open_regular};
use crate::{Error, Result};

/// Lower-case extensions of documents. In a folder, such a file is reported if it is none; others are skipped.
const EXTENSIONS: [&str; 14] = [
    "pdf", "dcm", "dicom", "png", "jpg", "jpeg", "jpe", "jfif", "webp", "tif", "tiff", "bmp", "dib", "gif",
];

/// Source of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// A file.
    File(PathBuf),
    /// Standard input.
    Stdin,
}

impl From<&Path> for Source {
    /// Converts a path of the command line; `-` is standard input.
    fn from(path: &Path) -> Self {
        if path.as_os_str() == "-" {
            Self::Stdin
        } else {
            Self::File(path.to_owned())
        }
    }
}

impl Source {
    /// Its name on the command line.
    pub(super) fn name(&self) -> String {
        match self {
            Self::File(path) => path.to_string_lossy().into_owned(),
            Self::Stdin => "-".to_owned(),
        }
    }

    /// Reads all bytes.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Unsuitable`] for more than `limit` bytes, of which no more are read.
    pub(super) fn read(&self, limit: u64) -> Result<Vec<u8>> {
        let (path, bytes) = match self {
            Self::File(path) => (
                path.as_path(),
                open_file(path).and_then(|file| read_up_to(file, limit)),
            ),
            Self::Stdin => (Path::new("standard input"), read_up_to(io::stdin().lock(), limit)),
        };
        let bytes = bytes.map_err(|error| Error::io(path, error))?;
        if bytes.len() as u64 > limit {
            let reason = format!(
                "larger than {} MiB; raise the limit with --max-file-size",
                limit >> 20
            );
            return Err(Error::unsuitable(path, reason));
        }
        Ok(bytes)
    }
}

/// Opens a regular file. Anything else is an error at once: opening or reading it could block forever.
fn open_file(path: &Path) -> io::Result<File> {
    open_regular(path).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidInput => io::Error::new(
            error.kind(),
            format!("{error} (use - to read from standard input)"),
        ),
        _ => error,
    })
}

/// Reads at most one byte more than `limit`.
fn read_up_to(input: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Resolves `inputs` in order; a folder is replaced by its documents, sorted by name.
///
/// A folder that cannot be read or has no documents is an error at its position, so that the others are processed.
pub(super) fn collect(inputs: &[PathBuf], recursive: bool) -> Vec<Result<Source>> {
    let mut sources = Vec::new();
    for input in inputs {
        if input.is_dir() {
            sources.extend(documents_in(input, recursive));
        } else {
            sources.push(Ok(Source::from(input.as_path())));
        }
    }
    sources
}

fn documents_in(folder: &Path, recursive: bool) -> Vec<Result<Source>> {
    let mut found = Vec::new();
    if let Err(error) = add_documents(folder, recursive, &mut found) {
        return vec![Err(error)];
    }
    if found.is_empty() {
        let below = if recursive {
            ""
        } else {
            "; use --recursive to search subfolders"
        };
        let reason =
            format!("no documents in this folder (PDF, DICOM, PNG, JPEG, WebP, TIFF, BMP, GIF){below}");
        return vec![Err(Error::unsuitable(folder, reason))];
    }
    found.sort();
    found.into_iter().map(|path| Ok(Source::File(path))).collect()
}

/// Adds the documents of `folder`: files that start like one or have the extension of one. Hidden files and links to folders
/// are skipped; sockets, devices and the like are skipped with a warning.
fn add_documents(folder: &Path, recursive: bool, found: &mut Vec<PathBuf>) -> Result<()> {
    let in_folder = |error| Error::io(folder, error);
    for entry in fs::read_dir(folder).map_err(in_folder)? {
        let entry = entry.map_err(in_folder)?;
        let path = entry.path();
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if entry.file_type().map_err(in_folder)?.is_dir() {
            if recursive {
                add_documents(&path, recursive, found)?;
            }
            continue;
        }
        // A broken link.
        let Ok(metadata) = path.metadata() else { continue };
        match irregular(metadata.file_type()) {
            Some(_) if metadata.is_dir() => {}
            Some(what) => console::say(Level::WARN, &format!("{}: skipped: {what}", path.display())),
            // Unreadable files are kept, so that they are reported.
            None if has_document_extension(&path) || starts_like_document(&path).unwrap_or(true) => {
                found.push(path)
            }
            None => {}
        }
    }
    Ok(())
}

fn has_document_extension(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| EXTENSIONS.contains(&extension.to_ascii_lowercase().as_str()))
}

fn starts_like_document(path: &Path) -> io::Result<bool> {
    let mut start = Vec::new();
    open_file(path)?
        .take(START_BYTES as u64)
        .read_to_end(&mut start)?;
    Ok(Kind::of(&start).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path, recursive: bool) -> Vec<String> {
        let sources = collect(&[folder.to_owned()], recursive);
        let name = |source: Result<Source>| match source.unwrap() {
            Source::File(path) => path.strip_prefix(folder).unwrap().to_string_lossy().into_owned(),
            Source::Stdin => "-".to_owned(),
        };
        sources.into_iter().map(name).collect()
    }

    #[test]
    fn a_folder_is_replaced_by_its_documents_in_order() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("c")).unwrap();
        const PNG: &[u8] = b"\x89PNG\r\n\x1a\n";
        const JPEG: &[u8] = b"\xff\xd8\xff\xe0";
        for (name, start) in [
            ("b.PNG", PNG),
            ("a.jfif", JPEG),
            ("scan 1", JPEG),
            ("letter", b"%PDF-1.7"),
            ("notes.txt", b"To whom it may concern"),
            ("empty.JFIF", b""),
            (".hidden.png", PNG),
            ("c/d.tif", b"II*\0"),
        ] {
            fs::write(folder.path().join(name), start).unwrap();
        }
        assert_eq!(
            names(folder.path(), false),
            ["a.jfif", "b.PNG", "empty.JFIF", "letter", "scan 1"]
        );
        assert_eq!(
            names(folder.path(), true),
            ["a.jfif", "b.PNG", "c/d.tif", "empty.JFIF", "letter", "scan 1"]
        );
    }

    #[test]
    fn irregular_files_are_rejected_without_blocking() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("page.png");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("socket.png")).unwrap();
        for (path, what) in [
            (pipe, "a FIFO"),
            (PathBuf::from("/dev/zero"), "a character device"),
            (folder.path().to_owned(), "a folder"),
        ] {
            let error = Source::File(path).read(1024).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
        fs::write(folder.path().join("a"), b"GIF89a").unwrap();
        assert_eq!(names(folder.path(), false), ["a"]);
    }

    #[test]
    fn a_folder_without_documents_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let sources = collect(&[folder.path().to_owned(), PathBuf::from("-")], false);
        let error = sources[0].as_ref().unwrap_err().to_string();
        assert!(
            error.contains("no documents") && error.contains(folder.path().to_str().unwrap()),
            "{error}"
        );
        assert_eq!(sources[1].as_ref().unwrap(), &Source::Stdin);
    }

    #[test]
    fn a_file_over_the_limit_is_rejected() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), [0; 1025]).unwrap();
        let source = Source::File(file.path().to_owned());
        assert_eq!(source.read(1025).unwrap().len(), 1025);
        let error = source.read(1024).unwrap_err().to_string();
        assert!(error.contains("--max-file-size"), "{error}");
    }
}
