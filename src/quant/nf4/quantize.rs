//! bitsandbytes' blockwise 4-bit quantizer and its double quantization, byte for byte.
//!
//! Follows `quantize_4bit` and `quantize_blockwise` of bitsandbytes 0.50.2's CPU backends (`backends/default/ops.py`,
//! `csrc/cpu_ops.cpp`), quirks included: a full block is multiplied by the reciprocal of its largest magnitude, the
//! short block at the end is divided by it; a value between two codes goes to the lower one when it is in the middle.

use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;
use tch::{Kind, Tensor};

use super::codebook::{QuantType, Rounding, dynamic_code, dynamic_map};
use crate::Result;
use crate::kernels::cpu::BlockScales;

/// Blocks of scales that share one scale of their own.
pub(super) const NESTED_BLOCKSIZE: usize = 256;
/// Stands in for the largest magnitude of a block of zeros.
const SMALLEST: f32 = 1e-38;
/// Values that one task converts and quantizes: its f32 copy stays in a core's second-level cache.
const TASK_VALUES: usize = 1 << 16;

/// Weights to be quantized, flat, wherever they are.
pub trait Values: Sync {
    /// Number of values.
    fn len(&self) -> usize;

    /// No values.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values of `range` as f32, exactly, into `room`.
    fn read(&self, range: Range<usize>, room: &mut Room) -> Result<()>;
}

/// Buffers of one task.
#[derive(Debug, Default)]
pub struct Room {
    /// What [`Values::read`] read.
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

    fn read(&self, range: Range<usize>, room: &mut Room) -> Result<()> {
        let out = &mut room.values;
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
    /// Two codes a byte, the first in the high half.
    pub packed: Vec<u8>,
    /// Largest magnitude of each block; infinite or not a number where the weights are.
    pub absmax: Vec<f32>,
}

/// Quantizes `weights` in blocks of `blocksize`, one of [`super::BLOCKSIZES`], on rayon's threads.
///
/// Fails only where reading `weights` does.
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
        .try_for_each_init(Room::default, |room, (task, (packed, absmax))| -> Result<()> {
            let start = task * step;
            weights.read(start..n.min(start + step), room)?;
            quantize_run(&room.values, quant_type.rounding(), blocksize, packed, absmax);
            Ok(())
        })?;
    Ok(Blocks { packed, absmax })
}

/// Values of one task: whole blocks, an even number.
pub(super) fn task_values(blocksize: usize) -> usize {
    TASK_VALUES.next_multiple_of(blocksize)
}

/// Scales quantized once more.
#[derive(Debug, Clone, PartialEq)]
pub struct NestedScales {
    /// 8-bit dynamic code of each scale less the offset.
    pub codes: Vec<u8>,
    /// Largest magnitude of each run of 256 scales less the offset.
    pub absmax: Vec<f32>,
    /// Mean of the scales.
    pub offset: f32,
}

impl NestedScales {
    /// The scales that are left.
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

/// Quantizes the scales themselves.
///
/// The mean is libtorch's, as in bitsandbytes: above 32,768 scales its last bit depends on the number of threads.
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

/// Quantizes `values`, which begin at a block's start, with the widest instructions that this machine has.
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

/// The algorithm; compiled once for each set of instructions.
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

/// Codes of `block`, scaled, two a byte; a missing last value counts as 0.
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

/// Largest magnitude; not a number where one of the values is none. Compares bits, whose order is the magnitudes'.
#[inline(always)]
fn largest_magnitude(values: &[f32]) -> f32 {
    let bits = values.iter().map(|value| value.to_bits() & 0x7fff_ffff);
    f32::from_bits(bits.max().unwrap_or(0))
}
