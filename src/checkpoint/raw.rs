//! Tensors as bytes, of any dtype.

use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::Dtype;

use super::shard::Shard;
use super::{Checkpoint, MISSING_TENSOR, canonical_name};
use crate::{Error, Result};

/// A tensor's description and its place in a file.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredTensor {
    /// Name in the file.
    pub name: String,
    /// The hub's name.
    pub canonical: String,
    /// Dtype.
    pub dtype: Dtype,
    /// Shape.
    pub shape: Vec<usize>,
    /// The file.
    pub file: PathBuf,
    /// Its byte range in the file.
    pub place: Range<usize>,
}

/// A tensor's bytes, shared with the mapped file; those of a generated tensor in memory of their own.
#[derive(Clone)]
pub struct MappedBytes(Bytes);

#[derive(Clone)]
enum Bytes {
    Mapped { shard: Arc<Shard>, place: Range<usize> },
    Generated(Arc<Vec<u8>>),
}

impl Deref for MappedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Bytes::Mapped { shard, place } => &shard.bytes()[place.clone()],
            Bytes::Generated(bytes) => bytes,
        }
    }
}

impl Checkpoint {
    /// All tensors of the files, in the order of the files and of their offsets.
    pub fn stored(&self) -> Vec<StoredTensor> {
        let mut all: Vec<StoredTensor> = self
            .shards
            .iter()
            .flat_map(|shard| {
                let file = shard.path().to_owned();
                shard.names().into_iter().filter_map(move |name| {
                    let (dtype, shape, place) = shard.place(&name)?;
                    Some(StoredTensor {
                        canonical: canonical_name(&name),
                        name,
                        dtype,
                        shape,
                        file: file.clone(),
                        place,
                    })
                })
            })
            .collect();
        all.sort_by(|a, b| (&a.file, a.place.start).cmp(&(&b.file, b.place.start)));
        all
    }

    /// The files that hold the tensors.
    pub fn files(&self) -> Vec<PathBuf> {
        self.shards.iter().map(|shard| shard.path().to_owned()).collect()
    }

    /// The file of the tensor of canonical (hub) `name`, its dtype, shape and bytes.
    pub fn bytes(&self, name: &str) -> Result<(&Path, Dtype, Vec<usize>, MappedBytes)> {
        if let Some(plan) = self.generated.plan(name) {
            let bytes = MappedBytes(Bytes::Generated(Arc::new(self.generated.bytes(plan))));
            return Ok((&self.dir, plan.dtype, plan.shape.clone(), bytes));
        }
        let found = self.tensors.get(name).and_then(|(shard, stored)| {
            let shard = &self.shards[*shard];
            let (dtype, shape, place) = shard.place(stored)?;
            let bytes = MappedBytes(Bytes::Mapped {
                shard: Arc::clone(shard),
                place,
            });
            Some((shard.path(), dtype, shape, bytes))
        });
        found.ok_or_else(|| Error::tensor(&self.dir, name, MISSING_TENSOR))
    }
}
