//! Linear layers over weights as they rest in memory.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use half::bf16;
use tch::{Device, Kind, Tensor};

use super::recorded::Dropout;
use crate::Result;
use crate::kernels::cpu::{CodedMatrix, GroupedMatrix, Matrix, RowProduct};
use crate::quant::{awq::AwqWeight, nf4::Nf4Weight};
use crate::torch::autograd;

/// A weight matrix `[out, in]` at rest.
pub(super) enum LinearWeight {
    /// Dense, in the dtype of the computation or in bf16, whose widening to f32 is exact.
    Dense(Tensor),
    /// bitsandbytes' four bits.
    Nf4(Nf4Weight),
    /// AWQ's four bits.
    Awq(AwqWeight),
}

// SAFETY: weights at rest are only read, which libtorch allows any thread, and its reference counts are atomic.
unsafe impl Sync for LinearWeight {}

impl LinearWeight {
    /// Hands the values, `[out, in]` of `kind`, to `work`; restored or widened for it alone where they rest in another form.
    pub(super) fn values<T>(
        &self,
        scratch: &Scratch,
        kind: Kind,
        work: impl FnOnce(&Tensor) -> Result<T>,
    ) -> Result<T> {
        match self {
            Self::Dense(w) if w.kind() == kind => work(w),
            Self::Dense(w) => scratch.with(w.size2()?, |wide| Ok(wide.f_copy_(w)?), work),
            Self::Awq(w) => scratch.with(w.shape(), |values| w.dequantize_into(values), work),
            Self::Nf4(w) => scratch.with(w.shape(), |values| w.dequantize_into(values), work),
        }
    }
}

/// A buffer in the dtype of the computation, for weights at rest in another form: one matrix at a time, reused by all.
#[derive(Clone)]
pub(super) struct Scratch {
    buffer: Arc<Mutex<Tensor>>,
    kind: Kind,
}

impl Scratch {
    pub(super) fn new(kind: Kind, device: Device) -> Result<Self> {
        let buffer = Tensor::f_empty([0], (kind, device))?;
        Ok(Self {
            buffer: Arc::new(Mutex::new(buffer)),
            kind,
        })
    }

    /// Hands `[out, in]` of the buffer to `fill`, then to `work`.
    fn with<T>(
        &self,
        shape: (i64, i64),
        fill: impl FnOnce(&mut Tensor) -> Result<()>,
        work: impl FnOnce(&Tensor) -> Result<T>,
    ) -> Result<T> {
        let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        let needed = shape.0 * shape.1;
        if buffer.size()[0] < needed {
            // The old one goes before the new one comes.
            *buffer = Tensor::f_empty([0], (self.kind, buffer.device()))?;
            *buffer = Tensor::f_empty([needed], (self.kind, buffer.device()))?;
        }
        let mut matrix = buffer.f_narrow(0, 0, needed)?.f_view(shape)?;
        fill(&mut matrix)?;
        work(&matrix)
    }
}

/// Rows that linear layers read, by the layer's name: what a quantization is judged on.
pub struct InputSamples {
    rows: i64,
    passes: i64,
    kept: Mutex<BTreeMap<String, Sample>>,
}

/// Rows of one layer's inputs. All of their room is taken at the first pass: small tensors that stay, taken among large ones
/// that go, pass after pass, would leave the heap full of holes.
struct Sample {
    /// `[rows · passes, in]`.
    room: Tensor,
    filled: i64,
}

impl InputSamples {
    /// Keeps up to `rows` of each input, evenly spread, in each of `passes` passes.
    pub fn new(rows: i64, passes: usize) -> Self {
        Self {
            rows,
            passes: passes as i64,
            kept: Mutex::default(),
        }
    }

    /// What was kept, `[rows, in]` of each layer; it is gone then.
    pub fn take(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let joined = std::mem::take(&mut *kept).into_iter();
        joined
            .map(|(name, sample)| Ok((name, sample.room.f_narrow(0, 0, sample.filled)?)))
            .collect()
    }

    fn keep(&self, name: &str, x: &Tensor) -> Result<()> {
        let x = x.f_flatten(0, -2)?;
        let step = (x.size()[0] + self.rows - 1) / self.rows;
        let rows = x.f_slice(0, None, None, step.max(1))?;
        let (count, width) = rows.size2()?;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if !kept.contains_key(name) {
            let room = Tensor::f_empty([self.rows * self.passes, width], (x.kind(), x.device()))?;
            kept.insert(name.to_owned(), Sample { room, filled: 0 });
        }
        if let Some(sample) = kept.get_mut(name) {
            let count = count.min(self.rows * self.passes - sample.filled);
            let mut place = sample.room.f_narrow(0, sample.filled, count)?;
            place.f_copy_(&rows.f_narrow(0, 0, count)?)?;
            sample.filled += count;
        }
        Ok(())
    }
}

/// An adapter's part of a linear layer: scale · B(A x).
///
/// The tensors are the adapter's own where it is on the device in a dtype that is computed with; so is what trains them.
pub(super) struct Lora {
    /// `[rank, in]`.
    pub(super) a: Tensor,
    /// `[out, rank]`.
    pub(super) b: Tensor,
    pub(super) scale: f64,
    /// What A's inputs lose in training.
    pub(super) dropout: Option<Dropout>,
}

impl Lora {
    /// Adds its part for x `[rows, in]` to y `[rows, out]` in place, in their dtype.
    fn add(&self, mut y: Tensor, x: &Tensor) -> Result<Tensor> {
        let (a, b) = (self.a.f_to_kind(x.kind())?, self.b.f_to_kind(x.kind())?);
        let low = x.f_linear(&a, None::<&Tensor>)?.f_mul_scalar(self.scale)?;
        Ok(y.f_addmm_(&low, &b.f_tr()?)?)
    }
}

/// y = x Wᵀ + b, and an adapter's part.
pub(super) struct Linear {
    probe: Option<(String, Arc<InputSamples>)>,
    /// Shared with the graph of a training.
    pub(super) weight: Arc<LinearWeight>,
    /// `[out]`, in the dtype of the computation.
    bias: Option<Tensor>,
    pub(super) lora: Option<Lora>,
    pub(super) scratch: Scratch,
}

impl Linear {
    pub(super) fn new(weight: LinearWeight, bias: Option<Tensor>, scratch: &Scratch) -> Self {
        Self {
            probe: None,
            weight: Arc::new(weight),
            bias,
            lora: None,
            scratch: scratch.clone(),
        }
    }

    /// Keeps some of what it reads as `name`.
    pub(super) fn sampled(mut self, name: &str, samples: Option<&Arc<InputSamples>>) -> Self {
        self.probe = samples.map(|samples| (name.to_owned(), Arc::clone(samples)));
        self
    }

    /// This layer with an adapter's part.
    pub(super) fn with_lora(mut self, lora: Option<Lora>) -> Self {
        self.lora = lora;
        self
    }

    /// x: `[rows, in]` → `[rows, out]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if let Some((name, samples)) = &self.probe {
            samples.keep(name, x)?;
        }
        if self.trains(x) {
            return self.recorded(x);
        }
        let y = self.base(x)?;
        match &self.lora {
            Some(lora) => lora.add(y, x),
            None => Ok(y),
        }
    }

    /// Whether a backward pass will come, or a training asks for the values of a pass that will have one.
    fn trains(&self, x: &Tensor) -> bool {
        match &self.lora {
            Some(lora) => lora.dropout.is_some() || autograd::tracks(&[x, &lora.a, &lora.b]),
            None => autograd::tracks(&[x]),
        }
    }

    /// W x + b.
    pub(super) fn base(&self, x: &Tensor) -> Result<Tensor> {
        let bias = self.bias.as_ref();
        if let LinearWeight::Nf4(w) = &*self.weight
            && let Some(y) = w.product(x, bias)?
        {
            return Ok(y);
        }
        self.weight
            .values(&self.scratch, x.kind(), |w| Ok(x.f_linear(w, bias)?))
    }

    /// This layer for one row at a time on the CPU, in f32; threads share it.
    pub(super) fn rows(&self) -> LinearRows<'_> {
        LinearRows {
            weight: match &*self.weight {
                LinearWeight::Dense(w) => Rows::Dense(dense(w)),
                LinearWeight::Nf4(w) => Rows::Nf4(w.matrix()),
                LinearWeight::Awq(w) => Rows::Awq(w.matrix()),
            },
            bias: self.bias.as_ref().map(floats),
            lora: self.lora.as_ref().map(|lora| LoraRows {
                a: dense(&lora.a),
                b: dense(&lora.b),
                scale: lora.scale as f32,
            }),
        }
    }

    /// Rank of the adapter's part; 0 without one.
    pub(super) fn rank(&self) -> usize {
        self.lora.as_ref().map_or(0, |lora| lora.a.size()[0] as usize)
    }
}

/// A [`Linear`] whose rows threads compute apart.
pub(super) struct LinearRows<'a> {
    weight: Rows<'a>,
    bias: Option<&'a [f32]>,
    lora: Option<LoraRows<'a>>,
}

struct LoraRows<'a> {
    a: Matrix<'a>,
    b: Matrix<'a>,
    scale: f32,
}

/// Rows whose adapter's part is computed at once.
const LORA_ROWS: usize = 64;

enum Rows<'a> {
    Dense(Matrix<'a>),
    Nf4(CodedMatrix<'a>),
    Awq(GroupedMatrix<'a>),
}

impl LinearRows<'_> {
    /// Rank of the adapter's part; 0 without one.
    pub(super) fn rank(&self) -> usize {
        self.lora.as_ref().map_or(0, |lora| lora.a.rows())
    }

    /// `out[i] = scale · A[rows.start + i] · x`: what [`Self::product`] wants all of as `low`.
    pub(super) fn reduce(&self, x: &[f32], rows: Range<usize>, out: &mut [f32]) {
        if let Some(lora) = &self.lora {
            lora.a.product(x, rows, out);
            out.iter_mut().for_each(|value| *value *= lora.scale);
        }
    }

    /// `out[i] = W[rows.start + i] · x + b[rows.start + i]`, and the adapter's part.
    pub(super) fn product(&self, x: &[f32], low: &[f32], rows: Range<usize>, out: &mut [f32]) {
        match &self.weight {
            Rows::Dense(matrix) => matrix.product(x, rows.clone(), out),
            Rows::Nf4(matrix) => matrix.product(x, rows.clone(), out),
            Rows::Awq(matrix) => matrix.product(x, rows.clone(), out),
        }
        if let Some(bias) = self.bias {
            for (out, bias) in out.iter_mut().zip(&bias[rows.clone()]) {
                *out += bias;
            }
        }
        if let Some(lora) = &self.lora {
            let mut part = [0.0; LORA_ROWS];
            for (i, out) in out.chunks_mut(LORA_ROWS).enumerate() {
                let (start, part) = (rows.start + i * LORA_ROWS, &mut part[..out.len()]);
                lora.b.product(low, start..start + part.len(), part);
                out.iter_mut().zip(part).for_each(|(out, part)| *out += *part);
            }
        }
    }
}

/// A dense weight's values: f32 or bf16, contiguous, on the CPU.
fn dense(weight: &Tensor) -> Matrix<'_> {
    let columns = weight.size()[1] as usize;
    match weight.kind() {
        Kind::BFloat16 => Matrix::Bf16(values::<bf16>(weight, Kind::BFloat16), columns),
        _ => Matrix::F32(floats(weight), columns),
    }
}

/// The values of an f32 tensor on the CPU.
pub(super) fn floats(tensor: &Tensor) -> &[f32] {
    values(tensor, Kind::Float)
}

fn values<T>(tensor: &Tensor, kind: Kind) -> &[T] {
    assert!(tensor.kind() == kind && tensor.device() == Device::Cpu && tensor.is_contiguous());
    if tensor.numel() == 0 {
        return &[];
    }
    // SAFETY: contiguous, of T's dtype (callers pair them), on the CPU; it lives as long as the slice, and weights are
    // not written to.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), tensor.numel()) }
}
