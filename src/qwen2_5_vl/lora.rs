//! LoRA: y = W x + scale · B(A x), unmerged; the training forward and backward are in [`autograd_ops`](super::autograd_ops).

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tch::{Kind, Tensor};

use super::linear::dense;
use crate::Result;
use crate::kernels::cpu::{self, Matrix, RowProduct};
use crate::torch::autograd::detached;

/// Which adapter a pass applies: an index into [`ModelOptions::adapters`](super::ModelOptions); `None`: the base alone.
pub type AdapterIndex = Option<usize>;

/// The first adapter; of a model without adapters, the base.
pub const FIRST_ADAPTER: AdapterIndex = Some(0);

/// LoRA pairs of one linear layer, one entry per adapter of the model.
pub(super) struct Loras(pub(super) Vec<Option<Lora>>);

impl Loras {
    /// The pair of `adapter`, if that adapter has this layer.
    pub(super) fn of(&self, adapter: AdapterIndex) -> Option<&Lora> {
        self.0.get(adapter?)?.as_ref()
    }

    /// All pairs.
    pub(super) fn all(&self) -> impl Iterator<Item = &Lora> {
        self.0.iter().flatten()
    }
}

/// LoRA pair of a linear layer: adds scale · B(A x) to its output.
///
/// Shares the adapter's tensors if they are on the model's device in a usable dtype; while training it always does.
///
/// Reference: [`lora.Linear.forward`](https://github.com/huggingface/peft/blob/a5526d27a9d47d1e8264d5e1b1f96c0fdc79464e/src/peft/tuners/lora/layer.py#L1030-L1071).
pub(super) struct Lora {
    /// `[rank, in]`.
    pub(super) a: Tensor,
    /// `[out, rank]`.
    pub(super) b: Tensor,
    pub(super) scale: f64,
    /// LoRA input dropout (training only).
    pub(super) dropout: Option<Dropout>,
}

impl Lora {
    /// The inference forward: adds scale · B(A x) for x `[rows, in]` to y `[rows, out]` in place, in their dtype.
    pub(super) fn add(&self, mut y: Tensor, x: &Tensor) -> Result<Tensor> {
        let (a, b) = (self.a.f_to_kind(x.kind())?, self.b.f_to_kind(x.kind())?);
        let ax = x.f_linear(&a, None::<&Tensor>)?.f_mul_scalar(self.scale)?;
        Ok(y.f_addmm_(&ax, &b.f_tr()?)?)
    }

    /// Whether autograd tracks it.
    pub(super) fn is_trained(&self) -> bool {
        self.dropout.is_some() || self.a.requires_grad() || self.b.requires_grad()
    }

    /// A and scale · B in `kind`, detached. Scaling B costs the same for any number of rows.
    pub(super) fn scaled_pair(&self, kind: Kind) -> Result<(Tensor, Tensor)> {
        let (a, b) = (detached(&self.a), detached(&self.b));
        Ok((a.f_to_kind(kind)?, b.f_mul_scalar(self.scale)?.f_to_kind(kind)?))
    }

    /// The input of A: x with dropout.
    pub(super) fn dropped(x: &Tensor, mask: Option<DropoutMask>) -> Result<Tensor> {
        match mask {
            Some(mask) => mask.apply(x),
            None => Ok(x.shallow_clone()),
        }
    }

    /// A view for one f32 row at a time on the CPU, shared by threads.
    pub(super) fn rows(&self) -> LoraRows<'_> {
        LoraRows {
            a: dense(&self.a),
            b: dense(&self.b),
            scale: self.scale as f32,
        }
    }
}

/// A [`Lora`] whose rows are divided among threads.
pub(super) struct LoraRows<'a> {
    a: Matrix<'a>,
    b: Matrix<'a>,
    scale: f32,
}

/// Output rows of B per block of [`LoraRows::add_b`].
const BLOCK_ROWS: usize = 64;

impl LoraRows<'_> {
    /// The rank.
    pub(super) fn rank(&self) -> usize {
        self.a.rows()
    }

    /// `out[i] = scale · A[rows.start + i] · x`.
    pub(super) fn ax(&self, x: &[f32], rows: Range<usize>, out: &mut [f32]) {
        self.a.product(x, rows, out);
        out.iter_mut().for_each(|value| *value *= self.scale);
    }

    /// `out[i] += B[start + i] · ax`; `ax` of all ranks.
    pub(super) fn add_b(&self, ax: &[f32], start: usize, out: &mut [f32]) {
        let mut part = [0.0; BLOCK_ROWS];
        for (i, out) in out.chunks_mut(BLOCK_ROWS).enumerate() {
            let (start, part) = (start + i * BLOCK_ROWS, &mut part[..out.len()]);
            self.b.product(ax, start..start + part.len(), part);
            out.iter_mut().zip(part).for_each(|(out, part)| *out += *part);
        }
    }
}

/// Seed of all dropout masks, shared by all layers; training sets it before each forward pass. 0 disables dropout.
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

/// LoRA input dropout of one module.
pub(super) struct Dropout {
    /// Dropout probability.
    pub(super) p: f64,
    /// Hash of the module's name.
    pub(super) module: u64,
    pub(super) seed: DropoutSeed,
}

/// A dropout mask, given by its seed: the backward pass recomputes the same mask.
#[derive(Clone, Copy)]
pub(super) struct DropoutMask {
    seed: u64,
    p: f64,
}

impl Dropout {
    /// The mask of this forward pass; `None` if nothing is dropped.
    pub(super) fn mask(&self) -> Option<DropoutMask> {
        let seed = self.seed.get();
        (seed != 0 && self.p > 0.0).then(|| DropoutMask {
            seed: splitmix64(seed ^ splitmix64(self.module)),
            p: self.p,
        })
    }
}

impl DropoutMask {
    /// x with dropped values zero and the others divided by 1 - p.
    pub(super) fn apply(self, x: &Tensor) -> Result<Tensor> {
        let x = x.f_contiguous()?;
        if cpu::applies(&x) {
            return cpu::dropout(&x, self.seed, self.p);
        }
        // Seeded per mask, so that it does not depend on earlier random numbers.
        tch::manual_seed(self.seed as i64);
        let keep = 1.0 - self.p;
        Ok(x.f_empty_like()?
            .f_bernoulli_float_(keep)?
            .f_div_scalar_(keep)?
            .f_mul_(&x)?)
    }
}

/// One step of SplitMix64: similar seeds give unrelated results.
fn splitmix64(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
