//! What both towers are built from.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::{
    Activation,
    linear::{InputSamples, Linear, LinearWeight, Lora, Scratch},
    recorded::{Dropout, DropoutSeed, recorded_rotate},
    tying::Tying,
};
use crate::blackwell_compat::Reductions;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::{EMBEDDING, HEAD};
use crate::kernels::{cpu, cuda};
use crate::lora::{Adapter, LoraPair};
use crate::quant::{Quantization, awq::AwqWeight, nf4::Nf4Weight};
use crate::torch::autograd;
use crate::{Error, Result};

/// Where weights come from and what they become.
pub(super) struct Weights<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    /// Dtype of the computation.
    pub(super) kind: Kind,
    pub(super) device: Device,
    pub(super) scratch: Scratch,
    /// How the folder stores weights.
    pub(super) quantization: Quantization,
    /// Where linear layers leave some of what they read.
    pub(super) samples: Option<Arc<InputSamples>>,
    /// What is added to some linear layers; it fits the model.
    pub(super) adapter: Option<&'a Adapter>,
    pub(super) dropout_seed: DropoutSeed,
    /// How integers are multiplied up.
    pub(super) reductions: Reductions,
}

impl Weights<'_> {
    /// A tensor in the dtype of the computation.
    pub(super) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.checkpoint.load(name, shape, self.kind, self.device)
    }

    /// A matrix at rest: bf16 stays bf16 on the CPU, where widening it is exact and reading it twice as fast as f32.
    pub(super) fn matrix(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.checkpoint
            .load(name, shape, self.kind_at_rest(name, shape)?, self.device)
    }

    fn kind_at_rest(&self, name: &str, shape: &[usize]) -> Result<Kind> {
        let stored = self.checkpoint.kind(name)?;
        if self.device != Device::Cpu || self.kind != Kind::Float {
            return Ok(self.kind);
        }
        Ok(match stored {
            Kind::BFloat16 => stored,
            // AWQ's folders hold bf16 weights as f16; where nothing was lost on the way they are bf16 again.
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

    /// The embedding table. Beside weights in four bits it would be a fifth of a GPU's memory, and only some rows of it are
    /// ever read: unless it is the output head too, it stays with the host.
    pub(super) fn embedding(&self, tying: Tying, shape: &[usize]) -> Result<Tensor> {
        let (name, device) = match tying {
            Tying::One(name) => (name, self.device),
            Tying::Apart if self.quantization == Quantization::None => (EMBEDDING, self.device),
            Tying::Apart => (EMBEDDING, Device::Cpu),
        };
        // An adapter's head is the table, too, where the two are one.
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
            .load(name, shape, self.kind_at_rest(name, shape)?, Device::Cpu)
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
            .with_lora(self.lora(name)?))
    }

    /// The adapter's part of the linear layer `name`.
    pub(super) fn lora(&self, name: &str) -> Result<Option<Lora>> {
        let pair = self.adapter.and_then(|adapter| adapter.pairs.get(name));
        pair.map(|pair| {
            Ok(Lora {
                a: self.lora_half(name, &pair.a)?,
                b: self.lora_half(name, &pair.b)?,
                scale: pair.scale,
                dropout: self.dropout(name, pair),
            })
        })
        .transpose()
    }

    /// What a pair in training loses of its inputs.
    fn dropout(&self, name: &str, pair: &LoraPair) -> Option<Dropout> {
        let part = self.adapter.map_or(0.0, |adapter| adapter.config.lora_dropout);
        (pair.a.requires_grad() && part > 0.0).then(|| Dropout {
            part,
            module: name.bytes().fold(0, |hash: u64, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
            }),
            seed: self.dropout_seed.clone(),
        })
    }

    /// An adapter's tensor as it is computed with; a copy only where device or dtype ask for it.
    fn lora_half(&self, name: &str, tensor: &Tensor) -> Result<Tensor> {
        if tensor.requires_grad() {
            // Whoever trains it holds it, and a copy would not learn.
            if tensor.device() != self.device || !tensor.is_contiguous() {
                return Err(Error::Device(format!(
                    "the adapter of \"{name}\" is in training and must lie on the model's device, row after row"
                )));
            }
            return Ok(tensor.shallow_clone());
        }
        let at_rest =
            self.device == Device::Cpu && self.kind == Kind::Float && tensor.kind() == Kind::BFloat16;
        let kind = if at_rest { Kind::BFloat16 } else { self.kind };
        Ok(tensor.f_to_device(self.device)?.f_to_kind(kind)?.f_contiguous()?)
    }

    /// The tensor that the adapter's folder holds in place of the base's, as it is computed with on `device`.
    fn replaced(&self, name: &str, shape: &[usize], device: Device) -> Result<Option<Tensor>> {
        let Some((adapter, tensor)) = self
            .adapter
            .and_then(|adapter| Some((adapter, adapter.replaced.get(name)?)))
        else {
            return Ok(None);
        };
        if tensor
            .size()
            .iter()
            .map(|&n| n as usize)
            .ne(shape.iter().copied())
        {
            return Err(Error::checkpoint(
                adapter.file(),
                format!(
                    "holds \"{name}\" of shape {:?} in place of the base's, whose config.json asks for {shape:?}: \
                     the vocabulary was resized; choose the base with that vocabulary",
                    tensor.size()
                ),
            ));
        }
        let at_rest =
            self.device == Device::Cpu && self.kind == Kind::Float && tensor.kind() == Kind::BFloat16;
        let kind = if at_rest { Kind::BFloat16 } else { self.kind };
        Ok(Some(tensor.f_to_device(device)?.f_to_kind(kind)?.f_contiguous()?))
    }

    fn linear_weight(&self, name: &str, shape: [usize; 2]) -> Result<LinearWeight> {
        if let Some(weight) = self.replaced(name, &shape, self.device)? {
            return Ok(LinearWeight::Dense(weight));
        }
        let quantized = match &self.quantization {
            Quantization::None => None,
            Quantization::BitsAndBytes(_) => {
                Nf4Weight::load(self.checkpoint, name, shape, self.device)?.map(LinearWeight::Nf4)
            }
            Quantization::Awq(settings) => {
                AwqWeight::load(self.checkpoint, settings, name, shape, self.device)?.map(LinearWeight::Awq)
            }
        };
        match quantized {
            Some(weight) => Ok(weight),
            None => Ok(LinearWeight::Dense(self.matrix(name, &shape)?)),
        }
    }

    pub(super) fn rms_norm(&self, name: &str, width: usize, eps: f64) -> Result<RmsNorm> {
        Ok(RmsNorm {
            weight: self.tensor(&format!("{name}.weight"), &[width])?,
            eps,
        })
    }
}

/// x / rms(x) · weight, the mean square in f32.
pub(super) struct RmsNorm {
    pub(super) weight: Tensor,
    pub(super) eps: f64,
}

impl RmsNorm {
    /// x: `[.., width]`, same shape and dtype out.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if autograd::tracks(&[x]) {
            return self.recorded(x);
        }
        if cpu::applies(x) {
            return cpu::rms_norm(x, &self.weight, self.eps);
        }
        if x.device().is_cuda() {
            return Ok(self.fused(x)?.0);
        }
        let f = x.f_to_kind(Kind::Float)?;
        let mean_square = f.f_square()?.f_mean_dim(&[-1i64][..], true, Kind::Float)?;
        let normed = f.f_mul(&mean_square.f_add_scalar(self.eps)?.f_rsqrt()?)?;
        Ok(normed.f_to_kind(x.kind())?.f_mul(&self.weight)?)
    }

    /// The norm by libtorch's kernel, and by row what x was multiplied with.
    pub(super) fn fused(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        Ok(x.f_internal_fused_rms_norm(self.weight.size(), Some(&self.weight), self.eps)?)
    }

    /// Adds `delta`, what the layer before made, to the residual x in place; then the norm of x.
    pub(super) fn after(&self, x: &mut Tensor, delta: Option<&Tensor>) -> Result<Tensor> {
        match delta {
            None => self.forward(x),
            Some(delta) if cpu::applies(x) && cpu::applies(delta) && !autograd::tracks(&[x, delta]) => {
                cpu::add_rms_norm(x, delta, &self.weight, self.eps)
            }
            Some(delta) => {
                *x = x.f_add(delta)?;
                self.forward(x)
            }
        }
    }
}

/// down(act(gate(x)) · up(x)).
pub(super) struct Mlp {
    pub(super) gate: Linear,
    pub(super) up: Linear,
    pub(super) down: Linear,
    activation: Activation,
}

impl Mlp {
    pub(super) fn load(
        w: &Weights<'_>,
        name: &str,
        (hidden, intermediate): (usize, usize),
        bias: bool,
        activation: Activation,
    ) -> Result<Self> {
        Ok(Self {
            gate: w.linear(&format!("{name}.gate_proj"), intermediate, hidden, bias)?,
            up: w.linear(&format!("{name}.up_proj"), intermediate, hidden, bias)?,
            down: w.linear(&format!("{name}.down_proj"), hidden, intermediate, bias)?,
            activation,
        })
    }

    /// x: `[rows, hidden]`, same shape out.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (gate, up) = (self.gate.forward(x)?, self.up.forward(x)?);
        if self.activation == Activation::Silu && autograd::tracks(&[&gate, &up]) {
            return self.down.recorded_gated(&gate, &up);
        }
        self.down.forward(&self.gated(gate, &up)?)
    }

    /// act(gate) · up: `[rows, intermediate]`.
    fn gated(&self, gate: Tensor, up: &Tensor) -> Result<Tensor> {
        let gate = match self.activation {
            // With a history it is part of `down`'s node, see [`Self::forward`].
            Activation::Silu => return swiglu(gate, up),
            Activation::Gelu => gate.f_gelu("none")?,
            Activation::GeluTanh => gate.f_gelu("tanh")?,
        };
        Ok(gate.f_mul(up)?)
    }
}

/// silu(gate) · up, without a history; writes into gate.
pub(super) fn swiglu(mut gate: Tensor, up: &Tensor) -> Result<Tensor> {
    if cpu::applies(&gate) && cpu::applies(up) {
        cpu::swiglu(&mut gate, up);
        return Ok(gate);
    }
    if let Some(y) = cuda::gated(&gate, up)? {
        return Ok(y);
    }
    Ok(gate.f_silu_()?.f_mul_(up)?)
}

/// Rotates the first `heads` of each row: x · cos + rotate_half(x) · sin, in f32, back in x's dtype.
///
/// x: `[rows, ..]`, at least `heads.count * heads.dim` values a row; cos, sin: `[rows, heads.dim]`.
pub(super) fn rotate(mut x: Tensor, heads: cpu::Heads, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    if autograd::tracks(&[&x]) {
        return recorded_rotate(&x, heads, cos, sin);
    }
    if cpu::applies(&x) {
        cpu::rotate_halves(&mut x, heads, cos, sin);
        return Ok(x);
    }
    let rotation = cuda::Rotation {
        heads,
        cos,
        sin,
        back: false,
    };
    if rotation.in_place(&x)? {
        return Ok(x);
    }
    let (rows, dim) = (x.size()[0], heads.dim as i64);
    let (count, half) = (heads.count as i64, dim / 2);
    let part = x.f_narrow(1, 0, count * dim)?.f_reshape([rows, count, dim])?;
    let part = part.f_to_kind(cos.kind())?;
    let halves = |x: &Tensor| -> Result<_> { Ok((x.f_narrow(-1, 0, half)?, x.f_narrow(-1, half, half)?)) };
    let rotated = part.f_mul(&cos.f_unsqueeze(1)?)?;
    let (mut low, mut high) = halves(&rotated)?;
    let ((part_low, part_high), (sin_low, sin_high)) = (halves(&part)?, halves(&sin.f_unsqueeze(1)?)?);
    let _ = low.f_sub_(&part_high.f_mul(&sin_low)?)?;
    let _ = high.f_add_(&part_low.f_mul(&sin_high)?)?;
    let mut target = x.f_narrow(1, 0, count * dim)?;
    target.f_copy_(&rotated.f_reshape([rows, -1])?)?;
    Ok(x)
}
