//! Writing one safetensors file of any size in little memory: tensors go to their places in any order, the header last.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use safetensors::Dtype;
use serde_json::json;

use crate::fs::{FileDigest, HALF_WRITTEN, digest_of};
use crate::{Error, Result};

/// A tensor that a file will hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorPlan {
    /// Its name.
    pub name: String,
    /// Its number format.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl TensorPlan {
    /// Bytes of its values.
    pub fn bytes(&self) -> u64 {
        let values: usize = self.shape.iter().product();
        (values as u64 * self.dtype.bitsize() as u64).div_ceil(8)
    }
}

/// Longest note; see [`TensorFile::create`].
pub const MAX_NOTE_BYTES: usize = 999;

/// A safetensors file in the making, under a temporary name until it is whole.
///
/// The widest number formats lie first, so that every tensor is aligned, as readers expect.
pub struct TensorFile {
    path: PathBuf,
    temporary: PathBuf,
    file: File,
    tensors: Vec<(TensorPlan, u64)>,
    places: HashMap<String, usize>,
    notes: Vec<String>,
    data_start: u64,
    data_end: u64,
    finished: bool,
}

impl TensorFile {
    /// Begins `path` with room for `tensors`, and for byte tensors of at most [`MAX_NOTE_BYTES`] bytes named `notes`,
    /// whose length is known only at the end. Takes the room on the disk at once.
    pub fn create(path: &Path, mut tensors: Vec<TensorPlan>, notes: Vec<String>) -> Result<Self> {
        tensors.sort_by_key(|tensor| std::cmp::Reverse(tensor.dtype.bitsize()));
        let mut data_end = 0;
        let tensors: Vec<(TensorPlan, u64)> = tensors
            .into_iter()
            .map(|tensor| {
                let start = data_end;
                data_end += tensor.bytes();
                (tensor, start)
            })
            .collect();
        let places = tensors
            .iter()
            .enumerate()
            .map(|(i, (tensor, _))| (tensor.name.clone(), i))
            .collect();
        // Digits never get fewer than with the longest notes.
        let longest: Vec<(&str, usize)> = notes.iter().map(|name| (name.as_str(), MAX_NOTE_BYTES)).collect();
        let data_start = 8 + header(&tensors, data_end, &longest).len().next_multiple_of(8) as u64;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = path.with_file_name(format!("{HALF_WRITTEN}{name}"));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&temporary)
            .map_err(|error| Error::io(&temporary, error))?;
        let this = Self {
            path: path.to_owned(),
            temporary,
            file,
            tensors,
            places,
            notes,
            data_start,
            data_end,
            finished: false,
        };
        reserve(&this.file, data_start + data_end).map_err(|error| this.failed(error))?;
        Ok(this)
    }

    /// Writes `bytes` of the tensor `name`, from its byte `offset` on. Any thread may.
    pub fn write(&self, name: &str, offset: u64, bytes: &[u8]) -> Result<()> {
        let (tensor, start) = &self.tensors[self.places[name]];
        assert!(offset + bytes.len() as u64 <= tensor.bytes(), "within the tensor");
        self.file
            .write_all_at(bytes, self.data_start + start + offset)
            .map_err(|error| self.failed(error))
    }

    /// Writes the notes, in the order of their names, and the header; syncs; gives the file its name.
    pub fn finish(mut self, notes: &[Vec<u8>]) -> Result<FileDigest> {
        assert_eq!(notes.len(), self.notes.len(), "one text a note");
        let named: Vec<(&str, usize)> = self
            .notes
            .iter()
            .zip(notes)
            .map(|(name, text)| (name.as_str(), text.len()))
            .collect();
        let text = header(&self.tensors, self.data_end, &named);
        let room = self.data_start as usize - 8;
        assert!(text.len() <= room, "notes are no longer than planned");
        let mut start = ((room as u64).to_le_bytes()).to_vec();
        start.extend_from_slice(text.as_bytes());
        start.resize(room + 8, b' ');
        let all = notes.concat();
        let end = self.data_start + self.data_end;
        let write = || -> io::Result<()> {
            self.file.write_all_at(&all, end)?;
            self.file.set_len(end + all.len() as u64)?;
            self.file.write_all_at(&start, 0)?;
            self.file.sync_all()
        };
        write().map_err(|error| self.failed(error))?;
        let digest = digest_of(&self.temporary)?;
        crate::fs::rename(&self.temporary, &self.path).map_err(|error| self.failed(error))?;
        self.finished = true;
        Ok(digest)
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::io(&self.path, error)
    }
}

impl Drop for TensorFile {
    fn drop(&mut self) {
        if !self.finished {
            // The next run removes what cannot be removed now.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// The header: tensors at their places, then the notes.
fn header(tensors: &[(TensorPlan, u64)], data_end: u64, notes: &[(&str, usize)]) -> String {
    let mut map = serde_json::Map::new();
    map.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    for (tensor, start) in tensors {
        let value = json!({
            "dtype": tensor.dtype.to_string(), "shape": tensor.shape, "data_offsets": [start, start + tensor.bytes()],
        });
        map.insert(tensor.name.clone(), value);
    }
    let mut start = data_end;
    for (name, length) in notes {
        let end = start + *length as u64;
        let value = json!({"dtype": "U8", "shape": [length], "data_offsets": [start, end]});
        map.insert((*name).to_owned(), value);
        start = end;
    }
    serde_json::Value::Object(map).to_string()
}

/// Allocates `bytes` on the disk, so that a full disk is an error before the work; only sets the length where the file system
/// cannot allocate.
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    loop {
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes) {
            Ok(()) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return file.set_len(bytes),
            Err(error) => return Err(error.into()),
        }
    }
}
