//! Matrix-vector products over NF4 and FP4 weights: code values from a table in a SIMD register, one scale per block.

use std::cell::RefCell;
use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::lanes::{CODE_FACTOR, CODE_UNIT, CODES, CodeFactors, CodeTable, Lanes};
use super::level::{Kernel, Level};
use super::matrix::RowProduct;

/// Codes that share a scale in [`Lanes::code_dots`].
const HALF: usize = CODES / 2;
/// Rows that share the loads of `x`.
const ROWS: usize = 4;

/// Scales of the blocks.
#[derive(Clone, Copy)]
pub enum BlockScales<'a> {
    /// f32, one per block.
    Plain(&'a [f32]),
    /// f16, one per block.
    Half(&'a [f16]),
    /// Double quantization: `map[code] * absmax + offset`.
    Nested {
        /// One per block.
        codes: &'a [u8],
        /// One per `blocksize` codes.
        absmax: &'a [f32],
        /// Values of the codes.
        map: &'a [f32; 256],
        /// Mean of the scales.
        offset: f32,
        /// Codes per `absmax`.
        blocksize: usize,
    },
}

impl BlockScales<'_> {
    /// The scale of `block`.
    pub fn at(&self, block: usize) -> f32 {
        match self {
            Self::Plain(scales) => scales[block],
            Self::Half(scales) => scales[block].to_f32(),
            Self::Nested {
                codes,
                absmax,
                map,
                offset,
                blocksize,
            } => map[usize::from(codes[block])] * absmax[block / blocksize] + offset,
        }
    }

    /// Writes the scales of the blocks from `first` on.
    pub fn read(&self, first: usize, out: &mut [f32]) {
        match self {
            Self::Plain(scales) => out.copy_from_slice(&scales[first..first + out.len()]),
            Self::Half(scales) => scales[first..first + out.len()].convert_to_f32_slice(out),
            Self::Nested {
                codes,
                absmax,
                map,
                offset,
                blocksize,
            } => {
                let (mut block, mut out) = (first, out);
                while !out.is_empty() {
                    let run = (blocksize - block % blocksize).min(out.len());
                    let (now, rest) = out.split_at_mut(run);
                    let absmax = absmax[block / blocksize];
                    for (out, &code) in now.iter_mut().zip(&codes[block..block + run]) {
                        *out = map[usize::from(code)] * absmax + offset;
                    }
                    (block, out) = (block + run, rest);
                }
            }
        }
    }
}

/// A row-major matrix of 4-bit codes, two per byte with the first in the high nibble; blocks may straddle rows.
#[derive(Clone, Copy)]
pub struct CodedMatrix<'a> {
    /// `rows * columns` codes.
    pub packed: &'a [u8],
    /// Values of the codes.
    pub table: &'a CodeTable,
    /// One per block.
    pub scales: BlockScales<'a>,
    /// Codes per block; even.
    pub blocksize: usize,
    /// Number of rows (outputs).
    pub rows: usize,
    /// Number of columns (inputs).
    pub columns: usize,
}

impl CodedMatrix<'_> {
    /// Dequantizes `range` of the flat matrix: `value * scale` in f32.
    pub fn dequantize(&self, range: Range<usize>, out: &mut [f32]) {
        let pairs = self.table.pairs();
        let (mut at, mut out) = (range.start, &mut out[..range.len()]);
        while !out.is_empty() {
            let (block, inside) = (at / self.blocksize, at % self.blocksize);
            let (now, rest) = out.split_at_mut((self.blocksize - inside).min(out.len()));
            let scale = self.scales.at(block);
            let (odd, now) = now.split_at_mut(at % 2);
            if let [first] = odd {
                *first = pairs[usize::from(self.packed[at / 2])][1] * scale;
                at += 1;
            }
            let (twos, last) = now.as_chunks_mut::<2>();
            let bytes = &self.packed[at / 2..];
            for (two, &byte) in twos.iter_mut().zip(bytes) {
                let pair = pairs[usize::from(byte)];
                *two = [pair[0] * scale, pair[1] * scale];
            }
            at += 2 * twos.len() + last.len();
            if let ([last], Some(&byte)) = (last, bytes.get(twos.len())) {
                *last = pairs[usize::from(byte)][0] * scale;
            }
            out = rest;
        }
    }

    /// Whether blocks do not straddle rows or half chunks.
    fn is_regular(&self) -> bool {
        self.columns.is_multiple_of(self.blocksize) && self.blocksize.is_multiple_of(HALF)
    }

    /// [`RowProduct::product`] with the instructions of `level`.
    fn product_at(&self, level: Level, x: &[f32], rows: Range<usize>, out: &mut [f32]) {
        assert!(x.len() == self.columns && out.len() == rows.len() && rows.end <= self.rows);
        assert!(self.packed.len() >= (self.rows * self.columns).div_ceil(2));
        SCRATCH.with_borrow_mut(|scratch| {
            if self.is_regular() {
                level.run(Regular {
                    matrix: self,
                    x,
                    first_row: rows.start,
                    out,
                    scratch,
                });
                return;
            }
            scratch.values.resize(self.columns, 0.0);
            for (row, out) in rows.zip(out) {
                self.dequantize(row * self.columns..(row + 1) * self.columns, &mut scratch.values);
                *out = scratch.values.iter().zip(x).map(|(weight, x)| weight * x).sum();
            }
        });
    }
}

impl RowProduct for CodedMatrix<'_> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn product(&self, x: &[f32], rows: Range<usize>, out: &mut [f32]) {
        self.product_at(Level::best(), x, rows, out);
    }
}

/// Scratch buffers of a thread.
#[derive(Default)]
struct Scratch {
    /// `x` quantized to integers, in the order of code look-ups, padded with zeros to whole chunks.
    x: Vec<CodeFactors>,
    /// Scale of each half chunk of `x`, divided by [`CODE_UNIT`].
    units: Vec<f32>,
    /// Products of weight scales and `x` scales of [`ROWS`] rows.
    scales: Vec<f32>,
    /// A dequantized row, if blocks straddle rows.
    values: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Rows of a regular matrix.
struct Regular<'a> {
    matrix: &'a CodedMatrix<'a>,
    x: &'a [f32],
    first_row: usize,
    out: &'a mut [f32],
    scratch: &'a mut Scratch,
}

impl Kernel for Regular<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Scratch { x, units, scales, .. } = self.scratch;
        round::<L>(self.x, x, units);
        let halves = units.len();
        scales.resize(ROWS * halves, 0.0);
        let row_bytes = self.matrix.columns / 2;
        for (group, out) in self.out.chunks_mut(ROWS).enumerate() {
            let row = self.first_row + group * ROWS;
            for (i, scales) in scales.chunks_exact_mut(halves).take(out.len()).enumerate() {
                read_row_scales(self.matrix, row + i, scales);
                for (scale, unit) in scales.iter_mut().zip(&*units) {
                    *scale *= unit;
                }
            }
            let codes = &self.matrix.packed[row * row_bytes..(row + out.len()) * row_bytes];
            // SAFETY: the caller checked the level.
            unsafe {
                match <&mut [f32; ROWS]>::try_from(&mut *out) {
                    Ok(out) => *out = dots::<L, ROWS>(codes, self.matrix.table, scales, x),
                    Err(_) => {
                        let rows = codes.chunks_exact(row_bytes).zip(scales.chunks_exact(halves));
                        for (out, (codes, scales)) in out.iter_mut().zip(rows) {
                            [*out] = dots::<L, 1>(codes, self.matrix.table, scales, x);
                        }
                    }
                }
            }
        }
    }
}

/// Quantizes `x` to integers up to [`CODE_FACTOR`] with one scale per half chunk, in the order of
/// [`Lanes::code_dots`].
///
/// 14 bits relative to a half chunk's largest value: some twenty times finer than bf16. A NaN makes its scale NaN, and so every
/// product.
#[inline(always)]
fn round<L: Lanes>(x: &[f32], out: &mut Vec<CodeFactors>, units: &mut Vec<f32>) {
    out.resize(x.len().div_ceil(CODES), CodeFactors([0; CODES]));
    units.resize(2 * out.len(), 0.0);
    let chunks = x.chunks(CODES).zip(out);
    for ((x, out), units) in chunks.zip(units.chunks_exact_mut(2)) {
        let mut rounded = [0i16; CODES];
        for ((x, rounded), unit) in x
            .chunks(HALF)
            .zip(rounded.chunks_exact_mut(HALF))
            .zip(&mut *units)
        {
            let bits = x.iter().map(|x| x.to_bits() & 0x7fff_ffff).max();
            let largest = f32::from_bits(bits.unwrap_or(0));
            let factor = if largest > 0.0 { CODE_FACTOR / largest } else { 0.0 };
            for (rounded, x) in rounded.iter_mut().zip(x) {
                *rounded = (x * factor).round_ties_even() as i16;
            }
            *unit = largest / (CODE_FACTOR * CODE_UNIT);
        }
        for (i, out) in out.0.iter_mut().enumerate() {
            *out = rounded[L::code_place(i) % CODES];
        }
        if x.len() <= HALF {
            units[1] = 0.0;
        }
    }
}

/// Scales of `row`, one per half chunk.
#[inline(always)]
fn read_row_scales(matrix: &CodedMatrix<'_>, row: usize, out: &mut [f32]) {
    let blocks = matrix.columns / matrix.blocksize;
    let (first, repeat) = (row * blocks, matrix.blocksize / HALF);
    if repeat == 1 {
        matrix.scales.read(first, &mut out[..blocks]);
        return;
    }
    for (block, out) in out.chunks_mut(repeat).take(blocks).enumerate() {
        out.fill(matrix.scales.at(first + block));
    }
}

/// Dot products of `N` rows of `codes` with `x`, which is in order; `scales` holds two per chunk and row.
///
/// # Safety
/// The processor has the instructions of `L`.
#[inline(always)]
unsafe fn dots<L: Lanes, const N: usize>(
    codes: &[u8],
    table: &CodeTable,
    scales: &[f32],
    x: &[CodeFactors],
) -> [f32; N] {
    const BYTES: usize = CODES / 2;
    let (row_bytes, halves) = (codes.len() / N, 2 * x.len());
    assert!(scales.len() >= N * halves && x.len() == row_bytes.div_ceil(BYTES));
    // SAFETY: a chunk has BYTES bytes of each row, but the last, which is copied; the caller checked the level.
    unsafe {
        let mut sums = [L::splat(0.0); N];
        let whole = row_bytes / BYTES;
        for (chunk, x) in x[..whole].iter().enumerate() {
            for (row, sum) in sums.iter_mut().enumerate() {
                let product = L::code_dots(codes.as_ptr().add(row * row_bytes + chunk * BYTES), x, table);
                // Prefetches the next rows: the hardware prefetcher does not detect the row order.
                L::prefetch(
                    codes
                        .as_ptr()
                        .wrapping_add(N * row_bytes + (chunk * N + row) * BYTES),
                );
                let scale = scales.as_ptr().add(row * halves + chunk * 2);
                *sum = product.mul_add(L::halves(*scale, *scale.add(1)), *sum);
            }
        }
        if row_bytes % BYTES != 0 {
            for (row, sum) in sums.iter_mut().enumerate() {
                let rest = &codes[row * row_bytes + whole * BYTES..(row + 1) * row_bytes];
                let mut last = [0u8; BYTES];
                last[..rest.len()].copy_from_slice(rest);
                let product = L::code_dots(last.as_ptr(), &x[whole], table);
                *sum = product.mul_add(L::halves(scales[row * halves + whole * 2], 0.0), *sum);
            }
        }
        sums.map(|sum| sum.sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A matrix's parts, from a seed.
    struct Parts {
        packed: Vec<u8>,
        table: CodeTable,
        plain: Vec<f32>,
        codes: Vec<u8>,
        absmax: Vec<f32>,
        map: [f32; 256],
        x: Vec<f32>,
    }

    impl Parts {
        fn new(rows: usize, columns: usize, blocksize: usize, seed: u64) -> Self {
            let mut state = seed;
            let mut next = || {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                (state >> 40) as u32
            };
            let mut number = || next() as f32 / (1u32 << 23) as f32 - 1.0;
            let blocks = (rows * columns).div_ceil(blocksize);
            let (table, map) = (
                std::array::from_fn(|_| number()),
                std::array::from_fn(|_| number()),
            );
            let plain = (0..blocks).map(|_| number()).collect();
            let absmax = (0..blocks.div_ceil(256)).map(|_| number()).collect();
            let x = (0..columns).map(|_| number()).collect();
            Self {
                packed: (0..(rows * columns).div_ceil(2)).map(|_| next() as u8).collect(),
                table: CodeTable::new(&table),
                plain,
                codes: (0..blocks).map(|_| next() as u8).collect(),
                absmax,
                map,
                x,
            }
        }

        fn nested(&self) -> BlockScales<'_> {
            BlockScales::Nested {
                codes: &self.codes,
                absmax: &self.absmax,
                map: &self.map,
                offset: 0.25,
                blocksize: 256,
            }
        }
    }

    /// Value `i` by the definition.
    fn value(matrix: &CodedMatrix<'_>, i: usize) -> f32 {
        let byte = matrix.packed[i / 2];
        let code = if i.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
        matrix.table.values()[usize::from(code)] * matrix.scales.at(i / matrix.blocksize)
    }

    proptest! {
        #[test]
        fn products_and_values_follow_the_definition(
            rows in 1usize..11,
            columns in prop_oneof![1usize..300, (1usize..6).prop_map(|n| n * 64), (1usize..4).prop_map(|n| n * 256)],
            blocksize in prop_oneof![Just(32usize), Just(64), Just(128), Just(256)],
            nested in any::<bool>(),
            seed in any::<u64>(),
        ) {
            let parts = Parts::new(rows, columns, blocksize, seed);
            let matrix = CodedMatrix {
                packed: &parts.packed,
                table: &parts.table,
                scales: if nested { parts.nested() } else { BlockScales::Plain(&parts.plain) },
                blocksize,
                rows,
                columns,
            };
            let first = rows / 3;
            let start = first * columns;
            let mut values = vec![0.0; rows * columns - start];
            matrix.dequantize(start..rows * columns, &mut values);
            for (i, &got) in values.iter().enumerate() {
                prop_assert_eq!(got, value(&matrix, start + i));
            }
            for level in Level::available() {
                let mut out = vec![0.0; rows - first];
                matrix.product_at(level, &parts.x, first..rows, &mut out);
                for (row, &got) in values.chunks(columns).zip(&out) {
                    let want: f64 = row.iter().zip(&parts.x).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                    let scale: f64 = row.iter().zip(&parts.x).map(|(a, b)| f64::from(a * b).abs()).sum();
                    prop_assert!((f64::from(got) - want).abs() <= 2e-4 * scale, "{level:?}: {got} {want}");
                }
            }
        }
    }
}
