//! Bicubic resampling with antialiasing, row by row: bit-identical to libtorch's `_upsample_bicubic2d_aa` of a whole 8-bit image
//! (aten/src/ATen/native/cpu/UpSampleKernel.cpp), without the image in memory.

use std::collections::VecDeque;

/// Rows resampled together by [`Horizontal`], so that its inner loop runs over contiguous bytes.
const BAND: usize = 8;
/// Bytes of one column of a band.
const COLUMN: usize = BAND * 3;

/// Filter weights of every output sample along one axis.
pub(super) struct Taps {
    /// Per output: the first input, and the range of its weights in `weights`.
    windows: Vec<(usize, std::ops::Range<usize>)>,
    /// Fixed point with `precision` fractional bits.
    weights: Vec<i16>,
    precision: u32,
}

impl Taps {
    /// Weights from `input` to `output` samples, both above 0.
    pub(super) fn new(input: usize, output: usize) -> Self {
        let scale = input as f64 / output as f64;
        let inverse = if scale >= 1.0 { 1.0 / scale } else { 1.0 };
        let support = 2.0 * scale.max(1.0);
        let most = 2 * support.ceil() as usize + 1;
        let (mut windows, mut exact, mut largest) = (Vec::with_capacity(output), Vec::new(), 0f64);
        for index in 0..output {
            let center = scale * (index as f64 + 0.5);
            let first = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(input);
            let count = end.saturating_sub(first).min(most);
            let start = exact.len();
            exact.extend((0..count).map(|k| bicubic(((k + first) as f64 - center + 0.5) * inverse)));
            let total: f64 = exact[start..].iter().sum();
            if total != 0.0 {
                for weight in &mut exact[start..] {
                    *weight /= total;
                    largest = largest.max(*weight);
                }
            }
            windows.push((first, start..start + count));
        }
        // The most bits with which the largest weight stays below 2^15.
        let fits = |bits: u32| ((0.5 + largest * f64::from(1u32 << bits)) as i64) < 1 << 15;
        let precision = (0..22).find(|bits| !fits(bits + 1)).unwrap_or(22);
        let one = f64::from(1u32 << precision);
        let rounded = |weight: f64| (weight * one + 0.5f64.copysign(weight)) as i16;
        Self {
            windows,
            weights: exact.into_iter().map(rounded).collect(),
            precision,
        }
    }

    /// The same weights for input and output in reverse order.
    pub(super) fn mirrored(mut self, input: usize) -> Self {
        for (first, range) in &mut self.windows {
            *first = input - (*first + range.len());
            self.weights[range.clone()].reverse();
        }
        self.windows.reverse();
        self
    }

    /// Number of outputs.
    pub(super) fn outputs(&self) -> usize {
        self.windows.len()
    }

    fn half(&self) -> i32 {
        (1 << self.precision) >> 1
    }

    fn finish(&self, sum: i32) -> u8 {
        (sum >> self.precision).clamp(0, 255) as u8
    }
}

/// Keys' cubic with a = -0.5, as Pillow and libtorch use with antialiasing.
fn bicubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A
    } else {
        0.0
    }
}

/// Resamples along rows of R G B.
pub(super) struct Horizontal {
    taps: Taps,
    /// Per column: its pixels in up to [`BAND`] rows.
    columns: Vec<[u8; COLUMN]>,
    filled: usize,
    /// The resampled columns.
    done: Vec<[u8; COLUMN]>,
    row: Vec<u8>,
}

impl Horizontal {
    /// For rows of `input` pixels.
    pub(super) fn new(taps: Taps, input: usize) -> Self {
        Self {
            columns: vec![[0; COLUMN]; input],
            filled: 0,
            done: vec![[0; COLUMN]; taps.outputs()],
            row: vec![0; taps.outputs() * 3],
            taps,
        }
    }

    /// Adds a row; passes resampled rows to `next`, in order, once a band is full.
    pub(super) fn push<E>(&mut self, row: &[u8], next: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let at = self.filled * 3;
        for (column, pixel) in self.columns.iter_mut().zip(row.as_chunks::<3>().0) {
            column[at..at + 3].copy_from_slice(pixel);
        }
        self.filled += 1;
        if self.filled == BAND {
            self.finish(next)
        } else {
            Ok(())
        }
    }

    /// Passes the remaining rows to `next`.
    pub(super) fn finish<E>(&mut self, mut next: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let taps = &self.taps;
        for (done, (first, range)) in self.done.iter_mut().zip(&taps.windows) {
            let mut sums = [taps.half(); COLUMN];
            let columns = &self.columns[*first..first + range.len()];
            for (weight, column) in taps.weights[range.clone()].iter().zip(columns) {
                for (sum, sample) in sums.iter_mut().zip(column) {
                    // The sums fit 32 bits; a check would prevent vectorisation.
                    *sum = sum.wrapping_add(i32::from(*weight).wrapping_mul(i32::from(*sample)));
                }
            }
            *done = sums.map(|sum| taps.finish(sum));
        }
        for at in (0..self.filled * 3).step_by(3) {
            for (pixel, column) in self.row.as_chunks_mut::<3>().0.iter_mut().zip(&self.done) {
                pixel.copy_from_slice(&column[at..at + 3]);
            }
            next(&self.row)?;
        }
        self.filled = 0;
        Ok(())
    }
}

/// Resamples along columns.
pub(super) struct Vertical {
    taps: Taps,
    /// Number of input rows so far.
    inputs: usize,
    /// Number of started outputs, of which `pending` are incomplete.
    started: usize,
    pending: VecDeque<Vec<i32>>,
    /// Buffers to reuse.
    spare: Vec<Vec<i32>>,
    row: Vec<u8>,
}

impl Vertical {
    /// For rows of `length` bytes.
    pub(super) fn new(taps: Taps, length: usize) -> Self {
        Self {
            taps,
            inputs: 0,
            started: 0,
            pending: VecDeque::new(),
            spare: Vec::new(),
            row: vec![0; length],
        }
    }

    /// Adds a row; passes rows that are complete with it to `next`.
    pub(super) fn push<E>(
        &mut self,
        row: &[u8],
        mut next: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (taps, input) = (&self.taps, self.inputs);
        self.inputs += 1;
        while taps
            .windows
            .get(self.started)
            .is_some_and(|(first, _)| *first <= input)
        {
            let mut sums = self.spare.pop().unwrap_or_default();
            sums.clear();
            sums.resize(row.len(), taps.half());
            self.pending.push_back(sums);
            self.started += 1;
        }
        let oldest = self.started - self.pending.len();
        for (sums, (first, range)) in self.pending.iter_mut().zip(&taps.windows[oldest..]) {
            let Some(weight) = taps.weights[range.clone()].get(input - first) else {
                continue;
            };
            for (sum, sample) in sums.iter_mut().zip(row) {
                *sum = sum.wrapping_add(i32::from(*weight).wrapping_mul(i32::from(*sample)));
            }
        }
        let complete = |output: usize| {
            let (first, range) = &taps.windows[output];
            first + range.len() <= input + 1
        };
        while !self.pending.is_empty() && complete(self.started - self.pending.len()) {
            let Some(sums) = self.pending.pop_front() else {
                break;
            };
            for (sample, sum) in self.row.iter_mut().zip(&sums) {
                *sample = taps.finish(*sum);
            }
            self.spare.push(sums);
            next(&self.row)?;
        }
        Ok(())
    }
}
