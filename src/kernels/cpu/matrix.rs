//! Matrix-vector products over dense weights in their storage format; decoding is bound by reading them.

use std::ops::Range;

use half::bf16;

use super::lanes::{LANES, Lanes};
use super::level::{Kernel, Level};

/// A weight matrix that can be multiplied with one vector, a range of rows at a time.
pub trait RowProduct: Sync {
    /// Number of rows (outputs).
    fn rows(&self) -> usize;
    /// Number of columns (inputs).
    fn columns(&self) -> usize;
    /// `out[i] = Σ_j w[rows.start + i, j] · x[j]` in f32; `x` has [`Self::columns`] values, `out` one per row of the range.
    fn product(&self, x: &[f32], rows: Range<usize>, out: &mut [f32]);
}

/// A dense row-major matrix.
#[derive(Clone, Copy)]
pub enum Matrix<'a> {
    /// 32-bit floats: values, columns.
    F32(&'a [f32], usize),
    /// bfloat16: values, columns. Widening them is exact.
    Bf16(&'a [bf16], usize),
}

impl RowProduct for Matrix<'_> {
    fn rows(&self) -> usize {
        let (Self::F32(_, columns) | Self::Bf16(_, columns)) = self;
        let values = match self {
            Self::F32(values, _) => values.len(),
            Self::Bf16(values, _) => values.len(),
        };
        values.checked_div(*columns).unwrap_or(0)
    }

    fn columns(&self) -> usize {
        let (Self::F32(_, columns) | Self::Bf16(_, columns)) = self;
        *columns
    }

    fn product(&self, x: &[f32], rows: Range<usize>, out: &mut [f32]) {
        match self {
            Self::F32(values, _) => dense(Level::best(), values, x, rows, out),
            Self::Bf16(values, _) => dense(Level::best(), values, x, rows, out),
        }
    }
}

/// A stored dtype.
pub(super) trait Element: Copy {
    /// The value in f32.
    fn widen(self) -> f32;
    /// Sixteen values.
    ///
    /// # Safety
    /// As [`Lanes::load`].
    unsafe fn load<L: Lanes>(from: *const Self) -> L;
}

impl Element for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const Self) -> L {
        // SAFETY: as the caller's.
        unsafe { L::load(from) }
    }
}

impl Element for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self.to_f32()
    }
    #[inline(always)]
    unsafe fn load<L: Lanes>(from: *const Self) -> L {
        // SAFETY: as the caller's; bf16 is a transparent u16.
        unsafe { L::load_bf16(from.cast()) }
    }
}

/// Rows that share the loads of `x`.
const ROWS: usize = 4;

struct Dense<'a, E> {
    values: &'a [E],
    x: &'a [f32],
    out: &'a mut [f32],
}

impl<E: Element> Kernel for Dense<'_, E> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let columns = self.x.len();
        let mut rows = self.values.chunks_exact(columns * ROWS);
        let mut outs = self.out.chunks_exact_mut(ROWS);
        for (values, out) in (&mut rows).zip(&mut outs) {
            // SAFETY: ROWS rows of `columns` values; the level was checked by the caller.
            let sums = unsafe { dots::<L, E, ROWS>(values, self.x) };
            out.copy_from_slice(&sums);
        }
        let rest = rows.remainder().chunks_exact(columns);
        for (values, out) in rest.zip(outs.into_remainder()) {
            // SAFETY: one row of `columns` values.
            let [sum] = unsafe { dots::<L, E, 1>(values, self.x) };
            *out = sum;
        }
    }
}

/// Dot products of `N` rows of `values` with `x`.
///
/// # Safety
/// The processor has the instructions of `L`; `values` holds `N` rows as long as `x`.
#[inline(always)]
unsafe fn dots<L: Lanes, E: Element, const N: usize>(values: &[E], x: &[f32]) -> [f32; N] {
    let columns = x.len();
    debug_assert_eq!(values.len(), N * columns);
    // SAFETY: every index is below `columns`, a row's length; the caller checked the level.
    unsafe {
        let mut even = [L::splat(0.0); N];
        let mut odd = [L::splat(0.0); N];
        let mut at = 0;
        while at + 2 * LANES <= columns {
            let (x0, x1) = (L::load(x.as_ptr().add(at)), L::load(x.as_ptr().add(at + LANES)));
            for row in 0..N {
                let from = values.as_ptr().add(row * columns + at);
                even[row] = E::load::<L>(from).mul_add(x0, even[row]);
                odd[row] = E::load::<L>(from.add(LANES)).mul_add(x1, odd[row]);
            }
            at += 2 * LANES;
        }
        if at + LANES <= columns {
            let x0 = L::load(x.as_ptr().add(at));
            for (row, sum) in even.iter_mut().enumerate() {
                let from = values.as_ptr().add(row * columns + at);
                *sum = E::load::<L>(from).mul_add(x0, *sum);
            }
            at += LANES;
        }
        let mut sums = [0.0; N];
        for row in 0..N {
            sums[row] = even[row].add(odd[row]).sum();
            for column in at..columns {
                sums[row] += values[row * columns + column].widen() * x[column];
            }
        }
        sums
    }
}

fn dense<E: Element>(level: Level, values: &[E], x: &[f32], rows: Range<usize>, out: &mut [f32]) {
    if x.is_empty() {
        out.fill(0.0);
        return;
    }
    let values = &values[rows.start * x.len()..rows.end * x.len()];
    assert_eq!(out.len(), rows.len(), "one output a row");
    level.run(Dense { values, x, out });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn products_agree_with_f64(rows in 1usize..11, columns in 1usize..200, seed in any::<u64>()) {
            let mut state = seed;
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((state >> 40) as f32 / (1u64 << 23) as f32) - 1.0
            };
            let values: Vec<bf16> = (0..rows * columns).map(|_| bf16::from_f32(next())).collect();
            let wide: Vec<f32> = values.iter().map(|v| v.to_f32()).collect();
            let x: Vec<f32> = (0..columns).map(|_| next()).collect();
            let first = rows / 3;
            for level in Level::available() {
                let mut narrow = vec![0.0; rows - first];
                dense(level, &values, &x, first..rows, &mut narrow);
                let mut full = vec![0.0; rows - first];
                dense(level, &wide, &x, first..rows, &mut full);
                prop_assert_eq!(&narrow, &full);
                for (i, &got) in narrow.iter().enumerate() {
                    let row = &wide[(first + i) * columns..][..columns];
                    let want: f64 = row.iter().zip(&x).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                    prop_assert!((f64::from(got) - want).abs() < 1e-5 * (columns as f64).sqrt());
                }
            }
        }
    }

    #[test]
    fn sizes_come_from_the_values() {
        let values = [0.0; 12];
        let matrix = Matrix::F32(&values, 4);
        assert_eq!((matrix.rows(), matrix.columns()), (3, 4));
        assert_eq!(Matrix::F32(&[], 0).rows(), 0);
    }
}
