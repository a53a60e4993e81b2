//! bitsandbytes' blockwise 4-bit quantizer and its double quantization, byte for byte.
//!
//! Follows `quantize_4bit` and `quantize_blockwise` of bitsandbytes 0.50.2's CPU backends (`backends/default/ops.py`,
//! `csrc/cpu_ops.cpp`), quirks included: a full block is multiplied by the reciprocal of its absmax, a short block at
//! the end is divided by it; a value at the midpoint of two codes gets the lower one.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;
use tch::{Kind, Tensor};

use super::codebook::{QuantType, Rounding, dynamic_code, dynamic_map};
use crate::Result;
use crate::kernels::cpu::BlockScales;

/// Block size of double quantization: scales that share a scale.
pub(super) const NESTED_BLOCKSIZE: usize = 256;
/// Used as the absmax of a block of zeros.
const SMALLEST: f32 = 1e-38;
/// Values per task: their f32 copy fits a core's L2 cache.
const TASK_VALUES: usize = 1 << 16;

/// Flat weights to quantize, in memory or in a file.
pub trait Values: Sync {
    /// Number of values.
    fn len(&self) -> usize;

    /// Whether there are no values.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads the values of `range` as f32, exactly, into `scratch`.
    fn read(&self, range: Range<usize>, scratch: &mut Scratch) -> Result<()>;
}

/// Scratch buffers of one task.
#[derive(Debug, Default)]
pub struct Scratch {
    /// The values as f32.
    pub values: Vec<f32>,
    /// The values as they were stored.
    pub bytes: Vec<u8>,
}

/// Weights in memory.
#[derive(Debug, Clone, Copy)]
pub enum Weights<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// IEEE half precision.
    F16(&'a [f16]),
    /// bfloat16.
    Bf16(&'a [bf16]),
}

impl Values for Weights<'_> {
    fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::F16(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }

    fn read(&self, range: Range<usize>, scratch: &mut Scratch) -> Result<()> {
        let out = &mut scratch.values;
        out.clear();
        match self {
            Self::F32(values) => out.extend_from_slice(&values[range]),
            Self::F16(values) => {
                out.resize(range.len(), 0.0);
                values[range].convert_to_f32_slice(out);
            }
            Self::Bf16(values) => out.extend(values[range].iter().map(|value| value.to_f32())),
        }
        Ok(())
    }
}

/// Codes and scales of a weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Blocks {
    /// Two codes per byte, the first in the high nibble.
    pub packed: Vec<u8>,
    /// Absmax of each block; NaN or infinite if a weight is.
    pub absmax: Vec<f32>,
}

/// Quantizes `weights` in blocks of `blocksize`, one of [`super::BLOCKSIZES`], on rayon's threads.
///
/// # Errors
/// Those of reading `weights`.
///
/// Reference: [`quantize_4bit`](https://github.com/bitsandbytes-foundation/bitsandbytes/blob/37d2a9387f7146ccb85517ff45c665d345bfda79/bitsandbytes/backends/default/ops.py#L226-L259).
pub fn quantize(weights: &impl Values, quant_type: QuantType, blocksize: usize) -> Result<Blocks> {
    let n = weights.len();
    let mut packed = vec![0; n.div_ceil(2)];
    let mut absmax = vec![0.0; n.div_ceil(blocksize)];
    let step = task_values(blocksize);
    packed
        .par_chunks_mut(step / 2)
        .zip(absmax.par_chunks_mut(step / blocksize))
        .enumerate()
        .try_for_each_init(
            Scratch::default,
            |scratch, (task, (packed, absmax))| -> Result<()> {
                let start = task * step;
                weights.read(start..n.min(start + step), scratch)?;
                quantize_run(&scratch.values, quant_type.rounding(), blocksize, packed, absmax);
                Ok(())
            },
        )?;
    Ok(Blocks { packed, absmax })
}

/// Values per task: whole blocks, an even number of values.
pub(super) fn task_values(blocksize: usize) -> usize {
    TASK_VALUES.next_multiple_of(blocksize)
}

/// Double-quantized scales.
#[derive(Debug, Clone, PartialEq)]
pub struct NestedScales {
    /// 8-bit dynamic code of each scale minus the offset.
    pub codes: Vec<u8>,
    /// Absmax of each block of 256 scales minus the offset.
    pub absmax: Vec<f32>,
    /// Mean of the scales.
    pub offset: f32,
}

impl NestedScales {
    /// Dequantizes the scales.
    pub fn restore(&self) -> Vec<f32> {
        let mut scales = vec![0.0; self.codes.len()];
        let nested = BlockScales::Nested {
            codes: &self.codes,
            absmax: &self.absmax,
            map: dynamic_map(),
            offset: self.offset,
            blocksize: NESTED_BLOCKSIZE,
        };
        nested.read(0, &mut scales);
        scales
    }
}

/// Quantizes scales (double quantization).
///
/// The mean is libtorch's, as in bitsandbytes; above 32,768 scales its last bit depends on the number of threads.
///
/// Reference:
/// [`quantize_4bit`](https://github.com/bitsandbytes-foundation/bitsandbytes/blob/37d2a9387f7146ccb85517ff45c665d345bfda79/bitsandbytes/functional.py#L938-L951),
/// [`quantize_cpu_impl`](https://github.com/bitsandbytes-foundation/bitsandbytes/blob/37d2a9387f7146ccb85517ff45c665d345bfda79/csrc/cpu_ops.cpp#L496-L665).
pub fn quantize_scales(absmax: &[f32]) -> Result<NestedScales> {
    let mean = Tensor::f_from_slice(absmax)?.f_mean(Kind::Float)?;
    let offset = f32::try_from(&mean)?;
    let shifted: Vec<f32> = absmax.iter().map(|scale| scale - offset).collect();
    let mut codes = vec![0; shifted.len()];
    let nested = shifted
        .chunks(NESTED_BLOCKSIZE)
        .zip(codes.chunks_mut(NESTED_BLOCKSIZE))
        .map(|(run, codes)| {
            let largest = largest_magnitude(run);
            if largest != 0.0 {
                let inverse = 1.0 / largest;
                for (code, value) in codes.iter_mut().zip(run) {
                    *code = dynamic_code(value * inverse);
                }
            }
            largest
        })
        .collect();
    Ok(NestedScales {
        codes,
        absmax: nested,
        offset,
    })
}

/// Quantizes `values`, which start at a block, with the widest SIMD instructions of this machine.
fn quantize_run(
    values: &[f32],
    rounding: &Rounding,
    blocksize: usize,
    packed: &mut [u8],
    absmax: &mut [f32],
) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi")]
        fn avx512(v: &[f32], r: &Rounding, b: usize, p: &mut [u8], a: &mut [f32]) {
            quantize_plainly(v, r, b, p, a);
        }
        #[target_feature(enable = "avx2")]
        fn avx2(v: &[f32], r: &Rounding, b: usize, p: &mut [u8], a: &mut [f32]) {
            quantize_plainly(v, r, b, p, a);
        }
        if is_x86_feature_detected!("avx512vbmi") && is_x86_feature_detected!("avx512dq") {
            // SAFETY: the processor has these instructions; every processor with VBMI and DQ has BW and VL.
            return unsafe { avx512(values, rounding, blocksize, packed, absmax) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has these instructions.
            return unsafe { avx2(values, rounding, blocksize, packed, absmax) };
        }
    }
    quantize_plainly(values, rounding, blocksize, packed, absmax);
}

/// The algorithm, compiled once per SIMD level.
#[inline(always)]
fn quantize_plainly(
    values: &[f32],
    rounding: &Rounding,
    blocksize: usize,
    packed: &mut [u8],
    absmax: &mut [f32],
) {
    for (block, (packed, absmax)) in values
        .chunks(blocksize)
        .zip(packed.chunks_mut(blocksize / 2).zip(absmax))
    {
        let largest = largest_magnitude(block);
        let scale = if largest < SMALLEST { SMALLEST } else { largest };
        if block.len() == blocksize {
            *absmax = largest;
            let inverse = 1.0 / scale;
            pack(block, |value| value * inverse, rounding, packed);
        } else {
            *absmax = scale;
            pack(block, |value| value / scale, rounding, packed);
        }
    }
}

/// Codes of the scaled `block`, two per byte; a missing last value counts as 0.
#[inline(always)]
fn pack(block: &[f32], scaled: impl Fn(f32) -> f32, rounding: &Rounding, packed: &mut [u8]) {
    const GROUP: usize = 32;
    let mut groups = block.chunks_exact(GROUP);
    let mut out = packed.chunks_mut(GROUP / 2);
    for (group, out) in groups.by_ref().zip(out.by_ref()) {
        let mut codes = [0u32; GROUP];
        for (code, &value) in codes.iter_mut().zip(group) {
            let value = scaled(value);
            *code = rounding
                .bounds
                .iter()
                .map(|&bound| u32::from(bound < value))
                .sum();
        }
        for (byte, pair) in out.iter_mut().zip(codes.as_chunks::<2>().0) {
            *byte = rounding.codes[pair[0] as usize & 15] << 4 | rounding.codes[pair[1] as usize & 15];
        }
    }
    let code = |value: f32| {
        let interval = rounding.bounds.iter().filter(|&&bound| bound < value).count();
        rounding.codes[interval & 15]
    };
    for (byte, pair) in out.flatten().zip(groups.remainder().chunks(2)) {
        let second = pair.get(1).map_or(0.0, |&value| scaled(value));
        *byte = code(scaled(pair[0])) << 4 | code(second);
    }
}

/// Absmax; NaN if a value is NaN. Compares bit patterns, which are ordered like magnitudes.
#[inline(always)]
fn largest_magnitude(values: &[f32]) -> f32 {
    let bits = values.iter().map(|value| value.to_bits() & 0x7fff_ffff);
    f32::from_bits(bits.max().unwrap_or(0))
}
