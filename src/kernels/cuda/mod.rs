//! Kernels for NVIDIA GPUs, compiled when they are first wanted.
//!
//! `nf4.cu` restores NF4 and FP4 weights in one pass, and multiplies them with one row without restoring them;
//! `elementwise.cu` has rotary positions and gated activations. NVRTC, which comes with libtorch's CUDA libraries, compiles
//! them for the GPU that is there: no nvcc, no list of GPUs. Where that fails, it is logged once, and libtorch's own
//! operations do the work.

mod compiler;
mod elementwise;
mod launch;

use tch::{Device, Kind, Tensor};

pub use self::elementwise::{Rotation, gated, gated_backward};
use self::launch::{Argument, Kernels};
use crate::Result;

/// Threads of a block of `dequantize`, each of which restores eight values.
const DEQUANTIZE_THREADS: u32 = 256;
/// Threads of a block of `product`, a warp for each row at a time.
const PRODUCT_THREADS: u32 = 512;
/// Bytes that `product` keeps of the codes' values in shared memory.
const TABLE_BYTES: u32 = 256 * 32 * 4;
/// Columns that a warp takes at a time; two bytes of shared memory each.
const TILE: u32 = 1024;

/// Weights `[rows, columns]` in 4 bits as bitsandbytes stores them, all on one GPU.
#[derive(Clone, Copy)]
pub struct CodedTensor<'a> {
    /// u8, two codes each, the first in the high half.
    pub packed: &'a Tensor,
    /// f32 `[256, 2]`: what the codes of each byte stand for.
    pub pairs: &'a Tensor,
    /// What a block's codes are multiplied with.
    pub scales: Scales<'a>,
    /// Values that share a scale.
    pub blocksize: usize,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
}

/// Scales of the blocks.
#[derive(Clone, Copy)]
pub enum Scales<'a> {
    /// f32, one a block.
    Plain(&'a Tensor),
    /// In 8 bits: `map[code] * absmax + offset`.
    Nested {
        /// u8, one a block.
        codes: &'a Tensor,
        /// f32, one for each run of `blocksize` codes.
        absmax: &'a Tensor,
        /// f32 `[256]`.
        map: &'a Tensor,
        /// Added to every scale.
        offset: f32,
        /// Codes that share an `absmax`.
        blocksize: usize,
    },
}

/// As in `nf4.cu`.
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
    /// or f16. `false` where there is no kernel for it.
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
        kernels.launch(kernels.dequantize, (blocks, DEQUANTIZE_THREADS, 0), &arguments)?;
        Ok(true)
    }

    /// `W x + bias` for one row `x`: `[.., columns]` in bf16 or f16 → `[.., rows]`, added up in f32. `None` where there is no
    /// kernel for it.
    pub fn product(&self, x: &Tensor, bias: Option<&Tensor>) -> Result<Option<Tensor>> {
        let fits = x.numel() == self.columns
            && x.is_contiguous()
            && aligned(x)
            && matches!(x.kind(), Kind::BFloat16 | Kind::Half)
            && bias.is_none_or(|bias| bias.kind() == x.kind() && bias.is_contiguous());
        // A lane's 32 values lie in one block and start at a multiple of 16 bytes.
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
        if shared > kernels.most_shared_bytes {
            return Ok(None);
        }
        let mut shape = x.size();
        if let Some(last) = shape.last_mut() {
            *last = self.rows as i64;
        }
        let y = Tensor::f_empty(&shape, (x.kind(), x.device()))?;
        let wanted = (self.rows as u32).div_ceil(PRODUCT_THREADS / 32);
        let blocks = wanted.min(2 * kernels.multiprocessors);
        let addresses = [address(x), bias.map_or(0, address), address(&y)];
        let [x, bias, to] = addresses.each_ref().map(Argument::new);
        let arguments = [Argument::new(&coded), x, bias, to];
        kernels.launch(half.product, (blocks, PRODUCT_THREADS, shared), &arguments)?;
        Ok(Some(y))
    }

    /// As the kernels take it; `None` where a size is beyond them.
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

/// Whether a GPU's kernels can be compiled and run: for those who compare them with libtorch's operations.
pub fn available(device: Device, kind: Kind) -> bool {
    Kernels::of(device, kind).is_some()
}

/// Where a tensor's values lie on the GPU.
fn address(tensor: &Tensor) -> u64 {
    tensor.data_ptr() as u64
}

/// At a multiple of 16 bytes, as the kernels read and write.
fn aligned(tensor: &Tensor) -> bool {
    address(tensor).is_multiple_of(16)
}
