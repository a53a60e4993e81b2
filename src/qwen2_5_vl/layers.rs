//! Layers that both towers are built from: RMSNorm, gated MLP, rotary embedding.

use tch::{Kind, Tensor};

use super::{
    Activation, autograd_ops::apply_rotary_tracked, linear::Linear, lora::AdapterIndex, weights::Weights,
};
use crate::Result;
use crate::kernels::{cpu, cuda};
use crate::torch::autograd;

/// x / rms(x) · weight, the mean square in f32.
///
/// Reference: [`Qwen2_5_VLRMSNorm`](https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/models/qwen2_5_vl/modeling_qwen2_5_vl.py#L63-L80).
pub(super) struct RmsNorm {
    pub(super) weight: Tensor,
    pub(super) eps: f64,
}

impl RmsNorm {
    /// x: `[.., width]` → same shape and dtype.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if autograd::tracks(&[x]) {
            return self.forward_tracked(x);
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

    /// libtorch's fused kernel: the norm of x, and the factor of each row.
    pub(super) fn fused(&self, x: &Tensor) -> Result<(Tensor, Tensor)> {
        Ok(x.f_internal_fused_rms_norm(self.weight.size(), Some(&self.weight), self.eps)?)
    }

    /// Adds the previous layer's output `delta` to the residual x in place, then returns the norm of x.
    pub(super) fn add_and_norm(&self, x: &mut Tensor, delta: Option<&Tensor>) -> Result<Tensor> {
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
///
/// Reference:
/// [`Qwen2MLP`](https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/models/qwen2_5_vl/modeling_qwen2_5_vl.py#L574-L587),
/// [`Qwen2_5_VLMLP`](https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/models/qwen2_5_vl/modeling_qwen2_5_vl.py#L83-L94).
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

    /// Bytes of weights that a pass with `adapter` reads.
    pub(super) fn weight_bytes(&self, adapter: AdapterIndex) -> usize {
        let linears = [&self.gate, &self.up, &self.down];
        linears.into_iter().map(|linear| linear.bytes(adapter)).sum()
    }

    /// x: `[rows, hidden]` → same shape.
    pub(super) fn forward(&self, x: &Tensor, adapter: AdapterIndex) -> Result<Tensor> {
        if let Some(width) = self.padded_width(x, adapter) {
            let wide = |linear: &Linear| linear.base_padded(x, [width, x.size()[1]]);
            let inner = self.gated(wide(&self.gate)?, &wide(&self.up)?)?;
            return self.down.base_padded(&inner, [x.size()[1], width]);
        }
        let (gate, up) = (self.gate.forward(x, adapter)?, self.up.forward(x, adapter)?);
        if self.activation == Activation::Silu && autograd::tracks(&[&gate, &up]) {
            return self.down.forward_gated_tracked(&gate, &up, adapter);
        }
        self.down.forward(&self.gated(gate, &up)?, adapter)
    }

    /// Width at which a GPU's 16-bit products are fast, where the intermediate one is not: their rows must begin at multiples of 16 bytes.
    /// The vision tower of the published models has 3420, which triples the time of its products.
    fn padded_width(&self, x: &Tensor, adapter: AdapterIndex) -> Option<i64> {
        /// Values of 16 bytes.
        const ALIGNED: i64 = 8;
        let linears = [&self.gate, &self.up, &self.down];
        let width = self.gate.rows_and_columns().0;
        let pads = x.device().is_cuda()
            && matches!(x.kind(), Kind::BFloat16 | Kind::Half)
            && width % ALIGNED != 0
            && !autograd::tracks(&[x])
            && linears.iter().all(|linear| linear.is_plain(adapter));
        pads.then(|| (width + ALIGNED - 1) / ALIGNED * ALIGNED)
    }

    /// act(gate) · up: `[rows, intermediate]`.
    fn gated(&self, gate: Tensor, up: &Tensor) -> Result<Tensor> {
        let gate = match self.activation {
            // Tracked by autograd it is part of `down`'s node, see [`Self::forward`].
            Activation::Silu => return swiglu(gate, up),
            Activation::Gelu => gate.f_gelu("none")?,
            Activation::GeluTanh => gate.f_gelu("tanh")?,
        };
        Ok(gate.f_mul(up)?)
    }
}

/// silu(gate) · up, not tracked by autograd; overwrites gate.
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

/// Applies rotary embeddings to the first `heads` of each row: x · cos + rotate_half(x) · sin, in f32, back in x's dtype.
///
/// x: `[rows, ..]`, at least `heads.count * heads.dim` values per row, overwritten; cos, sin: `[rows, heads.dim]`.
///
/// Reference: [`apply_rotary_pos_emb`](https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/models/qwen2_5_vl/modeling_qwen2_5_vl.py#L591-L613).
pub(super) fn apply_rotary(mut x: Tensor, heads: cpu::Heads, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    if autograd::tracks(&[&x]) {
        return apply_rotary_tracked(&x, heads, cos, sin);
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
