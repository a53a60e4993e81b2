//! Image files that rows refer to by path: below a folder, or in its zip archives.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

use zip::ZipArchive;
use zip::result::ZipError;

use crate::fs::{open_regular, read_bounded};
use crate::hub::hub_error;
use crate::{Error, Result};

/// Maximum size of an image file.
pub(super) const MAX_IMAGE_BYTES: u64 = 64 << 20;
const MAX_DEPTH: usize = 6;
const MAX_FILES: usize = 4_000_000;

/// Source of a zip archive.
pub(super) trait ReadSeek: Read + Seek + Send {}
impl<T: Read + Seek + Send> ReadSeek for T {}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Location {
    File(usize),
    Archive { archive: usize, entry: usize },
}

/// Finds images by path, or by file name if the path does not exist, since archives may be unpacked anywhere.
pub(super) struct ImageFiles {
    root: PathBuf,
    files: Vec<PathBuf>,
    archives: Vec<ZipArchive<Box<dyn ReadSeek>>>,
    by_path: HashMap<String, Location>,
    by_name: HashMap<String, Location>,
}

impl ImageFiles {
    /// Indexes everything below `root`.
    pub(super) fn below(root: &Path) -> Result<Self> {
        let mut images = Self::empty(root);
        images.walk(root, 0)?;
        Ok(images)
    }

    /// Creates an empty index.
    pub(super) fn empty(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
            files: Vec::new(),
            archives: Vec::new(),
            by_path: HashMap::new(),
            by_name: HashMap::new(),
        }
    }

    fn walk(&mut self, folder: &Path, depth: usize) -> Result<()> {
        let entries = fs::read_dir(folder).map_err(|error| Error::io(folder, error))?;
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            if path.is_dir() {
                if depth < MAX_DEPTH {
                    self.walk(&path, depth + 1)?;
                }
            } else if path.extension().is_some_and(|suffix| suffix == "zip") {
                let file = open_regular(&path).map_err(|error| Error::io(&path, error))?;
                self.add_archive(&path, Box::new(file))?;
            } else if let Some(name) = path.strip_prefix(&self.root).ok().and_then(Path::to_str) {
                let name = name.to_owned();
                self.files.push(path);
                self.add(&name, Location::File(self.files.len() - 1));
            }
            if self.by_path.len() > MAX_FILES {
                return Err(Error::unsuitable(
                    &self.root,
                    "contains too many files; give the data set's own folder",
                ));
            }
        }
        Ok(())
    }

    /// Adds the entries of a zip archive; `name` is its name in errors.
    pub(super) fn add_archive(&mut self, name: &Path, reader: Box<dyn ReadSeek>) -> Result<()> {
        let archive = ZipArchive::new(reader).map_err(|error| match error {
            ZipError::Io(error) if !is_damage(&error) => hub_error(name, error),
            error => Error::invalid_file(name, format!("not a zip archive, or damaged ({error})")),
        })?;
        let entries: Vec<Option<String>> = archive
            .file_names()
            .map(|name| name.ok().map(|name| name.into_owned()))
            .collect();
        self.archives.push(archive);
        let archive = self.archives.len() - 1;
        for (entry, name) in entries.into_iter().enumerate() {
            if let Some(name) = name {
                self.add(&name, Location::Archive { archive, entry });
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &str, location: Location) {
        self.by_path.entry(path.to_owned()).or_insert(location);
        self.by_name.entry(base_name(path).to_owned()).or_insert(location);
    }

    fn location(&self, path: &str) -> Option<Location> {
        let path = path.trim_start_matches("./");
        let found = self
            .by_path
            .get(path)
            .or_else(|| self.by_name.get(base_name(path)));
        found.copied()
    }

    /// Returns the existing ones of `paths`, in storage order, so that an archive is read sequentially.
    pub(super) fn in_order<'a>(&self, paths: &'a [String]) -> Vec<&'a String> {
        let mut found: Vec<(Location, &String)> = paths
            .iter()
            .filter_map(|path| Some((self.location(path)?, path)))
            .collect();
        found.sort();
        found.into_iter().map(|(_, path)| path).collect()
    }

    /// Reads the image at `path`; `None` if it does not exist or is too large.
    pub(super) fn read(&mut self, path: &str) -> Result<Option<Vec<u8>>> {
        let Some(location) = self.location(path) else {
            return Ok(None);
        };
        let fault = |error| hub_error(&self.root.join(path), error);
        let bytes = match location {
            Location::File(index) => match self.files.get(index) {
                Some(file) => match read_bounded(file, MAX_IMAGE_BYTES) {
                    Err(error) if error.kind() == std::io::ErrorKind::FileTooLarge => None,
                    outcome => Some(outcome.map_err(fault)?),
                },
                None => None,
            },
            Location::Archive { archive, entry } => match self.archives.get_mut(archive) {
                Some(archive) => {
                    let entry = archive.by_index(entry).map_err(std::io::Error::from);
                    match entry.and_then(bounded) {
                        // A damaged entry counts as an image that cannot be decoded.
                        Err(error) if is_damage(&error) => Some(Vec::new()),
                        outcome => outcome.map_err(fault)?,
                    }
                }
                None => None,
            },
        };
        Ok(bytes)
    }
}

/// Returns the last component of a path.
pub(super) fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn is_damage(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{InvalidData, InvalidInput, Other, UnexpectedEof};
    matches!(error.kind(), InvalidData | InvalidInput | Other | UnexpectedEof)
}

fn bounded(reader: impl Read) -> std::io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    reader.take(MAX_IMAGE_BYTES + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= MAX_IMAGE_BYTES).then_some(bytes))
}
