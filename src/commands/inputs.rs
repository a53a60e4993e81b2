//! From `FILE|DIR|-` on the command line to pages' bytes.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Extensions, in lower case, of the files taken from a folder.
const EXTENSIONS: [&str; 8] = ["png", "jpg", "jpeg", "webp", "tif", "tiff", "bmp", "gif"];

/// Where a page comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// A file.
    File(PathBuf),
    /// Standard input.
    Stdin,
}

impl From<&Path> for Source {
    /// `-` is standard input.
    fn from(path: &Path) -> Self {
        if path.as_os_str() == "-" {
            Self::Stdin
        } else {
            Self::File(path.to_owned())
        }
    }
}

impl Source {
    /// What the user calls it.
    pub(super) fn name(&self) -> String {
        match self {
            Self::File(path) => path.to_string_lossy().into_owned(),
            Self::Stdin => "-".to_owned(),
        }
    }

    /// Its bytes; more than `limit` bytes are an error before they are read.
    pub(super) fn read(&self, limit: u64) -> Result<Vec<u8>> {
        let (path, bytes) = match self {
            Self::File(path) => (
                path.as_path(),
                File::open(path).and_then(|file| read_up_to(file, limit)),
            ),
            Self::Stdin => (Path::new("standard input"), read_up_to(io::stdin().lock(), limit)),
        };
        let bytes = bytes.map_err(|error| Error::io(path, error))?;
        if bytes.len() as u64 > limit {
            let reason = format!(
                "larger than {} MiB; --max-file-size raises the limit",
                limit >> 20
            );
            return Err(Error::io(path, io::Error::other(reason)));
        }
        Ok(bytes)
    }
}

/// At most one byte more than `limit`, however long the input is.
fn read_up_to(input: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The pages that `inputs` name, in order; a folder stands for its pictures by name.
///
/// A folder that cannot be read or holds no picture is an error in its place, so that the rest can go on.
pub(super) fn collect(inputs: &[PathBuf], recursive: bool) -> Vec<Result<Source>> {
    let mut sources = Vec::new();
    for input in inputs {
        if input.is_dir() {
            sources.extend(pictures(input, recursive));
        } else {
            sources.push(Ok(Source::from(input.as_path())));
        }
    }
    sources
}

fn pictures(folder: &Path, recursive: bool) -> Vec<Result<Source>> {
    let mut found = Vec::new();
    if let Err(error) = add_pictures(folder, recursive, &mut found) {
        return vec![Err(error)];
    }
    if found.is_empty() {
        let below = if recursive {
            ""
        } else {
            "; --recursive looks into the folders below"
        };
        let reason = format!("no pictures in this folder ({}){below}", EXTENSIONS.join(", "));
        return vec![Err(Error::io(folder, io::Error::other(reason)))];
    }
    found.sort();
    found.into_iter().map(|path| Ok(Source::File(path))).collect()
}

/// Hidden files and links to folders are passed over.
fn add_pictures(folder: &Path, recursive: bool, found: &mut Vec<PathBuf>) -> Result<()> {
    let in_folder = |error| Error::io(folder, error);
    for entry in fs::read_dir(folder).map_err(in_folder)? {
        let entry = entry.map_err(in_folder)?;
        let path = entry.path();
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if entry.file_type().map_err(in_folder)?.is_dir() {
            if recursive {
                add_pictures(&path, recursive, found)?;
            }
        } else if is_picture(&path) && !path.is_dir() {
            found.push(path);
        }
    }
    Ok(())
}

fn is_picture(path: &Path) -> bool {
    path.extension()
        .and_then(|extension| extension.to_str())
        .is_some_and(|extension| EXTENSIONS.contains(&extension.to_ascii_lowercase().as_str()))
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
    fn a_folder_stands_for_its_pictures_in_order() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("c")).unwrap();
        for name in [
            "b.PNG",
            "a.jpeg",
            "notes.txt",
            ".hidden.png",
            "c/d.tif",
            "noextension",
        ] {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        assert_eq!(names(folder.path(), false), ["a.jpeg", "b.PNG"]);
        assert_eq!(names(folder.path(), true), ["a.jpeg", "b.PNG", "c/d.tif"]);
    }

    #[test]
    fn a_folder_without_pictures_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let sources = collect(&[folder.path().to_owned(), PathBuf::from("-")], false);
        let error = sources[0].as_ref().unwrap_err().to_string();
        assert!(
            error.contains("no pictures") && error.contains(folder.path().to_str().unwrap()),
            "{error}"
        );
        assert_eq!(sources[1].as_ref().unwrap(), &Source::Stdin);
    }

    #[test]
    fn a_file_over_the_limit_is_refused_however_long() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), [0; 1025]).unwrap();
        let source = Source::File(file.path().to_owned());
        assert_eq!(source.read(1025).unwrap().len(), 1025);
        let endless = Source::File(PathBuf::from("/dev/zero"));
        for source in [source, endless] {
            let error = source.read(1024).unwrap_err().to_string();
            assert!(error.contains("--max-file-size"), "{error}");
        }
    }
}
