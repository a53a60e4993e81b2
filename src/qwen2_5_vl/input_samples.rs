//! Samples of what linear layers read.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use tch::Tensor;

use crate::Result;

/// Sampled input rows of linear layers by layer name, on which a quantization is evaluated.
pub struct InputSamples {
    rows: i64,
    passes: i64,
    kept: Mutex<BTreeMap<String, Sample>>,
}

/// Input rows of one layer, allocated once at the first pass: a small allocation per pass would fragment the heap.
struct Sample {
    /// `[rows · passes, in]`.
    buffer: Tensor,
    filled: i64,
}

impl InputSamples {
    /// Keeps up to `rows` evenly spaced rows of each input in each of `passes` passes.
    pub fn new(rows: i64, passes: usize) -> Self {
        Self {
            rows,
            passes: passes as i64,
            kept: Mutex::default(),
        }
    }

    /// Takes the kept rows out, `[rows, in]` per layer.
    pub fn take(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let joined = std::mem::take(&mut *kept).into_iter();
        joined
            .map(|(name, sample)| Ok((name, sample.buffer.f_narrow(0, 0, sample.filled)?)))
            .collect()
    }

    /// Samples `x`, the input of layer `name`.
    pub(super) fn keep(&self, name: &str, x: &Tensor) -> Result<()> {
        let x = x.f_flatten(0, -2)?;
        let step = (x.size()[0] + self.rows - 1) / self.rows;
        let rows = x.f_slice(0, None, None, step.max(1))?;
        let (count, width) = rows.size2()?;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if !kept.contains_key(name) {
            let buffer = Tensor::f_empty([self.rows * self.passes, width], (x.kind(), x.device()))?;
            kept.insert(name.to_owned(), Sample { buffer, filled: 0 });
        }
        if let Some(sample) = kept.get_mut(name) {
            let count = count.min(self.rows * self.passes - sample.filled);
            let mut place = sample.buffer.f_narrow(0, sample.filled, count)?;
            place.f_copy_(&rows.f_narrow(0, 0, count)?)?;
            sample.filled += count;
        }
        Ok(())
    }
}
