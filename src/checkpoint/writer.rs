//! Writing one safetensors file of any size in little memory: tensors are written in any order, the header last.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use safetensors::Dtype;
use serde_json::json;
use tch::{Device, Tensor};
use tempfile::NamedTempFile;

use super::header::stored_dtype;
use crate::fs::{FileDigest, digest_of_file, persist, temporary_file};
use crate::{Error, Result};

/// A tensor that a file will hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorPlan {
    /// Its name.
    pub name: String,
    /// Its dtype.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl TensorPlan {
    /// The plan to store `tensor` as it is.
    pub fn of(name: &str, tensor: &Tensor) -> Result<Self> {
        let kind = tensor.f_kind()?;
        let dtype = stored_dtype(kind)
            .ok_or_else(|| Error::Internal(format!("tensor \"{name}\" of {kind:?} cannot be written")))?;
        Ok(Self {
            name: name.to_owned(),
            dtype,
            shape: tensor.size().iter().map(|&length| length as usize).collect(),
        })
    }

    /// Bytes of its values.
    pub fn bytes(&self) -> u64 {
        let values: usize = self.shape.iter().product();
        (values as u64 * self.dtype.bitsize() as u64).div_ceil(8)
    }
}

/// Writes a file with `tensors`, from any device; `path` is left as it was if that fails.
pub fn write_tensors(path: &Path, tensors: &[(String, Tensor)]) -> Result<FileDigest> {
    let plans = tensors.iter().map(|(name, tensor)| TensorPlan::of(name, tensor));
    let file = TensorFile::create(path, plans.collect::<Result<_>>()?, Vec::new())?;
    for (name, tensor) in tensors {
        file.write(name, 0, &tensor_bytes(tensor)?)?;
    }
    file.finish(&[])
}

/// The values of a tensor on any device as bytes, in row-major order.
pub fn tensor_bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    let tensor = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous()?;
    let mut bytes = vec![0; tensor.numel() * tensor.f_kind()?.elt_size_in_bytes()];
    tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
    Ok(bytes)
}

/// Maximum length of a note; see [`TensorFile::create`].
pub const MAX_NOTE_BYTES: usize = 999;

/// A safetensors file that is being written, under a temporary name until it is complete.
///
/// Tensors are stored in descending order of their dtype's width, so that each is aligned, as readers expect.
pub struct TensorFile {
    path: PathBuf,
    temporary: NamedTempFile,
    tensors: Vec<(TensorPlan, u64)>,
    places: HashMap<String, usize>,
    notes: Vec<String>,
    data_start: u64,
    data_end: u64,
}

impl TensorFile {
    /// Starts the file `path` with space for `tensors`, and for byte tensors of at most [`MAX_NOTE_BYTES`] bytes named `notes`,
    /// whose length is known only at the end. Allocates the space on the disk at once.
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
        // The header is longest with the longest notes.
        let longest: Vec<(&str, usize)> = notes.iter().map(|name| (name.as_str(), MAX_NOTE_BYTES)).collect();
        let data_start = 8 + header(&tensors, data_end, &longest).len().next_multiple_of(8) as u64;
        let temporary = temporary_file(path).map_err(|error| Error::io(path, error))?;
        let this = Self {
            path: path.to_owned(),
            temporary,
            tensors,
            places,
            notes,
            data_start,
            data_end,
        };
        reserve(this.file(), data_start + data_end).map_err(|error| this.failed(error))?;
        Ok(this)
    }

    fn file(&self) -> &File {
        self.temporary.as_file()
    }

    /// Writes `bytes` of the tensor `name` at its byte `offset`. Can be called from any thread.
    pub fn write(&self, name: &str, offset: u64, bytes: &[u8]) -> Result<()> {
        let (tensor, start) = &self.tensors[self.places[name]];
        assert!(offset + bytes.len() as u64 <= tensor.bytes(), "within the tensor");
        self.file()
            .write_all_at(bytes, self.data_start + start + offset)
            .map_err(|error| self.failed(error))
    }

    /// Writes the notes, in the order of their names, and the header; syncs the file and renames it.
    pub fn finish(self, notes: &[Vec<u8>]) -> Result<FileDigest> {
        assert_eq!(notes.len(), self.notes.len(), "one text per note");
        let named: Vec<(&str, usize)> = self
            .notes
            .iter()
            .zip(notes)
            .map(|(name, text)| (name.as_str(), text.len()))
            .collect();
        let text = header(&self.tensors, self.data_end, &named);
        let capacity = self.data_start as usize - 8;
        assert!(text.len() <= capacity, "notes are no longer than planned");
        let mut start = ((capacity as u64).to_le_bytes()).to_vec();
        start.extend_from_slice(text.as_bytes());
        start.resize(capacity + 8, b' ');
        let all = notes.concat();
        let end = self.data_start + self.data_end;
        let write = || -> io::Result<()> {
            self.file().write_all_at(&all, end)?;
            self.file().set_len(end + all.len() as u64)?;
            self.file().write_all_at(&start, 0)?;
            self.file().sync_all()
        };
        write().map_err(|error| self.failed(error))?;
        let digest = digest_of_file(self.file()).map_err(|error| self.failed(error))?;
        let Self { path, temporary, .. } = self;
        persist(temporary, &path).map_err(|error| Error::io(&path, error))?;
        Ok(digest)
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::io(&self.path, error)
    }
}

/// The header: tensors at their offsets, then the notes.
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
