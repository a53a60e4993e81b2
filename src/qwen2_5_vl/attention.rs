//! Attention within runs of rows that lie one behind the other: windows, images, sequences of a training.

use std::ffi::{c_char, c_int, c_void};

use tch::{Device, Kind, Tensor};

use crate::device::upload;
use crate::{Result, shim};

unsafe extern "C" {
    /// In `device/attention.cpp`.
    fn medvision_flash_attention(
        q: *const c_void,
        k: *const c_void,
        v: *const c_void,
        bounds: *const c_void,
        longest: i64,
        causal: c_int,
        out: *mut *mut c_void,
        message: *mut c_char,
        capacity: usize,
    ) -> c_int;
}

/// Consecutive runs of rows; a row sees those of its own run alone.
pub(super) struct Runs {
    lengths: Vec<i64>,
    longest: i64,
    /// i32 `[runs + 1]` on a GPU that computes in 16 bits: where runs end, from 0.
    bounds: Option<Tensor>,
}

impl Runs {
    /// Runs of `lengths` rows for a model that computes in `kind` on `device`.
    pub(super) fn new(lengths: Vec<i64>, kind: Kind, device: Device) -> Result<Self> {
        let bounds = if device == Device::Cpu || !matches!(kind, Kind::BFloat16 | Kind::Half) {
            None
        } else {
            let ends = lengths.iter().scan(0, |end, length| {
                *end += length;
                Some(*end as i32)
            });
            let ends: Vec<i32> = std::iter::once(0).chain(ends).collect();
            Some(upload(&ends, device)?)
        };
        Ok(Self {
            longest: lengths.iter().copied().max().unwrap_or(0),
            lengths,
            bounds,
        })
    }

    /// q: `[rows, heads, dim]`, k and v: the same with as many heads or a divisor of them → `[rows, heads * dim]`.
    ///
    /// `causal`: a row sees those of its run up to itself. No rows x rows mask ever exists.
    pub(super) fn attention(&self, q: &Tensor, k: &Tensor, v: &Tensor, causal: bool) -> Result<Tensor> {
        if let Some(y) = self.flash(q, k, v, causal) {
            return Ok(y.f_flatten(1, 2)?);
        }
        let grouped = q.size()[1] != k.size()[1];
        let (mut out, mut start, mut i) = (Vec::new(), 0, 0);
        // Neighbours of one length go through one call.
        while let Some(&length) = self.lengths.get(i) {
            let same = self.lengths[i..]
                .iter()
                .take_while(|&&other| other == length)
                .count();
            let rows = length * same as i64;
            let batch = |t: &Tensor| -> Result<Tensor> {
                let t = t
                    .f_narrow(0, start, rows)?
                    .f_unflatten(0, [same as i64, length])?;
                Ok(t.f_transpose(1, 2)?)
            };
            let y = Tensor::f_scaled_dot_product_attention(
                &batch(q)?,
                &batch(k)?,
                &batch(v)?,
                None::<Tensor>,
                0.0,
                causal,
                None,
                grouped,
            )?;
            out.push(y.f_transpose(1, 2)?.f_reshape([rows, -1])?);
            start += rows;
            i += same;
        }
        Ok(Tensor::f_cat(&out, 0)?)
    }

    /// All runs in one call, `[rows, heads, dim]`; `None` where this GPU or head size has no such kernel.
    fn flash(&self, q: &Tensor, k: &Tensor, v: &Tensor, causal: bool) -> Option<Tensor> {
        let bounds = self.bounds.as_ref()?;
        let mut out = std::ptr::null_mut();
        // SAFETY: live tensors; `out` and the message's room are valid for the call, which throws nothing.
        let called = shim::call(|message, capacity| unsafe {
            medvision_flash_attention(
                q.as_ptr().cast(),
                k.as_ptr().cast(),
                v.as_ptr().cast(),
                bounds.as_ptr().cast(),
                self.longest,
                c_int::from(causal),
                &mut out,
                message,
                capacity,
            )
        });
        if let Err(reason) = called {
            tracing::debug!("no flash attention: {}", shim::first_line(&reason));
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
}
