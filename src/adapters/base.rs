//! The weights that an adapter is merged into: a model folder's, as numbers, a few rows at a time.

use std::collections::HashMap;
use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::checkpoint::{Checkpoint, MappedTensor, StoredTensor};
use crate::quant::Quantization;
use crate::quant::nf4::Nf4Weight;
use crate::qwen2_5_vl::Config;
use crate::{Error, Result};

/// A model folder whose weights are numbers, or four bits that numbers are restored from.
pub(super) struct Base {
    checkpoint: Checkpoint,
    /// Sizes of the linear layers' weights: what is packed does not tell.
    shapes: HashMap<String, [usize; 2]>,
}

/// One tensor of the base.
pub(super) enum Weight {
    /// As stored, `[rows, columns]`.
    Mapped(MappedTensor, [i64; 2]),
    /// From four bits, f32 `[rows, columns]`.
    Restored(Tensor),
}

impl Base {
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let config = Config::from_dir(dir)?;
        if let Quantization::Awq(_) = Quantization::from_dir(dir)? {
            return Err(Error::checkpoint(
                dir,
                "is quantized with AWQ; an adapter is merged into the original or into its NF4 form",
            ));
        }
        let modules = config.linear_modules().into_iter();
        Ok(Self {
            checkpoint: Checkpoint::open(dir)?,
            shapes: modules
                .map(|module| (format!("{}.weight", module.name), [module.outputs, module.inputs]))
                .collect(),
        })
    }

    /// Its tensors without what belongs to packed ones, with the shapes of their values.
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

    /// The tensor of canonical `name` and `shape`.
    pub(super) fn weight(&self, name: &str, shape: &[usize]) -> Result<Weight> {
        if let Some(&shape) = self.shapes.get(name)
            && let Some(packed) = Nf4Weight::load(&self.checkpoint, name, shape, Device::Cpu)?
        {
            let mut values = Tensor::f_empty(shape.map(|n| n as i64), (Kind::Float, Device::Cpu))?;
            packed.dequantize_into(&mut values)?;
            return Ok(Weight::Restored(values));
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
            Self::Restored(values) => {
                let size = values.size();
                [size[0], size[1]]
            }
        }
    }

    /// `count` rows from `start` on, f32, a copy.
    pub(super) fn rows(&self, start: i64, count: i64) -> Result<Tensor> {
        let all = match self {
            Self::Mapped(mapped, size) => mapped.tensor.f_view(*size)?,
            Self::Restored(values) => values.shallow_clone(),
        };
        Ok(all.f_narrow(0, start, count)?.f_to_kind(Kind::Float)?.copy())
    }
}
