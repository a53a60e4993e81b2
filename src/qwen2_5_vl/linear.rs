//! Linear layers over dense, NF4 and AWQ weights, with the LoRA pairs of any number of adapters.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use half::bf16;
use tch::{Device, Kind, Tensor};

use super::input_samples::InputSamples;
use super::lora::{AdapterIndex, Lora, LoraRows, Loras};
use crate::Result;
use crate::kernels::cpu::{CodedMatrix, GroupedMatrix, Matrix, RowProduct};
use crate::quant::awq::AwqWeight;
use crate::quant::nf4::Nf4Weight;
use crate::quant::tiles::TiledWeight;
use crate::torch::autograd;

/// A weight matrix `[out, in]` in its storage format.
pub(super) enum LinearWeight {
    /// Dense, in the dtype of the computation, or bf16 for a computation in f32.
    Dense(Tensor),
    /// NF4 or FP4 of bitsandbytes.
    Nf4(Nf4Weight),
    /// Any of the four-bit formats in the tiles of the GPU's decode step.
    Tiled(TiledWeight),
    /// AWQ.
    Awq(AwqWeight),
}

// SAFETY: weights are only read, which libtorch allows on any thread, and its reference counts are atomic.
unsafe impl Sync for LinearWeight {}

impl LinearWeight {
    /// Calls `work` with the values, `[out, in]` of `kind`, dequantized or widened into `scratch` if they are stored otherwise.
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
            Self::Tiled(w) => scratch.with(w.shape(), |values| w.dequantize_into(values), work),
        }
    }
}

/// Scratch buffer in the dtype of the computation for one dequantized weight matrix at a time; shared by all layers.
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

    /// Lets `fill` write `[out, in]` of the buffer, then calls `work` with it.
    fn with<T>(
        &self,
        shape: (i64, i64),
        fill: impl FnOnce(&mut Tensor) -> Result<()>,
        work: impl FnOnce(&Tensor) -> Result<T>,
    ) -> Result<T> {
        let mut buffer = self.buffer.lock().unwrap_or_else(PoisonError::into_inner);
        let needed = shape.0 * shape.1;
        if buffer.size()[0] < needed {
            // Frees the old buffer before allocating the new one.
            *buffer = Tensor::f_empty([0], (self.kind, buffer.device()))?;
            *buffer = Tensor::f_empty([needed], (self.kind, buffer.device()))?;
        }
        let mut matrix = buffer.f_narrow(0, 0, needed)?.f_view(shape)?;
        fill(&mut matrix)?;
        work(&matrix)
    }
}

/// y = x Wᵀ + b, plus the scale · B(A x) of the adapter that a pass chooses.
pub(super) struct Linear {
    /// Records the inputs under this layer name.
    samples: Option<(String, Arc<InputSamples>)>,
    /// Shared with autograd's graph.
    pub(super) weight: Arc<LinearWeight>,
    /// `[out]`, in the dtype of the computation.
    pub(super) bias: Option<Tensor>,
    pub(super) loras: Loras,
    pub(super) scratch: Scratch,
}

impl Linear {
    pub(super) fn new(weight: LinearWeight, bias: Option<Tensor>, scratch: &Scratch) -> Self {
        Self {
            samples: None,
            weight: Arc::new(weight),
            bias,
            loras: Loras(Vec::new()),
            scratch: scratch.clone(),
        }
    }

    /// This layer with its inputs recorded as `name`.
    pub(super) fn sampled(mut self, name: &str, samples: Option<&Arc<InputSamples>>) -> Self {
        self.samples = samples.map(|samples| (name.to_owned(), Arc::clone(samples)));
        self
    }

    /// This layer with the adapters' LoRA pairs.
    pub(super) fn with_loras(mut self, loras: Loras) -> Self {
        self.loras = loras;
        self
    }

    /// x: `[rows, in]` → `[rows, out]`.
    pub(super) fn forward(&self, x: &Tensor, adapter: AdapterIndex) -> Result<Tensor> {
        if let Some((name, samples)) = &self.samples {
            samples.keep(name, x)?;
        }
        let lora = self.loras.of(adapter);
        if is_tracked(x, lora) {
            return self.forward_tracked(x, lora);
        }
        let y = self.base(x)?;
        match lora {
            Some(lora) => lora.add(y, x),
            None => Ok(y),
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

    /// W x + b with zeros beside W, up to `[out, in]`: x has zeros in its further columns, and the result in its.
    pub(super) fn base_padded(&self, x: &Tensor, [out, columns]: [i64; 2]) -> Result<Tensor> {
        let (rows, own) = self.rows_and_columns();
        let bias = self.bias.as_ref();
        let bias = bias
            .map(|bias| bias.f_constant_pad_nd([0, out - rows]))
            .transpose()?;
        self.weight.values(&self.scratch, x.kind(), |w| {
            let w = w.f_constant_pad_nd([0, columns - own, 0, out - rows])?;
            Ok(x.f_linear(&w, bias.as_ref())?)
        })
    }

    /// Shape of the weight, `(out, in)`.
    pub(super) fn rows_and_columns(&self) -> (i64, i64) {
        match &*self.weight {
            LinearWeight::Dense(w) => (w.size()[0], w.size()[1]),
            LinearWeight::Nf4(w) => w.shape(),
            LinearWeight::Tiled(w) => w.shape(),
            LinearWeight::Awq(w) => w.shape(),
        }
    }

    /// Whether a pass with `adapter` is W x + b alone, of which nothing is recorded.
    pub(super) fn is_plain(&self, adapter: AdapterIndex) -> bool {
        self.samples.is_none() && self.loras.of(adapter).is_none()
    }

    /// A view for one f32 row at a time on the CPU, shared by threads.
    pub(super) fn rows(&self, adapter: AdapterIndex) -> LinearRows<'_> {
        LinearRows {
            weight: match &*self.weight {
                LinearWeight::Dense(w) => Rows::Dense(dense(w)),
                LinearWeight::Nf4(w) => Rows::Nf4(w.matrix()),
                LinearWeight::Tiled(_) => unreachable!("tiles are made on GPUs only"),
                LinearWeight::Awq(w) => Rows::Awq(w.matrix()),
            },
            bias: self.bias.as_ref().map(floats),
            lora: self.loras.of(adapter).map(Lora::rows),
        }
    }

    /// Bytes of weight, bias and LoRA pair that a pass with `adapter` reads.
    pub(super) fn bytes(&self, adapter: AdapterIndex) -> usize {
        let weight = match &*self.weight {
            LinearWeight::Dense(w) => tensor_bytes(w),
            LinearWeight::Nf4(w) => w.bytes(),
            LinearWeight::Tiled(w) => w.bytes(),
            LinearWeight::Awq(w) => w.bytes(),
        };
        let lora = self.loras.of(adapter);
        let lora = lora.map_or(0, |lora| tensor_bytes(&lora.a) + tensor_bytes(&lora.b));
        weight + self.bias.as_ref().map_or(0, tensor_bytes) + lora
    }

    /// LoRA rank of `adapter`; 0 if it does not have this layer.
    pub(super) fn rank(&self, adapter: AdapterIndex) -> usize {
        self.loras.of(adapter).map_or(0, |lora| lora.a.size()[0] as usize)
    }
}

/// Whether autograd tracks the output, or a training with dropout runs a pass under `no_grad` that it recomputes later.
fn is_tracked(x: &Tensor, lora: Option<&Lora>) -> bool {
    match lora {
        Some(lora) => lora.dropout.is_some() || autograd::tracks(&[x, &lora.a, &lora.b]),
        None => autograd::tracks(&[x]),
    }
}

/// A [`Linear`] whose output rows are divided among threads.
pub(super) struct LinearRows<'a> {
    weight: Rows<'a>,
    bias: Option<&'a [f32]>,
    lora: Option<LoraRows<'a>>,
}

enum Rows<'a> {
    Dense(Matrix<'a>),
    Nf4(CodedMatrix<'a>),
    Awq(GroupedMatrix<'a>),
}

impl LinearRows<'_> {
    /// LoRA rank; 0 without an adapter.
    pub(super) fn rank(&self) -> usize {
        self.lora.as_ref().map_or(0, LoraRows::rank)
    }

    /// `out[i] = scale · A[rows.start + i] · x`: rows of the `lora_ax` of [`Self::product`].
    pub(super) fn lora_ax(&self, x: &[f32], rows: Range<usize>, out: &mut [f32]) {
        if let Some(lora) = &self.lora {
            lora.ax(x, rows, out);
        }
    }

    /// `out[i] = W[rows.start + i] · x + b[rows.start + i]`, plus LoRA's part, whose A·x of all ranks is `lora_ax`.
    pub(super) fn product(&self, x: &[f32], lora_ax: &[f32], rows: Range<usize>, out: &mut [f32]) {
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
            lora.add_b(lora_ax, rows.start, out);
        }
    }
}

/// Bytes of a tensor's values.
pub(super) fn tensor_bytes(tensor: &Tensor) -> usize {
    tensor.numel() * tensor.kind().elt_size_in_bytes()
}

/// A dense f32 or bf16 matrix, contiguous, on the CPU.
pub(super) fn dense(weight: &Tensor) -> Matrix<'_> {
    let columns = weight.size()[1] as usize;
    match weight.kind() {
        Kind::BFloat16 => Matrix::Bf16(values::<bf16>(weight, Kind::BFloat16), columns),
        _ => Matrix::F32(floats(weight), columns),
    }
}

/// Values of a contiguous f32 tensor on the CPU.
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
