//! Variable-length attention over packed rows: windows, images, training sequences.

use tch::{Device, Kind, Tensor};

use crate::Result;
use crate::torch::attention::{CuSeqlens, flash_attention};
use crate::torch::{first_line, upload};

/// Consecutive query rows that attend to the same keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    /// Number of queries.
    pub(super) q_len: i64,
    /// Number of keys; with causal attention the queries are the last of them.
    pub(super) kv_len: i64,
}

/// Segments of packed rows; a row attends within its own segment only.
pub(super) struct Segments {
    segments: Vec<Segment>,
    /// Rows of the keys and values of all segments, concatenated; `None` if each segment uses its own rows.
    kv_indices: Option<Tensor>,
    /// On a GPU that computes in 16 bits.
    seqlens: Option<CuSeqlens>,
}

impl Segments {
    /// Segments of `lengths` rows, for a model that computes in `kind` on `device`.
    pub(super) fn new(lengths: Vec<i64>, kind: Kind, device: Device) -> Result<Self> {
        let segment = |length| Segment {
            q_len: length,
            kv_len: length,
        };
        Self::with_kv_indices(lengths.into_iter().map(segment).collect(), None, kind, device)
    }

    /// Segments whose keys and values are the rows `kv_indices`, concatenated.
    pub(super) fn with_kv_indices(
        segments: Vec<Segment>,
        kv_indices: Option<&[i64]>,
        kind: Kind,
        device: Device,
    ) -> Result<Self> {
        let seqlens = if device == Device::Cpu || !matches!(kind, Kind::BFloat16 | Kind::Half) {
            None
        } else {
            let cumulative = |length: fn(&Segment) -> i64| -> Result<_> {
                let ends = segments.iter().scan(0, |end, segment| {
                    *end += length(segment);
                    Some(*end as i32)
                });
                let ends: Vec<i32> = std::iter::once(0).chain(ends).collect();
                Ok((
                    upload(&ends, device)?,
                    segments.iter().map(length).max().unwrap_or(0),
                ))
            };
            let (q, max_q) = cumulative(|segment| segment.q_len)?;
            let (kv, max_kv) = match kv_indices {
                Some(_) => cumulative(|segment| segment.kv_len)?,
                None => (q.shallow_clone(), max_q),
            };
            Some(CuSeqlens { q, kv, max_q, max_kv })
        };
        Ok(Self {
            segments,
            kv_indices: kv_indices.map(|rows| upload(rows, device)).transpose()?,
            seqlens,
        })
    }

    /// q: `[rows, heads, dim]`; k, v: the same with as many heads or a divisor of them → `[rows, heads * dim]`.
    ///
    /// `causal`: a row attends to the rows of its segment up to itself. No `[rows, rows]` mask is built.
    pub(super) fn attention(&self, q: &Tensor, k: &Tensor, v: &Tensor, causal: bool) -> Result<Tensor> {
        if let Some(indices) = &self.kv_indices {
            let (k, v) = (k.f_index_select(0, indices)?, v.f_index_select(0, indices)?);
            return self.attend(q, &k, &v, causal);
        }
        self.attend(q, k, v, causal)
    }

    /// k and v: the rows of all segments, concatenated.
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, causal: bool) -> Result<Tensor> {
        if let Some(y) = self.flash(q, k, v, causal) {
            return Ok(y.f_flatten(1, 2)?);
        }
        let grouped = q.size()[1] != k.size()[1];
        let (mut out, mut q_start, mut kv_start, mut i) = (Vec::new(), 0, 0, 0);
        // Adjacent segments of equal lengths form one batch.
        while let Some(&segment) = self.segments.get(i) {
            let equal = self.segments[i..].iter().take_while(|&&other| other == segment);
            let batch_size = equal.count();
            let batch = |t: &Tensor, start: i64, length: i64| -> Result<Tensor> {
                let t = t.f_narrow(0, start, length * batch_size as i64)?;
                Ok(t.f_unflatten(0, [batch_size as i64, length])?.f_transpose(1, 2)?)
            };
            let Segment { q_len, kv_len } = segment;
            // SDPA's own causal mask is square.
            let mask = if causal && q_len != kv_len {
                let all = Tensor::f_ones([q_len, kv_len], (Kind::Bool, q.device()))?;
                Some(all.f_tril(kv_len - q_len)?)
            } else {
                None
            };
            let y = Tensor::f_scaled_dot_product_attention(
                &batch(q, q_start, q_len)?,
                &batch(k, kv_start, kv_len)?,
                &batch(v, kv_start, kv_len)?,
                mask.as_ref(),
                0.0,
                causal && mask.is_none(),
                None,
                grouped,
            )?;
            let rows = q_len * batch_size as i64;
            out.push(y.f_transpose(1, 2)?.f_reshape([rows, -1])?);
            q_start += rows;
            kv_start += kv_len * batch_size as i64;
            i += batch_size;
        }
        Ok(Tensor::f_cat(&out, 0)?)
    }

    /// All segments in one call, `[rows, heads, dim]`; `None` if this GPU or head size has no such kernel.
    fn flash(&self, q: &Tensor, k: &Tensor, v: &Tensor, causal: bool) -> Option<Tensor> {
        let seqlens = self.seqlens.as_ref()?;
        flash_attention(q, k, v, seqlens, causal)
            .inspect_err(|reason| tracing::debug!("no flash attention: {}", first_line(reason)))
            .ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_attends_to_its_own_segment_only() {
        let options = (Kind::Float, Device::Cpu);
        let segments = Segments::new(vec![3, 3, 1, 4], Kind::Float, Device::Cpu).unwrap();
        let (q, k, v) = (
            Tensor::randn([11, 4, 8], options),
            Tensor::randn([11, 2, 8], options),
            Tensor::randn([11, 2, 8], options),
        );
        for causal in [false, true] {
            let y = segments.attention(&q, &k, &v, causal).unwrap();
            assert_eq!(y.size(), [11, 32]);
            let mut start = 0;
            for length in [3, 3, 1, 4] {
                let alone = Segments::new(vec![length], Kind::Float, Device::Cpu).unwrap();
                let part = |t: &Tensor| t.narrow(0, start, length);
                let own = alone.attention(&part(&q), &part(&k), &part(&v), causal).unwrap();
                let off = (part(&y) - own).abs().max().double_value(&[]);
                assert!(off < 1e-5, "{off}");
                start += length;
            }
        }
    }

    #[test]
    fn a_shared_prefix_is_attended_to_by_every_suffix() {
        let options = (Kind::Float, Device::Cpu);
        // Two sequences of 7 and 5 rows that share their first three.
        let rows = |t: &Tensor, wanted: &[i64]| t.index_select(0, &Tensor::from_slice(wanted));
        let segment = |q_len, kv_len| Segment { q_len, kv_len };
        let indices = [0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 7, 8];
        let segments = vec![segment(3, 3), segment(4, 7), segment(2, 5)];
        let segments = Segments::with_kv_indices(segments, Some(&indices), Kind::Float, Device::Cpu).unwrap();
        let (q, k, v) = (
            Tensor::randn([9, 4, 8], options),
            Tensor::randn([9, 2, 8], options),
            Tensor::randn([9, 2, 8], options),
        );
        let y = segments.attention(&q, &k, &v, true).unwrap();
        for own in [&[0i64, 1, 2, 3, 4, 5, 6][..], &[0, 1, 2, 7, 8]] {
            let alone = Segments::new(vec![own.len() as i64], Kind::Float, Device::Cpu).unwrap();
            let expected = alone
                .attention(&rows(&q, own), &rows(&k, own), &rows(&v, own), true)
                .unwrap();
            let off = (rows(&y, own) - expected).abs().max().double_value(&[]);
            assert!(off < 1e-5, "{off}");
        }
    }
}
