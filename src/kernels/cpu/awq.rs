//! Matrix-vector products over AWQ weights: (code - zero point) · scale, with one zero point and scale per group.
//!
//! The codes go through the kernel of [`CodedMatrix`] as if every zero point were 8; the difference is subtracted by way of
//! per-group sums of the input, a hundredth of the work.

use std::ops::Range;
use std::sync::LazyLock;

use super::lanes::CodeTable;
use super::matrix::RowProduct;
use super::nf4::{BlockScales, CodedMatrix};

/// The zero point that the kernel assumes.
const MIDDLE: f32 = 8.0;

/// A row-major matrix of 4-bit codes, two per byte with the first in the high nibble; groups do not straddle rows.
#[derive(Clone, Copy)]
pub struct GroupedMatrix<'a> {
    /// `rows * columns` codes.
    pub packed: &'a [u8],
    /// `[rows, columns / group]`, not nested.
    pub scales: BlockScales<'a>,
    /// `[rows, columns / group]`, each from 0 to 15.
    pub zeros: &'a [u8],
    /// Codes per group: even, and a divisor of `columns`.
    pub group: usize,
    /// Number of rows (outputs).
    pub rows: usize,
    /// Number of columns (inputs).
    pub columns: usize,
}

impl GroupedMatrix<'_> {
    /// Dequantizes `rows`: `(code - zero) * scale`, exact in f32.
    pub fn dequantize(&self, rows: Range<usize>, out: &mut [f32]) {
        let groups = self.columns / self.group;
        let first = rows.start * groups;
        let codes = &self.packed[rows.start * self.columns / 2..rows.end * self.columns / 2];
        for (i, (out, codes)) in out
            .chunks_exact_mut(self.group)
            .zip(codes.chunks_exact(self.group / 2))
            .enumerate()
        {
            let (scale, zero) = (self.scales.at(first + i), i32::from(self.zeros[first + i]));
            let values: [f32; 16] = std::array::from_fn(|code| (code as i32 - zero) as f32 * scale);
            for (two, &byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
                *two = [values[usize::from(byte >> 4)], values[usize::from(byte & 15)]];
            }
        }
    }

    /// The matrix with every zero point at [`MIDDLE`], in units of [`MIDDLE`] scales.
    fn centred(&self) -> CodedMatrix<'_> {
        static TABLE: LazyLock<CodeTable> =
            LazyLock::new(|| CodeTable::new(&std::array::from_fn(|code| (code as f32 - MIDDLE) / MIDDLE)));
        CodedMatrix {
            packed: self.packed,
            table: &TABLE,
            scales: self.scales,
            blocksize: self.group,
            rows: self.rows,
            columns: self.columns,
        }
    }
}

impl RowProduct for GroupedMatrix<'_> {
    fn rows(&self) -> usize {
        self.rows
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn product(&self, x: &[f32], rows: Range<usize>, out: &mut [f32]) {
        self.centred().product(x, rows.clone(), out);
        let groups = self.columns / self.group;
        let sums: Vec<f32> = x.chunks_exact(self.group).map(|x| x.iter().sum()).collect();
        let mut scales = vec![0.0; groups];
        for (out, row) in out.iter_mut().zip(rows) {
            self.scales.read(row * groups, &mut scales);
            let zeros = &self.zeros[row * groups..(row + 1) * groups];
            let parts = scales.iter().zip(zeros).zip(&sums);
            let off: f32 = parts
                .map(|((scale, &zero), sum)| scale * (f32::from(zero) - MIDDLE) * sum)
                .sum();
            *out = *out * MIDDLE - off;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn products_and_values_follow_the_definition(
            rows in 1usize..11,
            groups in 1usize..5,
            group in prop_oneof![Just(16usize), Just(32), Just(64), Just(128), Just(192)],
            half in any::<bool>(),
            seed in any::<u64>(),
        ) {
            let mut state = seed;
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 40) as u32
            };
            let columns = groups * group;
            let packed: Vec<u8> = (0..rows * columns / 2).map(|_| next() as u8).collect();
            let zeros: Vec<u8> = (0..rows * groups).map(|_| next() as u8 & 15).collect();
            let mut number = || next() as f32 / (1u32 << 23) as f32 - 1.0;
            let scales: Vec<f16> = (0..rows * groups).map(|_| f16::from_f32(number())).collect();
            let x: Vec<f32> = (0..columns).map(|_| number()).collect();
            // In f32 they may be smaller than f16 can say.
            let plain: Vec<f32> = scales.iter().map(|scale| scale.to_f32() * if half { 1.0 } else { 1e-6 }).collect();
            let scales = if half { BlockScales::Half(&scales) } else { BlockScales::Plain(&plain) };
            let matrix = GroupedMatrix { packed: &packed, scales, zeros: &zeros, group, rows, columns };
            let first = rows / 3;
            let mut values = vec![0.0; (rows - first) * columns];
            matrix.dequantize(first..rows, &mut values);
            for (i, &got) in values.iter().enumerate() {
                let i = first * columns + i;
                let byte = packed[i / 2];
                let code = if i % 2 == 0 { byte >> 4 } else { byte & 15 };
                let want = (f32::from(code) - f32::from(zeros[i / group])) * plain[i / group];
                prop_assert_eq!(got, want);
            }
            let mut out = vec![0.0; rows - first];
            matrix.product(&x, first..rows, &mut out);
            for (i, (row, &got)) in values.chunks(columns).zip(&out).enumerate() {
                let want: f64 = row.iter().zip(&x).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                // The size of what is summed: codes of any zero point.
                let start = (first + i) * groups;
                let scale: f64 = x.iter().enumerate().map(|(i, x)| 8.0 * f64::from((x * plain[start + i / group]).abs())).sum();
                prop_assert!((f64::from(got) - want).abs() <= 2e-4 * scale, "{got} {want}");
            }
        }
    }
}
