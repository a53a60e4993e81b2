//! Hugging Face model folders: memory-mapped safetensors, single or sharded, under the hub's or transformers 5's names.
//!
//! A folder is untrusted: headers are bounded, offsets and sizes are verified before a tensor is read, shard names cannot leave
//! the folder, and formats that can run code (pickle) are never opened.

pub(crate) mod config_defaults;
mod folder;
mod generated;
mod header;
mod model_folder;
mod names;
mod raw;
mod shard;
mod writer;

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use tch::{Device, Kind, Tensor};

pub use self::folder::{FileFault, FolderFiles, Headers, LocalFolder, read_config, read_headers, read_small};
use self::generated::Generated;
pub use self::generated::TensorFill;
pub(crate) use self::header::weight_kind;
use self::header::{DistinctKeys, Header, LENGTH_BYTES};
pub use self::model_folder::{JsonFile, ModelFolder};
pub(crate) use self::names::{EMBEDDING, HEAD};
pub use self::names::{canonical_name, transformers_name};
pub use self::raw::{MappedBytes, StoredTensor};
use self::shard::Shard;
pub use self::writer::{MAX_NOTE_BYTES, TensorFile, TensorPlan, tensor_bytes, write_tensors};
use crate::fs::read_bounded;
use crate::{Error, Result};

/// Maximum size of an index.
pub(crate) const MAX_INDEX_BYTES: u64 = 64 << 20;
/// The weights of an unsharded model.
pub(crate) const SINGLE: &str = "model.safetensors";
/// The index of a sharded model: the file of each tensor.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
const MISSING_TENSOR: &str =
    "is missing: the weights are incomplete, or not of the model that config.json describes";
pub(crate) const MISSING_SHARD: &str = "this shard is missing: is the download complete?";

/// The weights of one model: of a folder, or made as they are read ([`Checkpoint::generated`]).
pub struct Checkpoint {
    dir: PathBuf,
    shards: Vec<Arc<Shard>>,
    /// canonical name → (shard, name in the shard)
    tensors: HashMap<String, (usize, String)>,
    /// Tensors of no file; a checkpoint has these or shards.
    generated: Generated,
    warnings: Vec<String>,
}

/// A weight as stored, on the CPU. Its tensor shares the mapped file's memory, which this value keeps alive.
pub struct MappedTensor {
    /// Stored dtype; read-only.
    pub tensor: Tensor,
    /// `None` if the tensor has its own memory.
    _shard: Option<Arc<Shard>>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

impl Checkpoint {
    /// Opens `model.safetensors` or else the shards that `model.safetensors.index.json` lists.
    ///
    /// If a folder has both, the single file is read, as transformers does, with a warning in [`Self::warnings`].
    pub fn open(dir: &Path) -> Result<Self> {
        let (single, index) = (dir.join(SINGLE), dir.join(INDEX));
        let mut warnings = Vec::new();
        let mut files = if single.is_file() {
            if index.is_file() && !lists_only(&index, SINGLE) {
                warnings.push(format!(
                    "{} holds two sets of weights: {SINGLE} is read, as transformers does, and what {INDEX} lists is not; \
                     remove the one that is not wanted",
                    dir.display()
                ));
            }
            vec![single]
        } else if index.is_file() {
            shard_files(dir, &index)?
        } else {
            return Err(Error::not_found(
                dir,
                "holds neither model.safetensors nor model.safetensors.index.json: is the download complete?",
            ));
        };
        files.sort();
        files.dedup();
        Ok(Self {
            warnings,
            ..Self::of(dir, &files)?
        })
    }

    /// Opens one safetensors file of any name.
    pub fn open_file(file: &Path) -> Result<Self> {
        Self::of(file, &[file.to_owned()])
    }

    fn of(dir: &Path, files: &[PathBuf]) -> Result<Self> {
        let shards = files
            .iter()
            .map(|f| Shard::open(f).map(Arc::new))
            .collect::<Result<Vec<_>>>()?;
        let mut tensors = HashMap::new();
        for (i, shard) in shards.iter().enumerate() {
            for name in shard.names() {
                let canonical = canonical_name(&name);
                if tensors.insert(canonical, (i, name.clone())).is_some() {
                    return Err(Error::tensor(shard.path(), name, "occurs twice"));
                }
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            shards,
            tensors,
            generated: Generated::default(),
            warnings: Vec::new(),
        })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Problems of the folder that do not prevent its use.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Whether there is a tensor of this canonical (hub) name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name) || self.generated.plan(name).is_some()
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> u64 {
        let stored: u64 = self.shards.iter().map(|s| s.data_bytes()).sum();
        stored + self.generated.plans().map(TensorPlan::bytes).sum::<u64>()
    }

    /// Number of values in all tensors.
    pub fn parameters(&self) -> u64 {
        let stored: u64 = self.shards.iter().map(|shard| shard.parameters()).sum();
        let generated = self.generated.plans();
        stored
            + generated
                .map(|plan| plan.shape.iter().product::<usize>() as u64)
                .sum::<u64>()
    }

    /// The tensors' dtypes, by their names in safetensors, sorted.
    pub fn dtypes(&self) -> Vec<String> {
        let stored = self.shards.iter().flat_map(|shard| shard.dtypes());
        let generated = self.generated.plans().map(|plan| format!("{:?}", plan.dtype));
        let dtypes: BTreeSet<String> = stored.chain(generated).collect();
        dtypes.into_iter().collect()
    }

    /// The stored dtype of the weight of canonical (hub) `name`.
    pub fn kind(&self, name: &str) -> Result<Kind> {
        if let Some(plan) = self.generated.plan(name) {
            return self.generated.kind(plan);
        }
        let (shard, stored) = self.place(name)?;
        shard.kind(stored)
    }

    /// Returns the weight of canonical (hub) `name`, which must have `shape`: on the CPU, in its stored dtype, sharing the
    /// mapped file's memory.
    pub fn mapped(&self, name: &str, shape: &[usize]) -> Result<MappedTensor> {
        if let Some(plan) = self.generated.plan(name) {
            return Ok(MappedTensor {
                tensor: self.generated.tensor(plan, shape)?,
                _shard: None,
            });
        }
        let (shard, stored) = self.place(name)?;
        Ok(MappedTensor {
            tensor: shard.tensor(stored, shape)?,
            _shard: Some(Arc::clone(shard)),
        })
    }

    /// The shard that holds canonical `name`, and the tensor's name there.
    fn place(&self, name: &str) -> Result<(&Arc<Shard>, &str)> {
        match self.tensors.get(name) {
            Some((shard, stored)) => Ok((&self.shards[*shard], stored)),
            None => Err(Error::tensor(&self.dir, name, MISSING_TENSOR)),
        }
    }

    /// Loads the weight of canonical (hub) `name` as an owned tensor of `kind` on `device`.
    pub fn load(&self, name: &str, shape: &[usize], kind: Kind, device: Device) -> Result<Tensor> {
        let mapped = self.mapped(name, shape)?;
        let shape: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
        let out = Tensor::f_empty(&shape, (kind, device))?;
        let mut target = out.shallow_clone();
        target.f_copy_(&mapped.tensor)?;
        Ok(out)
    }
}

/// Whether `index` can be read and lists only `file`.
fn lists_only(index: &Path, file: &str) -> bool {
    let text = read_bounded(index, MAX_INDEX_BYTES);
    text.is_ok_and(|text| index_files(index, &text).is_ok_and(|names| names.iter().all(|name| name == file)))
}

fn shard_files(dir: &Path, index: &Path) -> Result<Vec<PathBuf>> {
    let text = read_bounded(index, MAX_INDEX_BYTES).map_err(|e| Error::io(index, e))?;
    index_files(index, &text)?
        .into_iter()
        .map(|name| {
            let file = dir.join(name);
            if !file.exists() {
                return Err(Error::not_found(file, MISSING_SHARD));
            }
            Ok(file)
        })
        .collect()
}

/// File names in the index `path`, whose content is `text`: sorted, without folders.
pub(crate) fn index_files(path: &Path, text: &[u8]) -> Result<Vec<String>> {
    let wrong = |e: serde_json::Error| Error::invalid_file(path, format!("not a safetensors index: {e}"));
    serde_json::from_slice::<DistinctKeys>(text).map_err(wrong)?;
    let index: Index = serde_json::from_slice(text).map_err(wrong)?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    for name in &names {
        let plain = Path::new(name).file_name().is_some_and(|f| f == name.as_str());
        if !plain || !name.ends_with(".safetensors") {
            return Err(Error::invalid_file(
                path,
                format!("\"weight_map\" names {name:?}, which is not a plain .safetensors file name"),
            ));
        }
    }
    Ok(names.into_iter().collect())
}
