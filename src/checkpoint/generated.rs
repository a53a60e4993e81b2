//! Tensors that are made when they are read, for measurements of a model without its folder.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};

use super::header::weight_kind;
use super::{Checkpoint, TensorPlan};
use crate::{Error, Result};

/// Stands for the folder in errors.
const NAME: &str = "generated weights";

/// Writes the values of a tensor into its bytes: those of its shape in its dtype, zeros before. Several threads may call it.
pub type TensorFill = dyn Fn(&TensorPlan, &mut [u8]) + Send + Sync;

/// The generated tensors of a checkpoint.
#[derive(Default)]
pub(super) struct Generated {
    /// By canonical name.
    plans: HashMap<String, TensorPlan>,
    fill: Option<Box<TensorFill>>,
}

impl Generated {
    pub(super) fn plan(&self, name: &str) -> Option<&TensorPlan> {
        self.plans.get(name)
    }

    pub(super) fn plans(&self) -> impl Iterator<Item = &TensorPlan> {
        self.plans.values()
    }

    pub(super) fn kind(&self, plan: &TensorPlan) -> Result<Kind> {
        weight_kind(plan.dtype).ok_or_else(|| {
            let reason = format!("is {:?}; F32, F16 and BF16 weights are supported", plan.dtype);
            Error::tensor(Path::new(NAME), &plan.name, reason)
        })
    }

    pub(super) fn bytes(&self, plan: &TensorPlan) -> Vec<u8> {
        let mut bytes = vec![0; plan.bytes() as usize];
        if let Some(fill) = &self.fill {
            fill(plan, &mut bytes);
        }
        bytes
    }

    /// The tensor of `plan`, which must have `shape`, on the CPU.
    pub(super) fn tensor(&self, plan: &TensorPlan, shape: &[usize]) -> Result<Tensor> {
        if plan.shape != shape {
            let reason = format!("has shape {:?}, but config.json requires {shape:?}", plan.shape);
            return Err(Error::tensor(Path::new(NAME), &plan.name, reason));
        }
        let kind = self.kind(plan)?;
        let sizes: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
        let tensor = Tensor::f_zeros(&sizes, (kind, Device::Cpu))?;
        if let Some(fill) = self.fill.as_ref().filter(|_| tensor.numel() > 0) {
            // SAFETY: a new contiguous tensor of this many bytes on the CPU, of which there is no other view.
            let bytes = unsafe {
                std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<u8>(), plan.bytes() as usize)
            };
            fill(plan, bytes);
        }
        Ok(tensor)
    }
}

impl Checkpoint {
    /// A checkpoint of `tensors`, whose names are the hub's. `fill` makes the values of a tensor each time that it is read, so
    /// that memory does not hold all of them beside the model.
    pub fn generated(tensors: Vec<TensorPlan>, fill: Box<TensorFill>) -> Self {
        let plans = tensors.into_iter().map(|plan| (plan.name.clone(), plan));
        Self {
            dir: PathBuf::from(NAME),
            shards: Vec::new(),
            tensors: HashMap::new(),
            generated: Generated {
                plans: plans.collect(),
                fill: Some(fill),
            },
            warnings: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;

    use super::*;

    fn checkpoint() -> Checkpoint {
        let plan = |name: &str, dtype, shape: &[usize]| TensorPlan {
            name: name.to_owned(),
            dtype,
            shape: shape.to_vec(),
        };
        let tensors = vec![
            plan("a.weight", Dtype::F32, &[2, 3]),
            plan("b.codes", Dtype::U8, &[5]),
        ];
        let fill = |plan: &TensorPlan, bytes: &mut [u8]| match plan.dtype {
            Dtype::F32 => bytes.as_chunks_mut::<4>().0.fill(1.5f32.to_le_bytes()),
            _ => bytes.fill(7),
        };
        Checkpoint::generated(tensors, Box::new(fill))
    }

    #[test]
    fn tensors_are_made_as_they_are_read() {
        let checkpoint = checkpoint();
        assert!(checkpoint.contains("b.codes") && !checkpoint.contains("c"));
        assert_eq!((checkpoint.total_bytes(), checkpoint.parameters()), (29, 11));
        assert_eq!(checkpoint.dtypes(), ["F32", "U8"]);
        assert_eq!(checkpoint.kind("a.weight").unwrap(), Kind::Float);
        let loaded = checkpoint
            .load("a.weight", &[2, 3], Kind::BFloat16, Device::Cpu)
            .unwrap();
        assert_eq!(loaded.kind(), Kind::BFloat16);
        assert_eq!(loaded.sum(Kind::Float).double_value(&[]), 9.0);
        let (_, dtype, shape, bytes) = checkpoint.bytes("b.codes").unwrap();
        assert_eq!((dtype, shape, &bytes[..]), (Dtype::U8, vec![5], &[7; 5][..]));
    }

    #[test]
    fn errors_name_the_tensor() {
        let checkpoint = checkpoint();
        for (error, word) in [
            (checkpoint.mapped("a.weight", &[3, 2]).err(), "shape"),
            (checkpoint.mapped("b.codes", &[5]).err(), "U8"),
            (checkpoint.mapped("c", &[1]).err(), "missing"),
        ] {
            let message = error.unwrap().to_string();
            assert!(
                message.starts_with("generated weights") && message.contains(word),
                "{message}"
            );
        }
    }
}
