//! One safetensors file, memory-mapped.

use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use tch::{Kind, Tensor};

use super::header::{Header, LENGTH_BYTES, weight_kind};
use crate::fs::open_regular;
use crate::{Error, Result};

/// A mapped file and its checked header.
pub(super) struct Shard {
    path: PathBuf,
    map: Mmap,
    header: Header,
}

impl Shard {
    /// Maps `path` and checks its header: sizes, offsets, dtypes and the file's length.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = open_regular(path).map_err(|e| Error::io(path, e))?;
        let length = file.metadata().map_err(|e| Error::io(path, e))?.len();
        if length < LENGTH_BYTES as u64 {
            return Err(Error::invalid_file(
                path,
                format!("{length} bytes are not a safetensors file"),
            ));
        }
        // SAFETY: the map is read-only. A file that another process shortens while it is mapped ends this process with
        // SIGBUS, as with every memory-mapped loader; model folders are not written to while they are served.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        let end = LENGTH_BYTES + Header::size(path, &map, map.len() as u64)?;
        let header = Header::parse(path, &map[LENGTH_BYTES..end], map.len() as u64)?;
        Ok(Self {
            path: path.to_owned(),
            map,
            header,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Dtype, shape and byte range of the tensor `name`.
    pub(super) fn place(&self, name: &str) -> Option<(Dtype, Vec<usize>, Range<usize>)> {
        let info = self.header.info(name)?;
        Some((info.dtype, info.shape.clone(), self.header.place(info)))
    }

    /// The file's bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.header.tensors().map(|(name, _)| name).collect()
    }

    pub(super) fn data_bytes(&self) -> u64 {
        self.header.data_bytes()
    }

    /// Number of values in all tensors.
    pub(super) fn parameters(&self) -> u64 {
        self.header
            .tensors()
            .map(|(_, info)| info.shape.iter().product::<usize>() as u64)
            .sum()
    }

    /// The tensors' dtypes, by their names in safetensors.
    pub(super) fn dtypes(&self) -> Vec<String> {
        self.header
            .tensors()
            .map(|(_, info)| format!("{:?}", info.dtype))
            .collect()
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.header
            .info(name)
            .ok_or_else(|| Error::tensor(&self.path, name, "is missing"))
    }

    /// The dtype of the tensor `name`.
    pub(super) fn kind(&self, name: &str) -> Result<Kind> {
        let dtype = self.info(name)?.dtype;
        weight_kind(dtype).ok_or_else(|| {
            Error::tensor(
                &self.path,
                name,
                format!("is {dtype:?}; F32, F16 and BF16 weights are supported"),
            )
        })
    }

    /// The tensor `name`, which must have `shape`; it shares the map's memory and must not outlive it.
    pub(super) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let info = self.info(name)?;
        if info.shape != shape {
            return Err(Error::tensor(
                &self.path,
                name,
                format!("has shape {:?}, but config.json requires {shape:?}", info.shape),
            ));
        }
        let kind = self.kind(name)?;
        let bytes = &self.map[self.header.place(info)];
        let sizes: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
        let width = kind.elt_size_in_bytes();
        if bytes.as_ptr().align_offset(width) != 0 {
            // A header of odd length is rare and legal: copy instead of reading unaligned.
            return Ok(Tensor::f_from_data_size(bytes, &sizes, kind)?);
        }
        let strides: Vec<i64> = (0..sizes.len())
            .map(|i| sizes[i + 1..].iter().product())
            .collect();
        // SAFETY: `bytes` holds exactly shape × dtype bytes (checked by the safetensors crate), is aligned, and outlives
        // the tensor: callers keep the shard alive (see MappedTensor).
        Ok(unsafe { Tensor::f_from_blob(bytes.as_ptr(), &sizes, &strides, kind, tch::Device::Cpu)? })
    }
}
