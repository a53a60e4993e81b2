//! Checking a model folder, local or remote, without reading its weights: file names, small files, safetensors headers.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::model_folder::{JsonFile, missing_config};
use super::{Header, INDEX, LENGTH_BYTES, MAX_INDEX_BYTES, MISSING_SHARD, SINGLE, StoredTensor, index_files};
use crate::fs::{CONFIG_BYTES, json, open_regular};
use crate::{Error, Result};

/// Bytes of a weight file that are read first; they usually hold its header.
const FIRST_BYTES: u64 = 32 << 10;

/// The files of a model folder, local or remote.
pub trait FolderFiles: Sync {
    /// Name of a file in errors.
    fn path(&self, name: &str) -> PathBuf;
    /// Size of a file; `None` if there is no such file.
    fn size(&self, name: &str) -> Result<Option<u64>>;
    /// Reads the bytes `range` of a file, which must have them.
    fn read(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>>;
    /// Number of files to read concurrently.
    fn jobs(&self) -> usize;
}

/// A file that is missing or damaged.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct FileFault {
    /// Its name.
    pub file: String,
    /// What is wrong with it.
    pub reason: String,
}

/// The headers of a folder's weights.
#[derive(Debug, Default)]
pub struct Headers {
    /// The files with weights.
    pub files: Vec<String>,
    /// All their tensors.
    pub stored: Vec<StoredTensor>,
    /// Files whose header could not be read.
    pub faults: Vec<FileFault>,
}

/// Reads the small file `name`; `None` if there is none.
pub fn read_small(files: &dyn FolderFiles, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
    match files.size(name)? {
        None => Ok(None),
        Some(size) if size > limit => Err(Error::invalid_file(
            files.path(name),
            format!("{size} bytes; such a file has at most {limit}"),
        )),
        Some(size) => files.read(name, 0..size).map(Some),
    }
}

/// Reads and parses `config.json`.
pub fn read_config(files: &dyn FolderFiles) -> Result<JsonFile> {
    let path = files.path("config.json");
    let keys = match read_small(files, "config.json", CONFIG_BYTES)? {
        Some(text) => json::parse_object(&path, &text)?,
        None => return Err(missing_config(&path)),
    };
    Ok(JsonFile { path, keys })
}

/// Reads the headers of the weights. A damaged file is a fault; a failed transfer is an error.
pub fn read_headers(files: &dyn FolderFiles) -> Result<Headers> {
    let mut headers = Headers::default();
    if files.size(SINGLE)?.is_some() {
        headers.files.push(SINGLE.to_owned());
    } else if let Some(index) = fault(
        INDEX,
        read_small(files, INDEX, MAX_INDEX_BYTES),
        &mut headers.faults,
    )? {
        let Some(text) = index else {
            headers.faults.push(FileFault {
                file: SINGLE.to_owned(),
                reason: format!("neither it nor {INDEX} exists"),
            });
            return Ok(headers);
        };
        let listed = index_files(&files.path(INDEX), &text);
        headers.files = fault(INDEX, listed, &mut headers.faults)?.unwrap_or_default();
    }
    let share = headers.files.len().div_ceil(files.jobs().max(1)).max(1);
    let read = std::thread::scope(|scope| {
        let tasks: Vec<_> = headers
            .files
            .chunks(share)
            .map(|names| {
                let each = move |name: &String| (name.clone(), read_header(files, name));
                scope.spawn(move || names.iter().map(each).collect::<Vec<_>>())
            })
            .collect();
        let panicked = |_| Vec::new();
        tasks
            .into_iter()
            .flat_map(|task| task.join().unwrap_or_else(panicked))
            .collect::<Vec<_>>()
    });
    for (name, stored) in read {
        headers
            .stored
            .extend(fault(&name, stored, &mut headers.faults)?.unwrap_or_default());
    }
    Ok(headers)
}

/// Turns errors about a file into faults of it.
fn fault<T>(name: &str, outcome: Result<T>, faults: &mut Vec<FileFault>) -> Result<Option<T>> {
    let reason = match outcome {
        Ok(value) => return Ok(Some(value)),
        Err(Error::NotFound { reason, .. } | Error::InvalidFile { reason, .. }) => reason,
        Err(Error::Io { source, .. }) => source.to_string(),
        Err(error) => return Err(error),
    };
    faults.push(FileFault {
        file: name.to_owned(),
        reason,
    });
    Ok(None)
}

fn read_header(files: &dyn FolderFiles, name: &str) -> Result<Vec<StoredTensor>> {
    let path = files.path(name);
    let size = files
        .size(name)?
        .ok_or_else(|| Error::not_found(&path, MISSING_SHARD))?;
    let mut beginning = files.read(name, 0..size.min(FIRST_BYTES))?;
    let end = LENGTH_BYTES + Header::size(&path, &beginning, size)?;
    if beginning.len() < end {
        let rest = files.read(name, beginning.len() as u64..end as u64)?;
        beginning.extend(rest);
    }
    let text = beginning.get(LENGTH_BYTES..end).unwrap_or_default();
    Ok(Header::parse(&path, text, size)?.stored(&path).collect())
}

/// A folder on this machine.
#[derive(Debug)]
pub struct LocalFolder(pub PathBuf);

impl FolderFiles for LocalFolder {
    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn size(&self, name: &str) -> Result<Option<u64>> {
        let path = self.path(name);
        match fs::metadata(&path) {
            Ok(found) => Ok(Some(found.len())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(path, error)),
        }
    }

    fn read(&self, name: &str, range: Range<u64>) -> Result<Vec<u8>> {
        let path = self.path(name);
        piece(&path, range).map_err(|error| Error::io(path, error))
    }

    fn jobs(&self) -> usize {
        1
    }
}

fn piece(path: &Path, range: Range<u64>) -> std::io::Result<Vec<u8>> {
    let mut file = open_regular(path)?;
    file.seek(SeekFrom::Start(range.start))?;
    let mut bytes = vec![0; (range.end - range.start) as usize];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}
