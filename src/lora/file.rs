//! PEFT's folder: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use tch::{Device, Tensor};

use super::{
    adapter::{Adapter, EMBEDDING_MODULE, LoraPair},
    config::LoraConfig,
    targets::Matcher,
};
use crate::checkpoint::{Checkpoint, StoredTensor, canonical_name, transformers_name, write_tensors};
use crate::checkpoint::{EMBEDDING, HEAD};
use crate::fs::{OldFolder, TemporaryFolder, json::write_pretty, parent_folder, replace_folder};
use crate::processing::{ImageProcessor, PREPROCESSOR_CONFIG};
use crate::{Error, Result};

/// PEFT's configuration.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// PEFT's tensors.
pub const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
/// Recommendation by the evaluation.
pub const ADAPTER_EVALUATION: &str = "medvision_evaluation.json";
/// PEFT's prefix of module names.
const PREFIX: &str = "base_model.model.";
/// The output head's module.
const HEAD_MODULE: &str = "lm_head";
/// PEFT's older file: pickle, which can run code.
const PICKLED: &str = "adapter_model.bin";

/// Which matrix of a pair a tensor is.
#[derive(Clone, Copy, PartialEq)]
enum PairMatrix {
    A,
    B,
}

impl Adapter {
    /// Reads the adapter in `dir`; module names may be the hub's or transformers 5's.
    ///
    /// Reference: [`set_peft_model_state_dict`](https://github.com/huggingface/peft/blob/a5526d27a9d47d1e8264d5e1b1f96c0fdc79464e/src/peft/utils/save_and_load.py#L676-L967).
    pub fn read(dir: &Path) -> Result<Self> {
        let config_file = dir.join(ADAPTER_CONFIG);
        let config = LoraConfig::read(dir)?;
        let file = dir.join(ADAPTER_WEIGHTS);
        if !file.is_file() {
            let reason = if dir.join(PICKLED).is_file() {
                "is missing, and adapter_model.bin is not opened, since it can run code: \
                 save the adapter again with a PEFT of this year"
            } else {
                "is missing: is the adapter complete?"
            };
            return Err(Error::not_found(file, reason));
        }
        let stored = Checkpoint::open_file(&file)?;
        let (mut halves, replaced) = read_tensors(&stored, &file)?;
        let spelling = Spelling::of(&config, &config_file, &halves)?;
        let mut left_out = Vec::new();
        for name in halves.keys() {
            if !spelling.means(name)? {
                left_out.push(name.clone());
            }
        }
        if left_out.len() == halves.len() {
            return Err(Error::invalid_file(
                config_file,
                format!("\"target_modules\" names no module that {ADAPTER_WEIGHTS} has tensors for"),
            ));
        }
        let spelled_as_transformers = spelling.as_transformers;
        drop(spelling);
        left_out.iter().for_each(|name| drop(halves.remove(name)));
        let mut pairs = BTreeMap::new();
        for (name, halves) in halves {
            let pair = pair(&config, &config_file, &file, &name, halves)?;
            pairs.insert(name, pair);
        }
        Ok(Self {
            config,
            pairs,
            replaced,
            images: ImageProcessor::from_dir_if_any(dir)?,
            file,
            left_out,
            spelled_as_transformers,
        })
    }

    /// Writes the adapter to `dir` as PEFT reads it, on top of transformers 5's model.
    ///
    /// The folder is written atomically. An existing one is kept beside it as `NAME.previous`, whose path is returned; an earlier
    /// one of that name is removed.
    pub fn write(&self, dir: &Path) -> Result<Option<PathBuf>> {
        self.check_finite()?;
        let parent = parent_folder(dir);
        fs::create_dir_all(parent).map_err(|error| Error::io(dir, error))?;
        let temporary = TemporaryFolder::new_in(parent).map_err(|error| Error::io(dir, error))?;
        self.write_into(temporary.path())?;
        replace_folder(temporary.path(), dir, OldFolder::Keep).map_err(|error| Error::io(dir, error))
    }

    fn write_into(&self, dir: &Path) -> Result<()> {
        let mut tensors = Vec::new();
        for (name, pair) in &self.pairs {
            let path = format!("{PREFIX}{}", transformers_name(name));
            if name == EMBEDDING_MODULE {
                tensors.push((format!("{path}.lora_embedding_A"), pair.b.f_tr()?));
                tensors.push((format!("{path}.lora_embedding_B"), pair.a.f_tr()?));
                continue;
            }
            tensors.push((format!("{path}.lora_A.weight"), pair.a.shallow_clone()));
            tensors.push((format!("{path}.lora_B.weight"), pair.b.shallow_clone()));
        }
        for (name, tensor) in &self.replaced {
            let module = name.strip_suffix(".weight").unwrap_or(name);
            let kept = if self.pairs.contains_key(module) {
                ".base_layer"
            } else {
                ""
            };
            let path = format!("{PREFIX}{}{kept}.weight", transformers_name(module));
            tensors.push((path, tensor.shallow_clone()));
        }
        write_tensors(&dir.join(ADAPTER_WEIGHTS), &tensors)?;
        if let Some(images) = &self.images {
            write_pretty(&dir.join(PREPROCESSOR_CONFIG), &images.settings())?;
        }
        write_pretty(&dir.join(ADAPTER_CONFIG), &self.config.to_json())
    }

    /// An adapter with NaN or Inf is never written.
    fn check_finite(&self) -> Result<()> {
        for (name, pair) in &self.pairs {
            if !(finite(&pair.a)? && finite(&pair.b)?) {
                return Err(Error::NonFinite(format!(
                    "the adapter of \"{name}\" has non-finite values (NaN/Inf); it was not written"
                )));
            }
        }
        Ok(())
    }
}

/// A and B by the hub's module name, each with the stored module name.
type PairMatrices = BTreeMap<String, [Option<(Tensor, String)>; 2]>;

/// Reads all pairs in `file`, and tensors that replace the base's.
fn read_tensors(stored: &Checkpoint, file: &Path) -> Result<(PairMatrices, BTreeMap<String, Tensor>)> {
    let (mut halves, mut replaced, mut adapter_name) = (PairMatrices::new(), BTreeMap::new(), None);
    for tensor in stored.stored() {
        let twice = || Error::tensor(file, &tensor.name, "occurs twice, in two spellings");
        let place = role(file, &tensor)?;
        let value = load(stored, file, &tensor)?;
        match place {
            TensorRole::Pair { path, half, name } => {
                let first =
                    *adapter_name.get_or_insert_with(|| name.map(str::to_owned)) == name.map(str::to_owned);
                if !first {
                    return Err(Error::tensor(
                        file,
                        &tensor.name,
                        "is of another adapter than those before it; only one adapter per file is supported",
                    ));
                }
                let module = canonical_name(path);
                let value = match module == EMBEDDING_MODULE {
                    true => value.f_tr()?.f_contiguous()?,
                    false => value,
                };
                let slot = &mut halves.entry(module).or_default()[half as usize];
                if slot.replace((value, path.to_owned())).is_some() {
                    return Err(twice());
                }
            }
            TensorRole::Base(name) => {
                if replaced.insert(name, value).is_some() {
                    return Err(twice());
                }
            }
        }
    }
    match halves.is_empty() {
        true => Err(Error::invalid_file(file, "holds no tensors of an adapter")),
        false => Ok((halves, replaced)),
    }
}

/// Which spelling of the base's modules `target_modules` uses: the file's, or the one that matches more modules.
struct Spelling<'a> {
    meant: Matcher<'a>,
    as_transformers: bool,
    /// Whether a target of the embedding also applies to the head, and vice versa.
    tied: bool,
}

impl<'a> Spelling<'a> {
    fn of(config: &'a LoraConfig, config_file: &Path, halves: &PairMatrices) -> Result<Self> {
        let paths = halves.iter().flat_map(|(name, halves)| {
            let paths = halves.iter().flatten().map(|(_, path)| path.as_str());
            paths.map(|path| (name.as_str(), path))
        });
        let stored = paths
            .into_iter()
            .all(|(name, path)| path == transformers_name(name));
        let mut spelling = Self {
            meant: config.matcher(config_file)?,
            as_transformers: stored,
            tied: config.ensure_weight_tying,
        };
        let mut counts = [0; 2];
        for (as_transformers, count) in [(stored, 0), (!stored, 1)] {
            spelling.as_transformers = as_transformers;
            for name in halves.keys() {
                counts[count] += usize::from(spelling.means(name)?);
            }
        }
        spelling.as_transformers = stored == (counts[0] >= counts[1]);
        Ok(spelling)
    }

    /// Whether the module of the hub's `name` is a target.
    fn means(&self, name: &str) -> Result<bool> {
        let spelled = |name: &str| match self.as_transformers {
            true => (self.meant)(&transformers_name(name)),
            false => (self.meant)(name),
        };
        let other = match name {
            HEAD_MODULE => EMBEDDING_MODULE,
            EMBEDDING_MODULE => HEAD_MODULE,
            _ => return spelled(name),
        };
        Ok(spelled(name)? || self.tied && spelled(other)?)
    }
}

/// Role of a tensor in the file.
enum TensorRole<'a> {
    /// A matrix of the pair of module `path`, in the adapter `name` if the file has names.
    Pair {
        path: &'a str,
        half: PairMatrix,
        name: Option<&'a str>,
    },
    /// A replacement for the base's tensor of this hub name.
    Base(String),
}

/// Parses `model.embed_tokens.lora_embedding_A` or `….lora_embedding_A.NAME`. PEFT stores both matrices transposed: its A is
/// `[rank, vocabulary]`, which is B here.
fn embedding_half_of(path: &str) -> Option<TensorRole<'_>> {
    [
        ("lora_embedding_A", PairMatrix::B),
        ("lora_embedding_B", PairMatrix::A),
    ]
    .into_iter()
    .find_map(|(word, half)| {
        let (path, rest) = path.rsplit_once(&format!(".{word}"))?;
        let name = match rest {
            "" => None,
            rest => Some(
                rest.strip_prefix('.')
                    .filter(|name| !name.is_empty() && !name.contains('.'))?,
            ),
        };
        (canonical_name(path) == EMBEDDING_MODULE).then_some(TensorRole::Pair { path, half, name })
    })
}

/// Parses `MODULE.lora_A.weight` or `MODULE.lora_A.NAME.weight`.
fn half_of(path: &str) -> Option<TensorRole<'_>> {
    [("lora_A", PairMatrix::A), ("lora_B", PairMatrix::B)]
        .into_iter()
        .find_map(|(word, half)| {
            let (path, rest) = path.rsplit_once(&format!(".{word}."))?;
            let name = match rest.strip_suffix("weight")? {
                "" => None,
                name => Some(
                    name.strip_suffix('.')
                        .filter(|name| !name.is_empty() && !name.contains('.'))?,
                ),
            };
            Some(TensorRole::Pair { path, half, name })
        })
}

/// The hub's name of the output head or the embedding, which PEFT saves beside an adapter of the head.
fn base_tensor(path: &str) -> Option<String> {
    let module = path.strip_suffix(".weight")?;
    let name = canonical_name(module.strip_suffix(".base_layer").unwrap_or(module));
    let name = format!("{name}.weight");
    [EMBEDDING, HEAD].contains(&name.as_str()).then_some(name)
}

/// Determines the role of a tensor.
fn role<'a>(file: &Path, tensor: &'a StoredTensor) -> Result<TensorRole<'a>> {
    let name = tensor.name.as_str();
    let path = name.strip_prefix(PREFIX);
    let found = path.and_then(|path| {
        let half = half_of(path).or_else(|| embedding_half_of(path));
        half.or_else(|| base_tensor(path).map(TensorRole::Base))
    });
    let reason = match found {
        Some(found) if tensor.shape.len() == 2 && tensor.shape.iter().all(|&n| n > 0) => return Ok(found),
        Some(_) => format!(
            "has shape {:?}, but an adapter of a linear layer is a matrix",
            tensor.shape
        ),
        None if name.contains("lora_magnitude_vector") => {
            "belongs to DoRA, which is not supported".to_owned()
        }
        None if name.contains("lora_embedding_") => {
            format!("adapts an embedding that is not \"{EMBEDDING_MODULE}\"")
        }
        None if name.contains("lora_") => {
            format!("is not a plain LoRA matrix ({PREFIX}MODULE.lora_A.weight, .lora_B.weight)")
        }
        None => "replaces a tensor of the base (\"modules_to_save\"), which is not supported: \
                 merge the adapter in PEFT and load the merged model"
            .to_owned(),
    };
    Err(Error::tensor(file, name, reason))
}

fn load(stored: &Checkpoint, file: &Path, tensor: &StoredTensor) -> Result<Tensor> {
    let kind = stored.kind(&tensor.canonical)?;
    let value = stored.load(&tensor.canonical, &tensor.shape, kind, Device::Cpu)?;
    if !finite(&value)? {
        return Err(Error::tensor(
            file,
            &tensor.name,
            "has non-finite values (NaN/Inf): the training that wrote it failed",
        ));
    }
    Ok(value)
}

/// A and B of the module `name`; their rank must be the configuration's.
fn pair(
    config: &LoraConfig,
    config_file: &Path,
    file: &Path,
    name: &str,
    halves: [Option<(Tensor, String)>; 2],
) -> Result<LoraPair> {
    let wrong = |reason: String| Error::invalid_file(file, format!("\"{name}\": {reason}"));
    let (a, b, path) = match halves {
        [Some((a, path)), Some((b, _))] => (a, b, path),
        [a, b] => return Err(incomplete(file, name, a, b)),
    };
    // Patterns may use the base's older spelling or today's.
    let (rank, scale) = match config.rank_and_scale(config_file, &path)? {
        found if found != (config.r, config.scale()) => found,
        _ => config.rank_and_scale(config_file, &transformers_name(name))?,
    };
    let (rows, columns) = (a.size()[0] as usize, b.size()[1] as usize);
    if rows != rank || columns != rank {
        return Err(wrong(format!(
            "lora_A is {:?} and lora_B {:?}, but {ADAPTER_CONFIG} has rank {rank}",
            a.size(),
            b.size()
        )));
    }
    Ok(LoraPair { a, b, scale })
}

/// The error that names the missing tensor of an incomplete pair.
fn incomplete(file: &Path, name: &str, a: Option<(Tensor, String)>, b: Option<(Tensor, String)>) -> Error {
    let missing = match (name == EMBEDDING_MODULE, a.is_some()) {
        (false, false) => "lora_A.weight",
        (false, true) => "lora_B.weight",
        // PEFT's A is B here.
        (true, false) => "lora_embedding_B",
        (true, true) => "lora_embedding_A",
    };
    let path = a.or(b).map_or_else(|| name.to_owned(), |(_, path)| path);
    let reason = format!("tensor \"{PREFIX}{path}.{missing}\" is missing: is the file complete?");
    Error::invalid_file(file, reason)
}

/// Whether all values are finite.
///
/// NaN and Inf propagate to the minimum and the maximum. A mask of all values would fragment the allocator's memory.
pub(crate) fn finite(tensor: &Tensor) -> Result<bool> {
    let is_finite = |end: Tensor| -> Result<bool> { Ok(end.f_double_value(&[])?.is_finite()) };
    Ok(tensor.numel() == 0 || (is_finite(tensor.f_max()?)? && is_finite(tensor.f_min()?)?))
}
