//! Layers tracked by autograd: each is one node of the graph, which saves only its inputs.
//!
//! The values equal those of the plain forward, up to rounding if a LoRA scale is not a power of two. Intermediate results
//! (dequantized weights, dropped-out inputs, products) are recomputed in the backward pass.

use std::sync::Arc;

use tch::{Kind, Tensor};

use super::{
    layers::{RmsNorm, apply_rotary, swiglu},
    linear::Linear,
    lora::{AdapterIndex, Dropout, Lora},
};
use crate::Result;
use crate::kernels::{cpu, cuda};
use crate::torch::autograd::{attach, detached, rms_norm_backward};

/// The input of a linear layer, as its node saves it for the backward pass.
enum SavedInput {
    /// The input itself.
    Input(Tensor),
    /// silu(gate) · up, recomputed when needed; saves a third of an MLP's activations.
    Gated { gate: Tensor, up: Tensor },
}

impl SavedInput {
    fn value(&self) -> Result<Tensor> {
        match self {
            Self::Input(x) => Ok(x.shallow_clone()),
            Self::Gated { gate, up } => match cuda::gated(gate, up)? {
                Some(y) => Ok(y),
                None => swiglu(gate.f_detach_copy()?, up),
            },
        }
    }

    /// The input's gradient → gradients of the saved tensors.
    fn gradients(&self, gradient: Tensor) -> Result<Vec<Option<Tensor>>> {
        match self {
            Self::Input(_) => Ok(vec![Some(gradient)]),
            Self::Gated { gate, up } => {
                if let Some((for_gate, for_up)) = cuda::gated_backward(&gradient, gate, up)? {
                    return Ok(vec![Some(for_gate), Some(for_up)]);
                }
                let for_up = gradient.f_mul(&gate.f_silu()?)?;
                // In tch the receiver is the input, the argument the gradient.
                let for_gate = gate.f_silu_backward(&gradient.f_mul(up)?)?;
                Ok(vec![Some(for_gate), Some(for_up)])
            }
        }
    }
}

impl Linear {
    /// [`Linear::forward`] of x `[rows, in]`, tracked by autograd.
    pub(super) fn forward_tracked(&self, x: &Tensor, lora: Option<&Lora>) -> Result<Tensor> {
        self.node(&[x], SavedInput::Input(detached(x)), lora)
    }

    /// [`Linear::forward`] of silu(gate) · up, tracked by autograd.
    pub(super) fn forward_gated_tracked(
        &self,
        gate: &Tensor,
        up: &Tensor,
        adapter: AdapterIndex,
    ) -> Result<Tensor> {
        let saved = SavedInput::Gated {
            gate: detached(gate),
            up: detached(up),
        };
        self.node(&[gate, up], saved, self.loras.of(adapter))
    }

    /// Runs the layer under `no_grad` and attaches one autograd node to the output.
    fn node(&self, inputs: &[&Tensor], saved: SavedInput, lora: Option<&Lora>) -> Result<Tensor> {
        let Some(lora) = lora else {
            let y = tch::no_grad(|| self.base(&saved.value()?))?;
            let (weight, scratch) = (Arc::clone(&self.weight), self.scratch.clone());
            return attach(inputs, y, move |gradient, _| {
                let x = weight.values(&scratch, gradient.kind(), |w| Ok(gradient.f_matmul(w)?))?;
                saved.gradients(x)
            });
        };
        let (masters, scale) = (lora.a.kind(), lora.scale);
        let mask = lora.dropout.as_ref().and_then(Dropout::mask);
        let (y, ax, a, b) = tch::no_grad(|| -> Result<_> {
            let x = saved.value()?;
            let (a, b) = lora.scaled_pair(x.kind())?;
            let mut y = self.base(&x)?;
            let ax = Lora::dropped(&x, mask)?.f_matmul(&a.f_tr()?)?;
            let _ = y.f_addmm_(&ax, &b.f_tr()?)?;
            Ok((y, ax, a, b))
        })?;
        let (weight, scratch, count) = (Arc::clone(&self.weight), self.scratch.clone(), inputs.len());
        attach(
            &[inputs, &[&lora.a, &lora.b]].concat(),
            y,
            move |gradient, wanted| {
                let kind = gradient.kind();
                let scaled = gradient.f_matmul(&b)?;
                let for_b = gradient.f_tr()?.f_matmul(&ax)?.f_to_kind(masters)?;
                let for_b = for_b.f_mul_scalar(scale)?;
                let for_a = scaled.f_tr()?.f_matmul(&Lora::dropped(&saved.value()?, mask)?)?;
                let mut gradients = Vec::new();
                if wanted[..count].contains(&true) {
                    let mut x = weight.values(&scratch, kind, |w| Ok(gradient.f_matmul(w)?))?;
                    let x = match mask {
                        Some(mask) => x.f_add_(&mask.apply(&scaled.f_matmul(&a)?)?)?,
                        None => x.f_addmm_(&scaled, &a)?,
                    };
                    gradients = saved.gradients(x)?;
                }
                gradients.resize_with(count, || None);
                gradients.push(Some(for_a.f_to_kind(masters)?));
                gradients.push(Some(for_b));
                Ok(gradients)
            },
        )
    }
}

impl RmsNorm {
    /// [`RmsNorm::forward`], tracked by autograd.
    pub(super) fn forward_tracked(&self, x: &Tensor) -> Result<Tensor> {
        let (kept, weight, eps) = (detached(x), self.weight.shallow_clone(), self.eps);
        if x.device().is_cuda() {
            let (y, factor) = tch::no_grad(|| self.fused(&kept))?;
            return attach(&[x], y, move |gradient, _| {
                Ok(vec![Some(rms_norm_backward(gradient, &kept, &factor, &weight)?)])
            });
        }
        let y = tch::no_grad(|| self.forward(&kept))?;
        attach(&[x], y, move |gradient, _| {
            if cpu::applies(&kept) && cpu::applies(gradient) {
                let made = cpu::rms_norm_backward(&kept, gradient, &weight, eps)?;
                return Ok(vec![Some(made)]);
            }
            let (x, gradient) = (kept.f_to_kind(Kind::Float)?, gradient.f_to_kind(Kind::Float)?);
            let squares = x.f_square()?.f_mean_dim(&[-1i64][..], true, Kind::Float)?;
            let factor = squares.f_add_scalar(eps)?.f_rsqrt()?;
            let weighted = gradient.f_mul(&weight.f_to_kind(Kind::Float)?)?;
            let along = weighted.f_mul(&x)?.f_mean_dim(&[-1i64][..], true, Kind::Float)?;
            let along = along.f_mul(&factor)?.f_mul(&factor)?;
            let made = weighted.f_sub(&x.f_mul(&along)?)?.f_mul_(&factor)?;
            Ok(vec![Some(made.f_to_kind(kept.kind())?)])
        })
    }
}

/// [`apply_rotary`], tracked by autograd. Overwrites x, which no node may have saved: linear layers save only their inputs.
pub(super) fn apply_rotary_tracked(
    x: &Tensor,
    heads: cpu::Heads,
    cos: &Tensor,
    sin: &Tensor,
) -> Result<Tensor> {
    let y = tch::no_grad(|| apply_rotary(detached(x), heads, cos, sin))?;
    let (cos, sin) = (cos.shallow_clone(), sin.shallow_clone());
    attach(&[x], y, move |gradient, _| {
        let gradient = gradient.f_contiguous()?;
        let rotation = cuda::Rotation {
            heads,
            cos: &cos,
            sin: &sin,
            back: true,
        };
        let made = match rotation.of(&gradient)? {
            Some(made) => made,
            None => apply_rotary(gradient.f_detach_copy()?, heads, &cos, &sin.f_neg()?)?,
        };
        Ok(vec![Some(made)])
    })
}
