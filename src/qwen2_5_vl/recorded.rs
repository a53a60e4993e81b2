//! Layers as training computes them: each is one node of autograd's graph, which keeps its inputs and nothing else.
//!
//! The values are those of the plain path, to the rounding where an adapter's scale is not a power of two. What a layer made
//! on the way (restored weights, dropped inputs, products) is made again in the backward pass.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tch::{Kind, Tensor};

use super::{
    layers::{RmsNorm, rotate, swiglu},
    linear::{Linear, Lora},
};
use crate::Result;
use crate::kernels::{cpu, cuda};
use crate::torch::autograd::{attach, detached, rms_norm_backward};

/// Which inputs of an adapter's A are dropped: a function of a seed, which a training sets before each pass, and the
/// module. 0 drops nothing.
#[derive(Clone, Default)]
pub(super) struct DropoutSeed(Arc<AtomicU64>);

impl DropoutSeed {
    pub(super) fn set(&self, seed: u64) {
        self.0.store(seed, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The dropout of one module.
pub(super) struct Dropout {
    /// The part that is dropped.
    pub(super) part: f64,
    /// Tells modules apart.
    pub(super) module: u64,
    pub(super) seed: DropoutSeed,
}

/// One drawing of a [`Dropout`]: gives the same mask as often as it is asked.
#[derive(Clone, Copy)]
struct Mask {
    seed: u64,
    part: f64,
}

impl Dropout {
    fn now(&self) -> Option<Mask> {
        let seed = self.seed.get();
        (seed != 0 && self.part > 0.0).then(|| Mask {
            seed: mixed(seed ^ mixed(self.module)),
            part: self.part,
        })
    }
}

impl Mask {
    /// x with some values zero and the others scaled up.
    fn applied(self, x: &Tensor) -> Result<Tensor> {
        let x = x.f_contiguous()?;
        if cpu::applies(&x) {
            return cpu::dropout(&x, self.seed, self.part);
        }
        // Every mask has its own seed: nothing depends on what was drawn before.
        tch::manual_seed(self.seed as i64);
        let keep = 1.0 - self.part;
        Ok(x.f_empty_like()?
            .f_bernoulli_float_(keep)?
            .f_div_scalar_(keep)?
            .f_mul_(&x)?)
    }
}

/// SplitMix64's finalizer: near seeds become far ones.
fn mixed(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

impl Lora {
    /// A and scale · B as they are computed with, without a history: what the scale costs depends on no number of rows then.
    fn halves(&self, kind: Kind) -> Result<(Tensor, Tensor)> {
        let (a, b) = (detached(&self.a), detached(&self.b));
        Ok((a.f_to_kind(kind)?, b.f_mul_scalar(self.scale)?.f_to_kind(kind)?))
    }

    /// x as A sees it.
    fn dropped(x: &Tensor, mask: Option<Mask>) -> Result<Tensor> {
        match mask {
            Some(mask) => mask.applied(x),
            None => Ok(x.shallow_clone()),
        }
    }
}

/// What a linear layer reads, as its node keeps it.
enum Kept {
    /// The input itself.
    Input(Tensor),
    /// silu(gate) · up, made again when it is wanted: a third of what an MLP would keep.
    Gated { gate: Tensor, up: Tensor },
}

impl Kept {
    fn value(&self) -> Result<Tensor> {
        match self {
            Self::Input(x) => Ok(x.shallow_clone()),
            Self::Gated { gate, up } => match cuda::gated(gate, up)? {
                Some(y) => Ok(y),
                None => swiglu(gate.f_detach_copy()?, up),
            },
        }
    }

    /// The value's gradient → those of what is kept.
    fn gradients(&self, gradient: Tensor) -> Result<Vec<Option<Tensor>>> {
        match self {
            Self::Input(_) => Ok(vec![Some(gradient)]),
            Self::Gated { gate, up } => {
                if let Some((for_gate, for_up)) = cuda::gated_backward(&gradient, gate, up)? {
                    return Ok(vec![Some(for_gate), Some(for_up)]);
                }
                let for_up = gradient.f_mul(&gate.f_silu()?)?;
                // The receiver is the input.
                let for_gate = gate.f_silu_backward(&gradient.f_mul(up)?)?;
                Ok(vec![Some(for_gate), Some(for_up)])
            }
        }
    }
}

impl Linear {
    /// [`Linear::forward`] of x `[rows, in]` with a history.
    pub(super) fn recorded(&self, x: &Tensor) -> Result<Tensor> {
        self.recorded_of(&[x], Kept::Input(detached(x)))
    }

    /// [`Linear::forward`] of silu(gate) · up with a history.
    pub(super) fn recorded_gated(&self, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
        let kept = Kept::Gated {
            gate: detached(gate),
            up: detached(up),
        };
        self.recorded_of(&[gate, up], kept)
    }

    fn recorded_of(&self, inputs: &[&Tensor], kept: Kept) -> Result<Tensor> {
        let Some(lora) = &self.lora else {
            let y = tch::no_grad(|| self.base(&kept.value()?))?;
            let (weight, scratch) = (Arc::clone(&self.weight), self.scratch.clone());
            return attach(inputs, y, move |gradient, _| {
                let x = weight.values(&scratch, gradient.kind(), |w| Ok(gradient.f_matmul(w)?))?;
                kept.gradients(x)
            });
        };
        let (masters, scale) = (lora.a.kind(), lora.scale);
        let mask = lora.dropout.as_ref().and_then(Dropout::now);
        let (y, low, a, b) = tch::no_grad(|| -> Result<_> {
            let x = kept.value()?;
            let (a, b) = lora.halves(x.kind())?;
            let mut y = self.base(&x)?;
            let low = Lora::dropped(&x, mask)?.f_matmul(&a.f_tr()?)?;
            let _ = y.f_addmm_(&low, &b.f_tr()?)?;
            Ok((y, low, a, b))
        })?;
        let (weight, scratch, count) = (Arc::clone(&self.weight), self.scratch.clone(), inputs.len());
        attach(
            &[inputs, &[&lora.a, &lora.b]].concat(),
            y,
            move |gradient, wanted| {
                let kind = gradient.kind();
                let scaled = gradient.f_matmul(&b)?;
                let for_b = gradient.f_tr()?.f_matmul(&low)?.f_to_kind(masters)?;
                let for_b = for_b.f_mul_scalar(scale)?;
                let for_a = scaled.f_tr()?.f_matmul(&Lora::dropped(&kept.value()?, mask)?)?;
                let mut gradients = Vec::new();
                if wanted[..count].contains(&true) {
                    let mut x = weight.values(&scratch, kind, |w| Ok(gradient.f_matmul(w)?))?;
                    let x = match mask {
                        Some(mask) => x.f_add_(&mask.applied(&scaled.f_matmul(&a)?)?)?,
                        None => x.f_addmm_(&scaled, &a)?,
                    };
                    gradients = kept.gradients(x)?;
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
    /// [`RmsNorm::forward`] with a history.
    pub(super) fn recorded(&self, x: &Tensor) -> Result<Tensor> {
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

/// [`rotate`] with a history. Writes into x, which nobody may have kept: linear layers keep their inputs alone.
pub(super) fn recorded_rotate(x: &Tensor, heads: cpu::Heads, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let y = tch::no_grad(|| rotate(detached(x), heads, cos, sin))?;
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
            None => rotate(gradient.f_detach_copy()?, heads, &cos, &sin.f_neg()?)?,
        };
        Ok(vec![Some(made)])
    })
}
