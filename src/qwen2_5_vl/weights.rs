//! Loading of weights: dense, NF4 or AWQ, with an adapter's LoRA pairs and replaced tensors.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::{
    input_samples::InputSamples,
    layers::RmsNorm,
    linear::{Linear, LinearWeight, Scratch},
    lora::{Dropout, DropoutSeed, Lora, Loras},
    weight_tying::Tying,
};
use crate::blackwell_compat::Reductions;
use crate::checkpoint::{Checkpoint, EMBEDDING, HEAD};
use crate::lora::{Adapter, LoraPair};
use crate::quant::{Quantization, QuantizedWeight};
use crate::{Error, Result};

/// Loads the tensors of a model, in the dtype and on the device that it computes with.
pub(super) struct Weights<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    /// Dtype of the computation.
    pub(super) kind: Kind,
    pub(super) device: Device,
    pub(super) scratch: Scratch,
    /// Format of the linear layers' weights.
    pub(super) quantization: &'a Quantization,
    /// Records some of the linear layers' inputs.
    pub(super) samples: Option<Arc<InputSamples>>,
    /// LoRA adapters; checked against the model.
    pub(super) adapters: &'a [&'a Adapter],
    pub(super) dropout_seed: DropoutSeed,
    /// How integer products are computed.
    pub(super) reductions: Reductions,
}

impl Weights<'_> {
    /// Loads a tensor in the dtype of the computation.
    pub(super) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.checkpoint.load(name, shape, self.kind, self.device)
    }

    /// Loads a weight matrix. On the CPU in f32, bf16 stays bf16: widening is exact and takes half the bandwidth of f32.
    pub(super) fn matrix(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.checkpoint
            .load(name, shape, self.storage_kind(name, shape)?, self.device)
    }

    fn storage_kind(&self, name: &str, shape: &[usize]) -> Result<Kind> {
        let stored = self.checkpoint.kind(name)?;
        if self.device != Device::Cpu || self.kind != Kind::Float {
            return Ok(self.kind);
        }
        Ok(match stored {
            Kind::BFloat16 => stored,
            // AWQ folders store bf16 weights as f16; back to bf16 if that loses nothing.
            Kind::Half => {
                let half = self.checkpoint.mapped(name, shape)?;
                let narrow = half.tensor.f_to_kind(Kind::BFloat16)?;
                if narrow.f_to_kind(Kind::Half)?.f_equal(&half.tensor)? {
                    Kind::BFloat16
                } else {
                    self.kind
                }
            }
            _ => self.kind,
        })
    }

    /// Loads the embedding table. Next to 4-bit weights it would take a fifth of the GPU's memory although few rows are read,
    /// so it stays in host memory unless it is the output head, too.
    pub(super) fn embedding(&self, tying: Tying, shape: &[usize]) -> Result<Tensor> {
        let (name, device) = match tying {
            Tying::One(name) => (name, self.device),
            Tying::Apart if *self.quantization == Quantization::None => (EMBEDDING, self.device),
            Tying::Apart => (EMBEDDING, Device::Cpu),
        };
        // With tied weights the adapter's output head replaces the table, too.
        let stored = match tying {
            Tying::One(_) => self.replaced(HEAD, shape, device)?,
            Tying::Apart => None,
        };
        if let Some(table) =
            stored.map_or_else(|| self.replaced(EMBEDDING, shape, device), |t| Ok(Some(t)))?
        {
            return Ok(table);
        }
        if device == self.device {
            return self.matrix(name, shape);
        }
        self.checkpoint
            .load(name, shape, self.storage_kind(name, shape)?, Device::Cpu)
    }

    pub(super) fn linear(&self, name: &str, out: usize, input: usize, bias: bool) -> Result<Linear> {
        let weight = self.linear_weight(&format!("{name}.weight"), [out, input])?;
        let bias = if bias {
            Some(self.tensor(&format!("{name}.bias"), &[out])?)
        } else {
            None
        };
        Ok(Linear::new(weight, bias, &self.scratch)
            .sampled(name, self.samples.as_ref())
            .with_loras(self.loras(name)?))
    }

    /// The adapters' LoRA pairs of the linear layer `name`.
    pub(super) fn loras(&self, name: &str) -> Result<Loras> {
        let of = |adapter: &Adapter| {
            let pair = adapter.pairs.get(name);
            let lora = pair.map(|pair| {
                Ok(Lora {
                    a: self.lora_half(name, &pair.a)?,
                    b: self.lora_half(name, &pair.b)?,
                    scale: pair.scale,
                    dropout: self.dropout(name, pair, adapter.config.lora_dropout),
                })
            });
            lora.transpose()
        };
        Ok(Loras(
            self.adapters
                .iter()
                .map(|adapter| of(adapter))
                .collect::<Result<_>>()?,
        ))
    }

    /// LoRA input dropout with probability `p` (training only).
    fn dropout(&self, name: &str, pair: &LoraPair, p: f64) -> Option<Dropout> {
        (pair.a.requires_grad() && p > 0.0).then(|| Dropout {
            p,
            module: name.bytes().fold(0, |hash: u64, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
            }),
            seed: self.dropout_seed.clone(),
        })
    }

    /// A or B of a pair, on the model's device and in its dtype; copied only if needed.
    fn lora_half(&self, name: &str, tensor: &Tensor) -> Result<Tensor> {
        if tensor.requires_grad() {
            // The trainer updates this tensor; a copy would not be trained.
            if tensor.device() != self.device || !tensor.is_contiguous() {
                return Err(Error::Internal(format!(
                    "the adapter of \"{name}\" is in training and must be contiguous on the model's device"
                )));
            }
            return Ok(tensor.shallow_clone());
        }
        self.adapter_tensor(tensor, self.device)
    }

    /// An adapter's tensor on `device`; bf16 stays bf16 where [`Self::matrix`] keeps it.
    fn adapter_tensor(&self, tensor: &Tensor, device: Device) -> Result<Tensor> {
        let keep = self.device == Device::Cpu && self.kind == Kind::Float && tensor.kind() == Kind::BFloat16;
        let kind = if keep { Kind::BFloat16 } else { self.kind };
        Ok(tensor.f_to_device(device)?.f_to_kind(kind)?.f_contiguous()?)
    }

    /// The tensor that the adapter stores in place of the base's, on `device` in the model's dtype.
    fn replaced(&self, name: &str, shape: &[usize], device: Device) -> Result<Option<Tensor>> {
        // Only a single adapter may replace tensors: `Model::load` checks it.
        let mut adapters = self.adapters.iter();
        let Some((adapter, tensor)) =
            adapters.find_map(|adapter| Some((adapter, adapter.replaced.get(name)?)))
        else {
            return Ok(None);
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
                    "holds \"{name}\" of shape {:?} in place of the base's, whose config.json requires {shape:?}: \
                     the vocabulary was resized; choose the base with that vocabulary",
                    tensor.size()
                ),
            ));
        }
        self.adapter_tensor(tensor, device).map(Some)
    }

    fn linear_weight(&self, name: &str, shape: [usize; 2]) -> Result<LinearWeight> {
        if let Some(weight) = self.replaced(name, &shape, self.device)? {
            return Ok(LinearWeight::Dense(weight));
        }
        let stored = self
            .quantization
            .load_weight(self.checkpoint, name, shape, self.device)?;
        Ok(match stored {
            Some(QuantizedWeight::Nf4(weight)) => LinearWeight::Nf4(weight),
            Some(QuantizedWeight::Awq(weight)) => LinearWeight::Awq(weight),
            None => LinearWeight::Dense(self.matrix(name, &shape)?),
        })
    }

    pub(super) fn rms_norm(&self, name: &str, width: usize, eps: f64) -> Result<RmsNorm> {
        Ok(RmsNorm {
            weight: self.tensor(&format!("{name}.weight"), &[width])?,
            eps,
        })
    }
}
