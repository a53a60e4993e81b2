//! One safetensors file, memory-mapped.

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::tensor::{Metadata, TensorInfo};
use safetensors::{Dtype, SafeTensors};
use tch::{Kind, Tensor};

use crate::{Error, Result};

/// Headers above this are refused before they are parsed; the 72B model's are under 1 MB.
const MAX_HEADER_BYTES: u64 = 16 << 20;
/// More tensors than this in a file are refused.
const MAX_TENSORS: usize = 100_000;

/// A mapped file and its checked header.
pub(super) struct Shard {
    path: PathBuf,
    map: Mmap,
    metadata: Metadata,
    data_start: usize,
}

impl Shard {
    /// Maps `path` and checks its header: sizes, offsets, dtypes and the file's length.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let length = file.metadata().map_err(|e| Error::io(path, e))?.len();
        if length < 8 {
            return Err(Error::checkpoint(
                path,
                format!("{length} bytes are no safetensors file"),
            ));
        }
        // SAFETY: the map is read-only. A file that another process shortens while it is mapped ends this process with
        // SIGBUS, as with every memory-mapped loader; model folders are not written to while they are served.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, e))?;
        let mut size = [0u8; 8];
        size.copy_from_slice(&map[..8]);
        let header = u64::from_le_bytes(size);
        if header > MAX_HEADER_BYTES || header > length - 8 {
            return Err(Error::checkpoint(
                path,
                format!(
                    "a header of {header} bytes in a file of {length} bytes: the file is truncated or no safetensors file"
                ),
            ));
        }
        let (n, metadata) = SafeTensors::read_metadata(&map).map_err(|e| {
            Error::checkpoint(
                path,
                format!("the safetensors header is damaged or the file truncated: {e}"),
            )
        })?;
        if metadata.tensors().len() > MAX_TENSORS {
            return Err(Error::checkpoint(path, "holds too many tensors"));
        }
        let data_start = n + 8;
        if metadata.data_len() != map.len() - data_start {
            return Err(Error::checkpoint(
                path,
                format!(
                    "the header promises {} bytes of tensors, the file holds {}: download it again",
                    metadata.data_len(),
                    map.len() - data_start
                ),
            ));
        }
        Ok(Self {
            path: path.to_owned(),
            map,
            metadata,
            data_start,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Dtype and shape of the tensor `name`, and where its bytes lie in the file.
    pub(super) fn place(&self, name: &str) -> Option<(Dtype, Vec<usize>, Range<usize>)> {
        let info = self.metadata.info(name)?;
        let (begin, end) = info.data_offsets;
        Some((
            info.dtype,
            info.shape.clone(),
            self.data_start + begin..self.data_start + end,
        ))
    }

    /// The file's bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.metadata.tensors().into_keys().collect()
    }

    pub(super) fn data_bytes(&self) -> u64 {
        (self.map.len() - self.data_start) as u64
    }

    /// Values of all tensors.
    pub(super) fn parameters(&self) -> u64 {
        self.metadata
            .tensors()
            .values()
            .map(|info| info.shape.iter().product::<usize>() as u64)
            .sum()
    }

    /// Number formats of the tensors as safetensors names them.
    pub(super) fn dtypes(&self) -> Vec<String> {
        self.metadata
            .tensors()
            .values()
            .map(|info| format!("{:?}", info.dtype))
            .collect()
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.metadata
            .info(name)
            .ok_or_else(|| Error::checkpoint(&self.path, format!("tensor \"{name}\" is missing")))
    }

    /// The dtype of the tensor `name`.
    pub(super) fn kind(&self, name: &str) -> Result<Kind> {
        match self.info(name)?.dtype {
            Dtype::F32 => Ok(Kind::Float),
            Dtype::F16 => Ok(Kind::Half),
            Dtype::BF16 => Ok(Kind::BFloat16),
            other => Err(Error::checkpoint(
                &self.path,
                format!("tensor \"{name}\" is {other:?}; F32, F16 and BF16 weights are supported"),
            )),
        }
    }

    /// The tensor `name`, which must have `shape`; it shares the map's memory and must not outlive it.
    pub(super) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let info = self.info(name)?;
        if info.shape != shape {
            return Err(Error::checkpoint(
                &self.path,
                format!(
                    "tensor \"{name}\" has shape {:?}, but config.json asks for {shape:?}",
                    info.shape
                ),
            ));
        }
        let kind = self.kind(name)?;
        let (begin, end) = info.data_offsets;
        let bytes = &self.map[self.data_start + begin..self.data_start + end];
        let sizes: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
        let width = kind.elt_size_in_bytes();
        if bytes.as_ptr().align_offset(width) != 0 {
            // A header of odd length: rare and legal, so copy instead of reading unaligned.
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
