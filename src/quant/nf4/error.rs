//! Quantization error of weights.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{
    QuantType,
    quantize::{Scratch, Values, task_values},
};
use crate::Result;
use crate::kernels::cpu::{BlockScales, CodedMatrix};

/// Error of a quantized weight against the original.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct WeightError {
    /// Number of values.
    pub values: u64,
    /// Root mean square error.
    pub rmse: f64,
    /// Maximum absolute error.
    pub max_abs: f64,
    /// Root mean square of the original values, to compare `rmse` with.
    pub rms: f64,
    /// Root mean square of the quantized values.
    pub rms_restored: f64,
    /// Cosine similarity of both.
    pub cosine: f64,
}

/// Sums from which a [`WeightError`] is computed.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ErrorSums {
    values: u64,
    error: f64,
    largest: f32,
    before: f64,
    after: f64,
    product: f64,
}

impl ErrorSums {
    fn of(before: &[f32], after: &[f32]) -> Self {
        let mut sums = Self {
            values: before.len() as u64,
            ..Self::default()
        };
        for (&a, &b) in before.iter().zip(after) {
            let difference = a - b;
            sums.largest = sums.largest.max(difference.abs());
            let (a, b, difference) = (f64::from(a), f64::from(b), f64::from(difference));
            sums.error += difference * difference;
            sums.before += a * a;
            sums.after += b * b;
            sums.product += a * b;
        }
        sums
    }

    fn plus(self, other: Self) -> Self {
        Self {
            values: self.values + other.values,
            error: self.error + other.error,
            largest: self.largest.max(other.largest),
            before: self.before + other.before,
            after: self.after + other.after,
            product: self.product + other.product,
        }
    }

    fn finish(self) -> WeightError {
        let n = (self.values as f64).max(1.0);
        let lengths = (self.before * self.after).sqrt();
        WeightError {
            values: self.values,
            rmse: (self.error / n).sqrt(),
            max_abs: f64::from(self.largest),
            rms: (self.before / n).sqrt(),
            rms_restored: (self.after / n).sqrt(),
            cosine: if lengths > 0.0 {
                self.product / lengths
            } else {
                1.0
            },
        }
    }
}

/// Compares `weights` with their codes `packed` and their stored `scales`.
pub(crate) fn compare(
    weights: &impl Values,
    packed: &[u8],
    scales: &[f32],
    quant_type: QuantType,
    blocksize: usize,
) -> Result<WeightError> {
    let (n, step) = (weights.len(), task_values(blocksize));
    let matrix = CodedMatrix {
        packed,
        table: quant_type.code_table(),
        scales: BlockScales::Plain(scales),
        blocksize,
        rows: 1,
        columns: n,
    };
    // Collected, so that the order of summation does not depend on the threads.
    let sums = (0..n.div_ceil(step))
        .into_par_iter()
        .map_init(
            || (Scratch::default(), Vec::new()),
            |(scratch, restored), task| {
                let range = task * step..n.min((task + 1) * step);
                weights.read(range.clone(), scratch)?;
                restored.resize(range.len(), 0.0);
                matrix.dequantize(range, restored);
                Ok(ErrorSums::of(&scratch.values, restored))
            },
        )
        .collect::<Result<Vec<_>>>()?;
    Ok(sums
        .into_iter()
        .fold(ErrorSums::default(), ErrorSums::plus)
        .finish())
}

/// The error over all `tensors`.
pub(crate) fn total<'a>(tensors: impl IntoIterator<Item = &'a WeightError>) -> WeightError {
    let sums = |error: &WeightError| {
        let n = error.values as f64;
        ErrorSums {
            values: error.values,
            error: error.rmse * error.rmse * n,
            largest: error.max_abs as f32,
            before: error.rms * error.rms * n,
            after: error.rms_restored * error.rms_restored * n,
            product: error.cosine * error.rms * error.rms_restored * n,
        }
    };
    tensors
        .into_iter()
        .map(sums)
        .fold(ErrorSums::default(), ErrorSums::plus)
        .finish()
}

/// `quantization_report.json`: the error of each tensor and of all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WeightErrors {
    /// Over all tensors.
    pub total: WeightError,
    /// By name of the tensor in the folder.
    pub tensors: BTreeMap<String, WeightError>,
}
