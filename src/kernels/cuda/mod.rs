//! Kernels for NVIDIA GPUs, compiled on first use.
//!
//! `nf4.cu` dequantizes NF4 and FP4 weights in one pass, and multiplies them with one row without dequantizing them first;
//! `elementwise.cu` has rotary embeddings and gated activations; `tiles.cu` dequantizes the decode step's tiles. `step.cu` runs a
//! whole decode step, with `stream.cu` (shapes, shared sizes), `producer.cu` (loads), `attention.cu` and `lora.cu`. NVRTC, which comes with libtorch's CUDA libraries, compiles them for the GPU at hand, without nvcc or a list of GPUs. A failure is logged once, and libtorch's operations are used.

mod compiler;
mod elementwise;
mod launch;
mod step;
mod step_shape;
mod tiles;

use tch::{Device, Kind, Tensor};

pub use self::elementwise::{Rotation, gated, gated_backward};
use self::launch::{Argument, Kernels, STATIC_BYTES};
pub use self::step::{
    LAYER_PAIRS, LayerPointers, MAX_RANK, MAX_SEQUENCES, PairPointers, RANK_UNIT, SequencePointers,
    StepKernel, StepWeights,
};
pub use self::step_shape::{StepAdapters, StepForm, StepShape};
pub use self::tiles::{TILE_BYTES, TilePart, TiledTensor};
use crate::Result;

/// Threads per block of `dequantize`; each dequantizes eight values.
const DEQUANTIZE_THREADS: u32 = 256;
/// Threads per block of `product`; one warp per row at a time.
const PRODUCT_THREADS: u32 = 512;
/// Shared memory of `product` for the code values, bytes.
const TABLE_BYTES: u32 = 256 * 32 * 4;
/// Columns per step of a warp; two bytes of shared memory each.
const TILE: u32 = 1024;

/// Weights `[rows, columns]` in 4 bits as bitsandbytes stores them, all on one GPU.
#[derive(Clone, Copy)]
pub struct CodedTensor<'a> {
    /// u8, two codes each, the first in the high half.
    pub packed: &'a Tensor,
    /// f32 `[256, 2]`: values of the two codes of each byte.
    pub pairs: &'a Tensor,
    /// Scales of the blocks.
    pub scales: Scales<'a>,
    /// Values per scale.
    pub blocksize: usize,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
}

/// Scales of the blocks.
#[derive(Clone, Copy)]
pub enum Scales<'a> {
    /// f32, one per block.
    Plain(&'a Tensor),
    /// Double quantization: `map[code] * absmax + offset`.
    Nested {
        /// u8, one per block.
        codes: &'a Tensor,
        /// f32, one per `blocksize` codes.
        absmax: &'a Tensor,
        /// f32 `[256]`.
        map: &'a Tensor,
        /// Added to every scale.
        offset: f32,
        /// Codes per `absmax`.
        blocksize: usize,
    },
}

/// Layout of the struct in `nf4.cu`.
#[repr(C)]
struct Coded {
    packed: u64,
    codes: u64,
    absmax: u64,
    map: u64,
    pairs: u64,
    offset: f32,
    block_shift: i32,
    nested_shift: i32,
    rows: i32,
    columns: i32,
}

impl CodedTensor<'_> {
    /// Writes the values, `code * scale` in f32 and then in `out`'s dtype, into `out`: contiguous, `[rows, columns]`, f32, bf16
    /// or f16. `false` if no kernel supports it.
    pub fn dequantize(&self, out: &Tensor) -> Result<bool> {
        let Some(coded) = self.coded().filter(|_| self.blocksize.is_multiple_of(8)) else {
            return Ok(false);
        };
        if out.numel() != self.rows * self.columns || !out.is_contiguous() || !aligned(out) {
            return Ok(false);
        }
        let Some(kernels) = Kernels::of(self.packed.device(), out.kind()) else {
            return Ok(false);
        };
        let threads = (self.rows * self.columns).div_ceil(8) as u64;
        let Ok(blocks) = u32::try_from(threads.div_ceil(DEQUANTIZE_THREADS.into())) else {
            return Ok(false);
        };
        let out = address(out);
        let arguments = [Argument::new(&coded), Argument::new(&out)];
        kernels
            .gpu
            .launch(kernels.dequantize, (blocks, DEQUANTIZE_THREADS, 0), &arguments)?;
        Ok(true)
    }

    /// `W x + bias` for one row `x`: `[.., columns]` in bf16 or f16 → `[.., rows]`, accumulated in f32. `None` if no kernel
    /// supports it.
    pub fn product(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Option<Tensor>> {
        let fits = x.numel() == self.columns
            && x.is_contiguous()
            && aligned(x)
            && matches!(x.kind(), Kind::BFloat16 | Kind::Half)
            && bias.is_none_or(|bias| bias.kind() == x.kind() && bias.is_contiguous());
        // The 32 values of a lane are in one block and 16-byte aligned.
        if !fits || !self.columns.is_multiple_of(32) || !self.blocksize.is_multiple_of(32) {
            return Ok(None);
        }
        let Some(coded) = self.coded() else {
            return Ok(None);
        };
        let Some((kernels, half)) = Kernels::half(x) else {
            return Ok(None);
        };
        let shared = TABLE_BYTES + (self.columns as u32).div_ceil(TILE) * TILE * 2;
        if shared > kernels.gpu.most_shared_bytes - STATIC_BYTES {
            return Ok(None);
        }
        let mut shape = x.size();
        if let Some(last) = shape.last_mut() {
            *last = self.rows as i64;
        }
        let y = Tensor::f_empty(&shape, (x.kind(), x.device()))?;
        let wanted = (self.rows as u32).div_ceil(PRODUCT_THREADS / 32);
        let blocks = wanted.min(2 * kernels.gpu.multiprocessors);
        let addresses = [address(x), bias.map_or(0, address), address(&y)];
        let [x, bias, to] = addresses.each_ref().map(Argument::new);
        let arguments = [Argument::new(&coded), x, bias, to];
        kernels
            .gpu
            .launch(half.product, (blocks, PRODUCT_THREADS, shared), &arguments)?;
        Ok(Some(y))
    }

    /// The kernel argument; `None` if a size is unsupported.
    fn coded(&self) -> Option<Coded> {
        let shift = |size: usize| size.is_power_of_two().then(|| size.trailing_zeros() as i32);
        let (codes, absmax, map, offset, nested) = match self.scales {
            Scales::Plain(scales) => (0, address(scales), 0, 0.0, 1),
            Scales::Nested {
                codes,
                absmax,
                map,
                offset,
                blocksize,
            } => (address(codes), address(absmax), address(map), offset, blocksize),
        };
        Some(Coded {
            packed: address(self.packed),
            codes,
            absmax,
            map,
            pairs: address(self.pairs),
            offset,
            block_shift: shift(self.blocksize)?,
            nested_shift: shift(nested)?,
            rows: i32::try_from(self.rows).ok()?,
            columns: i32::try_from(self.columns).ok()?,
        })
    }
}

/// Whether the kernels can be compiled and run on a GPU; for comparisons with libtorch's operations.
pub fn available(device: Device, kind: Kind) -> bool {
    Kernels::of(device, kind).is_some()
}

/// Device pointer of a tensor's values.
fn address(tensor: &Tensor) -> u64 {
    tensor.data_ptr() as u64
}

/// Whether it is 16-byte aligned, as the kernels require.
fn aligned(tensor: &Tensor) -> bool {
    address(tensor).is_multiple_of(16)
}
