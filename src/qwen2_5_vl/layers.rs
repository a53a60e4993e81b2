//! What both towers are built from.

use tch::{Device, Kind, Tensor};

use super::Activation;
use crate::Result;
use crate::checkpoint::Checkpoint;

/// Where weights come from and what they become.
pub(super) struct Weights<'a> {
    pub(super) checkpoint: &'a Checkpoint,
    /// Dtype of the weights in memory.
    pub(super) kind: Kind,
    pub(super) device: Device,
}

impl Weights<'_> {
    pub(super) fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.checkpoint.load(name, shape, self.kind, self.device)
    }

    pub(super) fn linear(&self, name: &str, out: usize, input: usize, bias: bool) -> Result<Linear> {
        let weight = self.tensor(&format!("{name}.weight"), &[out, input])?;
        let bias = if bias {
            Some(self.tensor(&format!("{name}.bias"), &[out])?)
        } else {
            None
        };
        Ok(Linear { weight, bias })
    }

    pub(super) fn rms_norm(&self, name: &str, width: usize, eps: f64) -> Result<RmsNorm> {
        Ok(RmsNorm {
            weight: self.tensor(&format!("{name}.weight"), &[width])?,
            eps,
        })
    }
}

/// y = x Wᵀ + b.
pub(super) struct Linear {
    /// `[out, in]`
    pub(super) weight: Tensor,
    /// `[out]`
    pub(super) bias: Option<Tensor>,
}

impl Linear {
    /// x: `[.., in]` → `[.., out]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_linear(&self.weight, self.bias.as_ref())?)
    }
}

/// x / rms(x) · weight, the mean square in f32.
pub(super) struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// x: `[.., width]`, same shape and dtype out.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let f = x.f_to_kind(Kind::Float)?;
        let mean_square = f.f_square()?.f_mean_dim(&[-1i64][..], true, Kind::Float)?;
        let normed = f.f_mul(&mean_square.f_add_scalar(self.eps)?.f_rsqrt()?)?;
        Ok(normed.f_to_kind(x.kind())?.f_mul(&self.weight)?)
    }
}

/// down(act(gate(x)) · up(x)).
pub(super) struct Mlp {
    gate: Linear,
    up: Linear,
    down: Linear,
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
        let mut gate = self.gate.forward(x)?;
        let mut gate = match self.activation {
            Activation::Silu => gate.f_silu_()?,
            Activation::Gelu => gate.f_gelu("none")?,
            Activation::GeluTanh => gate.f_gelu("tanh")?,
        };
        self.down.forward(&gate.f_mul_(&self.up.forward(x)?)?)
    }
}

/// Rotates halves: x · cos + rotate_half(x) · sin. x: `[rows, heads, head_dim]`; cos, sin: `[rows, 1, head_dim]`.
pub(super) fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let half = x.size()[2] / 2;
    let turned = Tensor::f_cat(&[x.f_narrow(2, half, half)?.f_neg()?, x.f_narrow(2, 0, half)?], 2)?;
    Ok(x.f_mul(cos)?.f_add(&turned.f_mul(sin)?)?)
}
