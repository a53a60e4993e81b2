//! Attention within runs of rows that lie one behind the other: windows, images, sequences of a training.

use std::ffi::{c_char, c_int, c_void};

use tch::{Device, Kind, Tensor};

use crate::torch::upload;
use crate::{Result, torch};

unsafe extern "C" {
    /// In `torch/attention.cpp`.
    fn medvision_flash_attention(
        q: *const c_void,
        k: *const c_void,
        v: *const c_void,
        query_bounds: *const c_void,
        key_bounds: *const c_void,
        most_queries: i64,
        most_keys: i64,
        causal: c_int,
        out: *mut *mut c_void,
        message: *mut c_char,
        capacity: usize,
    ) -> c_int;
}

/// Rows that see each other, consecutive ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    /// Rows that look.
    pub(super) queries: i64,
    /// Rows that they see, of which they are the last.
    pub(super) keys: i64,
}

/// Runs of rows; a row sees those of its own run alone.
pub(super) struct Runs {
    runs: Vec<Run>,
    /// Which rows the runs see, one run's behind the other's; `None` where each run sees its own.
    seen: Option<Tensor>,
    /// On a GPU that computes in 16 bits.
    bounds: Option<Bounds>,
}

/// Where runs end, from 0, i32 `[runs + 1]`.
struct Bounds {
    queries: Tensor,
    keys: Tensor,
    most_queries: i64,
    most_keys: i64,
}

impl Runs {
    /// Runs of `lengths` rows for a model that computes in `kind` on `device`.
    pub(super) fn new(lengths: Vec<i64>, kind: Kind, device: Device) -> Result<Self> {
        let run = |length| Run {
            queries: length,
            keys: length,
        };
        Self::seeing(lengths.into_iter().map(run).collect(), None, kind, device)
    }

    /// Runs that see the rows `seen`, one run's behind the other's.
    pub(super) fn seeing(runs: Vec<Run>, seen: Option<&[i64]>, kind: Kind, device: Device) -> Result<Self> {
        let bounds = if device == Device::Cpu || !matches!(kind, Kind::BFloat16 | Kind::Half) {
            None
        } else {
            let ends = |length: fn(&Run) -> i64| -> Result<_> {
                let ends = runs.iter().scan(0, |end, run| {
                    *end += length(run);
                    Some(*end as i32)
                });
                let ends: Vec<i32> = std::iter::once(0).chain(ends).collect();
                Ok((upload(&ends, device)?, runs.iter().map(length).max().unwrap_or(0)))
            };
            let (queries, most_queries) = ends(|run| run.queries)?;
            let (keys, most_keys) = match seen {
                Some(_) => ends(|run| run.keys)?,
                None => (queries.shallow_clone(), most_queries),
            };
            Some(Bounds {
                queries,
                keys,
                most_queries,
                most_keys,
            })
        };
        Ok(Self {
            runs,
            seen: seen.map(|rows| upload(rows, device)).transpose()?,
            bounds,
        })
    }

    /// q: `[rows, heads, dim]`, k and v: the same with as many heads or a divisor of them → `[rows, heads * dim]`.
    ///
    /// `causal`: a row sees those of its run up to itself. No rows x rows mask of all rows ever exists.
    pub(super) fn attention(&self, q: &Tensor, k: &Tensor, v: &Tensor, causal: bool) -> Result<Tensor> {
        if let Some(seen) = &self.seen {
            let (k, v) = (k.f_index_select(0, seen)?, v.f_index_select(0, seen)?);
            return self.within(q, &k, &v, causal);
        }
        self.within(q, k, v, causal)
    }

    /// k and v as the runs see them.
    fn within(&self, q: &Tensor, k: &Tensor, v: &Tensor, causal: bool) -> Result<Tensor> {
        if let Some(y) = self.flash(q, k, v, causal) {
            return Ok(y.f_flatten(1, 2)?);
        }
        let grouped = q.size()[1] != k.size()[1];
        let (mut out, mut from, mut seen, mut i) = (Vec::new(), 0, 0, 0);
        // Neighbours of one length go through one call.
        while let Some(&run) = self.runs.get(i) {
            let same = self.runs[i..].iter().take_while(|&&other| other == run).count();
            let batch = |t: &Tensor, start: i64, length: i64| -> Result<Tensor> {
                let t = t.f_narrow(0, start, length * same as i64)?;
                Ok(t.f_unflatten(0, [same as i64, length])?.f_transpose(1, 2)?)
            };
            // The mask that comes with causal attention is for as many queries as keys.
            let mask = if causal && run.queries != run.keys {
                let all = Tensor::f_ones([run.queries, run.keys], (Kind::Bool, q.device()))?;
                Some(all.f_tril(run.keys - run.queries)?)
            } else {
                None
            };
            let y = Tensor::f_scaled_dot_product_attention(
                &batch(q, from, run.queries)?,
                &batch(k, seen, run.keys)?,
                &batch(v, seen, run.keys)?,
                mask.as_ref(),
                0.0,
                causal && mask.is_none(),
                None,
                grouped,
            )?;
            let rows = run.queries * same as i64;
            out.push(y.f_transpose(1, 2)?.f_reshape([rows, -1])?);
            from += rows;
            seen += run.keys * same as i64;
            i += same;
        }
        Ok(Tensor::f_cat(&out, 0)?)
    }

    /// All runs in one call, `[rows, heads, dim]`; `None` where this GPU or head size has no such kernel.
    fn flash(&self, q: &Tensor, k: &Tensor, v: &Tensor, causal: bool) -> Option<Tensor> {
        let bounds = self.bounds.as_ref()?;
        let mut out = std::ptr::null_mut();
        // SAFETY: live tensors; `out` and the message's room are valid for the call, which throws nothing.
        let called = torch::call(|message, capacity| unsafe {
            medvision_flash_attention(
                q.as_ptr().cast(),
                k.as_ptr().cast(),
                v.as_ptr().cast(),
                bounds.queries.as_ptr().cast(),
                bounds.keys.as_ptr().cast(),
                bounds.most_queries,
                bounds.most_keys,
                c_int::from(causal),
                &mut out,
                message,
                capacity,
            )
        });
        if let Err(reason) = called {
            tracing::debug!("no flash attention: {}", torch::first_line(&reason));
            return None;
        }
        // SAFETY: a new tensor, whose owner this becomes.
        Some(unsafe { Tensor::from_ptr(out.cast()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_sees_its_own_run_alone() {
        let options = (Kind::Float, Device::Cpu);
        let runs = Runs::new(vec![3, 3, 1, 4], Kind::Float, Device::Cpu).unwrap();
        let (q, k, v) = (
            Tensor::randn([11, 4, 8], options),
            Tensor::randn([11, 2, 8], options),
            Tensor::randn([11, 2, 8], options),
        );
        for causal in [false, true] {
            let y = runs.attention(&q, &k, &v, causal).unwrap();
            assert_eq!(y.size(), [11, 32]);
            let mut start = 0;
            for length in [3, 3, 1, 4] {
                let alone = Runs::new(vec![length], Kind::Float, Device::Cpu).unwrap();
                let part = |t: &Tensor| t.narrow(0, start, length);
                let own = alone.attention(&part(&q), &part(&k), &part(&v), causal).unwrap();
                let off = (part(&y) - own).abs().max().double_value(&[]);
                assert!(off < 1e-5, "{off}");
                start += length;
            }
        }
    }

    #[test]
    fn a_common_beginning_is_seen_by_all_that_go_on_from_it() {
        let options = (Kind::Float, Device::Cpu);
        // Two sequences of 7 and 5 rows that share their first three.
        let rows = |t: &Tensor, wanted: &[i64]| t.index_select(0, &Tensor::from_slice(wanted));
        let run = |queries, keys| Run { queries, keys };
        let seen = [0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 7, 8];
        let runs = vec![run(3, 3), run(4, 7), run(2, 5)];
        let runs = Runs::seeing(runs, Some(&seen), Kind::Float, Device::Cpu).unwrap();
        let (q, k, v) = (
            Tensor::randn([9, 4, 8], options),
            Tensor::randn([9, 2, 8], options),
            Tensor::randn([9, 2, 8], options),
        );
        let y = runs.attention(&q, &k, &v, true).unwrap();
        for own in [&[0i64, 1, 2, 3, 4, 5, 6][..], &[0, 1, 2, 7, 8]] {
            let alone = Runs::new(vec![own.len() as i64], Kind::Float, Device::Cpu).unwrap();
            let expected = alone
                .attention(&rows(&q, own), &rows(&k, own), &rows(&v, own), true)
                .unwrap();
            let off = (rows(&y, own) - expected).abs().max().double_value(&[]);
            assert!(off < 1e-5, "{off}");
        }
    }
}
