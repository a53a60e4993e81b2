//! Weights of the model that an adapter is merged into, dense or dequantized from NF4, in chunks of rows.

use std::collections::HashMap;
use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::checkpoint::{Checkpoint, MappedTensor, ModelFolder, StoredTensor, transformers_name};
use crate::checkpoint::{EMBEDDING, HEAD};
use crate::lora::Adapter;
use crate::quant::Quantization;
use crate::qwen2_5_vl::{Config, Tying};
use crate::{Error, Result};

/// A model folder with dense or NF4 weights.
pub(super) struct Base {
    checkpoint: Checkpoint,
    quantization: Quantization,
    /// Shapes of the linear layers' weights, which packed tensors do not have.
    shapes: HashMap<String, [usize; 2]>,
    tying: Tying,
}

/// One tensor of the base.
pub(super) enum Weight {
    /// As stored, `[rows, columns]`.
    Mapped(MappedTensor, [i64; 2]),
    /// f32 `[rows, columns]`.
    Dequantized(Tensor),
}

impl Base {
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let folder = ModelFolder::new(dir);
        let config = Config::from_json(folder.config()?)?;
        let quantization = Quantization::from_json(folder.config()?)?;
        if let Quantization::Awq(_) = quantization {
            return Err(Error::unsuitable(
                dir,
                "is quantized with AWQ; an adapter is merged into the original or into its NF4 form",
            ));
        }
        let modules = config.linear_modules().into_iter();
        let checkpoint = Checkpoint::open(dir)?;
        Ok(Self {
            tying: Tying::of(&checkpoint, &config)?.0,
            checkpoint,
            quantization,
            shapes: modules
                .map(|module| (format!("{}.weight", module.name), [module.outputs, module.inputs]))
                .collect(),
        })
    }

    /// Whether embedding and output head are one tensor.
    pub(super) fn is_tied(&self) -> bool {
        self.tying != Tying::Apart
    }

    /// With tied embeddings the tensor that [`Self::tensors`] lacks: the tied tensor under the other one's name.
    pub(super) fn untied(&self) -> Option<(StoredTensor, Vec<usize>)> {
        let Tying::One(stored) = self.tying else {
            return None;
        };
        let missing = if stored == HEAD { EMBEDDING } else { HEAD };
        let mut tensors = self.tensors();
        let as_transformers = tensors.iter().any(|(tensor, _)| tensor.name != tensor.canonical);
        let at = tensors
            .iter()
            .position(|(tensor, _)| tensor.canonical == stored)?;
        let (tensor, shape) = tensors.swap_remove(at);
        let name = match as_transformers {
            true => transformers_name(missing),
            false => missing.to_owned(),
        };
        let tensor = StoredTensor {
            canonical: missing.to_owned(),
            name,
            ..tensor
        };
        Some((tensor, shape))
    }

    /// Its weights with the shapes of their values; quantization data is left out.
    pub(super) fn tensors(&self) -> Vec<(StoredTensor, Vec<usize>)> {
        let stored = self.checkpoint.stored();
        let belongs = |name: &str| {
            let weight = name.find(".weight.").map(|end| &name[..end + ".weight".len()]);
            weight.is_some_and(|weight| self.checkpoint.contains(weight))
        };
        stored
            .into_iter()
            .filter(|tensor| !belongs(&tensor.canonical))
            .map(|tensor| {
                let shape = match self.shapes.get(&tensor.canonical) {
                    Some(shape) => shape.to_vec(),
                    None => tensor.shape.clone(),
                };
                (tensor, shape)
            })
            .collect()
    }

    /// The tensor of canonical `name` and `shape`; the one that `adapter` stores instead, if any.
    pub(super) fn weight_with(&self, adapter: &Adapter, name: &str, shape: &[usize]) -> Result<Weight> {
        let ends: &[&str] = match (self.tying, name) {
            (Tying::One(_), EMBEDDING | HEAD) => &[HEAD, EMBEDDING],
            _ => &[name],
        };
        let Some(tensor) = ends.iter().find_map(|name| adapter.replaced.get(*name)) else {
            return self.weight(name, shape);
        };
        if tensor
            .size()
            .iter()
            .map(|&n| n as usize)
            .ne(shape.iter().copied())
        {
            return Err(Error::unsuitable(
                adapter.file(),
                format!(
                    "holds \"{name}\" of shape {:?}, but the base's is {shape:?}",
                    tensor.size()
                ),
            ));
        }
        Ok(Weight::Dequantized(tensor.f_to_kind(Kind::Float)?))
    }

    /// The tensor of canonical `name` and `shape`.
    pub(super) fn weight(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        let name = match self.tying {
            Tying::One(stored) if [EMBEDDING, HEAD].contains(&name) => stored,
            _ => name,
        };
        if let Some(&shape) = self.shapes.get(name)
            && let Some(weight) = self
                .quantization
                .load_weight(&self.checkpoint, name, shape, Device::Cpu)?
        {
            return Ok(Weight::Dequantized(weight.dequantize(Device::Cpu)?));
        }
        let mapped = self.checkpoint.mapped(name, shape)?;
        let values = mapped.tensor.numel() as i64;
        let columns = match shape {
            [_, columns] => *columns as i64,
            _ => 1,
        };
        Ok(Weight::Mapped(mapped, [values / columns.max(1), columns]))
    }
}

impl Weight {
    /// Rows and columns.
    pub(super) fn size(&self) -> [i64; 2] {
        match self {
            Self::Mapped(_, size) => *size,
            Self::Dequantized(values) => {
                let size = values.size();
                [size[0], size[1]]
            }
        }
    }

    /// Copies `count` rows from `start` on as f32.
    pub(super) fn rows(&self, start: i64, count: i64) -> Result<Tensor> {
        let all = match self {
            Self::Mapped(mapped, size) => mapped.tensor.f_view(*size)?,
            Self::Dequantized(values) => values.shallow_clone(),
        };
        Ok(all.f_narrow(0, start, count)?.f_to_kind(Kind::Float)?.copy())
    }
}
