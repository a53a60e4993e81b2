//! Decode attention: one new token over cached keys and values, in KV splits (flash decoding).

use std::ops::Range;

use super::lanes::{LANES, Lanes};
use super::level::{Kernel, Level};

/// Head sizes.
#[derive(Debug, Clone, Copy)]
pub struct AttentionShape {
    /// Query heads per key and value head.
    pub group: usize,
    /// Head width.
    pub head_dim: usize,
}

/// Softmax statistics of one KV split for one query head; its `[head_dim]` outputs are not yet normalized.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Partial {
    /// Largest score.
    pub largest: f32,
    /// Sum of e^(score - largest).
    pub sum: f32,
}

/// One KV split of one key and value head.
struct Attend<'a> {
    shape: AttentionShape,
    queries: &'a [f32],
    keys: &'a [f32],
    values: &'a [f32],
    scores: &'a mut Vec<f32>,
    out: &'a mut [f32],
    partials: &'a mut [Partial],
}

/// Attention of `group` queries over the positions of `keys` and `values`.
///
/// `queries`: `[group, head_dim]`, scaled by 1/√head_dim already; `keys`, `values`: `[positions, head_dim]`; `scores` is
/// scratch. `out`: `[group, head_dim]` gets Σ e^(score - largest) · value, `partials` one entry per query.
pub fn attend(
    shape: AttentionShape,
    queries: &[f32],
    (keys, values): (&[f32], &[f32]),
    scores: &mut Vec<f32>,
    out: &mut [f32],
    partials: &mut [Partial],
) {
    Level::best().run(Attend {
        shape,
        queries,
        keys,
        values,
        scores,
        out,
        partials,
    });
}

impl Kernel for Attend<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let Self {
            shape: AttentionShape { group, head_dim },
            queries,
            keys,
            values,
            scores,
            out,
            partials,
        } = self;
        let positions = keys.len() / head_dim;
        assert!(
            queries.len() == group * head_dim && out.len() == group * head_dim && partials.len() == group
        );
        assert_eq!(values.len(), keys.len());
        // Whole lanes per query, so that the exponentials have no remainder.
        let stride = positions.next_multiple_of(LANES);
        scores.clear();
        scores.resize(group * stride, f32::NEG_INFINITY);
        for (position, key) in keys.chunks_exact(head_dim).enumerate() {
            for (query, values) in queries
                .chunks_exact(head_dim)
                .zip(scores.chunks_exact_mut(stride))
            {
                // SAFETY: both have head_dim values; the level was checked by the caller.
                values[position] = unsafe { dot::<L>(query, key) };
            }
        }
        for (scores, partial) in scores.chunks_exact_mut(stride).zip(partials) {
            // SAFETY: as above.
            *partial = unsafe { exponentiate::<L>(scores) };
        }
        out.fill(0.0);
        let whole = head_dim / LANES * LANES;
        for at in (0..whole).step_by(4 * LANES) {
            let width = (whole - at).min(4 * LANES) / LANES;
            for (scores, out) in scores.chunks_exact(stride).zip(out.chunks_exact_mut(head_dim)) {
                // SAFETY: `width` lanes from `at` lie within head_dim.
                unsafe {
                    match width {
                        4 => weigh::<L, 4>(scores, values, head_dim, at, out),
                        3 => weigh::<L, 3>(scores, values, head_dim, at, out),
                        2 => weigh::<L, 2>(scores, values, head_dim, at, out),
                        _ => weigh::<L, 1>(scores, values, head_dim, at, out),
                    }
                }
            }
        }
        for column in whole..head_dim {
            for (scores, out) in scores.chunks_exact(stride).zip(out.chunks_exact_mut(head_dim)) {
                let products = scores.iter().zip(values.chunks_exact(head_dim));
                out[column] = products.map(|(score, value)| score * value[column]).sum();
            }
        }
    }
}

/// Replaces scores by e^(score - largest).
///
/// # Safety
/// The processor has the instructions of `L`; whole lanes of scores.
#[inline(always)]
unsafe fn exponentiate<L: Lanes>(scores: &mut [f32]) -> Partial {
    debug_assert_eq!(scores.len() % LANES, 0);
    // SAFETY: whole lanes; the caller checked the level.
    unsafe {
        let mut largest = L::splat(f32::NEG_INFINITY);
        for lanes in scores.chunks_exact(LANES) {
            largest = largest.max(L::load(lanes.as_ptr()));
        }
        let largest = largest.largest();
        let (shift, floor) = (L::splat(largest), L::splat(-87.0));
        let mut sum = L::splat(0.0);
        for lanes in scores.chunks_exact_mut(LANES) {
            let x = L::load(lanes.as_ptr()).sub(shift);
            let e = x.max(floor).exp();
            e.store(lanes.as_mut_ptr());
            sum = sum.add(e);
        }
        Partial {
            largest,
            sum: sum.sum(),
        }
    }
}

/// `out[at ..]`: Σ score · value over `N` lanes of columns.
///
/// # Safety
/// The processor has the instructions of `L`; `at + N · LANES <= head_dim`.
#[inline(always)]
unsafe fn weigh<L: Lanes, const N: usize>(
    scores: &[f32],
    values: &[f32],
    head_dim: usize,
    at: usize,
    out: &mut [f32],
) {
    // SAFETY: columns `at .. at + N · LANES` of each row of head_dim values, and of `out`.
    unsafe {
        let mut sums = [L::splat(0.0); N];
        for (score, value) in scores.iter().zip(values.chunks_exact(head_dim)) {
            let score = L::splat(*score);
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = L::load(value.as_ptr().add(at + i * LANES)).mul_add(score, *sum);
            }
        }
        for (i, sum) in sums.iter().enumerate() {
            sum.store(out.as_mut_ptr().add(at + i * LANES));
        }
    }
}

/// # Safety
/// The processor has the instructions of `L`; `b` is as long as `a`.
#[inline(always)]
unsafe fn dot<L: Lanes>(a: &[f32], b: &[f32]) -> f32 {
    debug_assert_eq!(a.len(), b.len());
    // SAFETY: every index is below the length.
    unsafe {
        let mut sum = L::splat(0.0);
        let mut at = 0;
        while at + LANES <= a.len() {
            sum = L::load(a.as_ptr().add(at)).mul_add(L::load(b.as_ptr().add(at)), sum);
            at += LANES;
        }
        let mut total = sum.sum();
        while at < a.len() {
            total += a[at] * b[at];
            at += 1;
        }
        total
    }
}

/// Combines the KV splits of one query head: `partials` and `outs`, `[splits, head_dim]`, into the attention `out`.
pub fn combine(partials: &[Partial], outs: &[f32], out: &mut [f32]) {
    let largest = partials
        .iter()
        .map(|p| p.largest)
        .fold(f32::NEG_INFINITY, f32::max);
    let weights = |p: &Partial| (p.largest - largest).exp();
    let sum: f32 = partials.iter().map(|p| weights(p) * p.sum).sum();
    out.fill(0.0);
    for (partial, values) in partials.iter().zip(outs.chunks_exact(out.len())) {
        let weight = weights(partial) / sum;
        for (out, value) in out.iter_mut().zip(values) {
            *out += weight * value;
        }
    }
}

/// Split `index` of `0..positions` into `splits` even ranges; the last one is never empty.
pub fn kv_split(positions: usize, splits: usize, index: usize) -> Range<usize> {
    positions * index / splits..positions * (index + 1) / splits
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Plain attention in f64.
    fn reference(shape: AttentionShape, queries: &[f32], keys: &[f32], values: &[f32]) -> Vec<f64> {
        let dim = shape.head_dim;
        let mut out = Vec::new();
        for query in queries.chunks_exact(dim) {
            let scores: Vec<f64> = keys
                .chunks_exact(dim)
                .map(|key| {
                    query
                        .iter()
                        .zip(key)
                        .map(|(a, b)| f64::from(*a) * f64::from(*b))
                        .sum()
                })
                .collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for column in 0..dim {
                let products = weights.iter().zip(values.chunks_exact(dim));
                out.push(products.map(|(w, v)| w * f64::from(v[column])).sum::<f64>() / sum);
            }
        }
        out
    }

    proptest! {
        #[test]
        fn splits_combine_to_plain_attention(
            group in 1usize..4,
            head_dim in prop::sample::select(vec![4usize, 12, 16, 20, 48, 64, 80, 128]),
            positions in 1usize..70,
            parts in 1usize..4,
            seed in any::<u64>(),
        ) {
            let parts = parts.min(positions);
            let mut state = seed;
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((state >> 40) as f32 / (1u64 << 23) as f32) - 1.0
            };
            let shape = AttentionShape { group, head_dim };
            let queries: Vec<f32> = (0..group * head_dim).map(|_| next() * 2.0).collect();
            let keys: Vec<f32> = (0..positions * head_dim).map(|_| next()).collect();
            let values: Vec<f32> = (0..positions * head_dim).map(|_| next()).collect();
            let want = reference(shape, &queries, &keys, &values);
            for level in Level::available() {
                let mut outs = vec![0.0; parts * group * head_dim];
                let mut partials = vec![Partial { largest: 0.0, sum: 0.0 }; parts * group];
                for part in 0..parts {
                    let range = kv_split(positions, parts, part);
                    let slice = |t: &[f32]| t[range.start * head_dim..range.end * head_dim].to_vec();
                    level.run(Attend {
                        shape,
                        queries: &queries,
                        keys: &slice(&keys),
                        values: &slice(&values),
                        scores: &mut Vec::new(),
                        out: &mut outs[part * group * head_dim..][..group * head_dim],
                        partials: &mut partials[part * group..][..group],
                    });
                }
                for head in 0..group {
                    let heads: Vec<Partial> = (0..parts).map(|p| partials[p * group + head]).collect();
                    let rows: Vec<f32> = (0..parts)
                        .flat_map(|p| outs[(p * group + head) * head_dim..][..head_dim].to_vec())
                        .collect();
                    let mut out = vec![0.0; head_dim];
                    combine(&heads, &rows, &mut out);
                    for (got, want) in out.iter().zip(&want[head * head_dim..]) {
                        prop_assert!((f64::from(*got) - want).abs() < 2e-6, "{level:?}: {got} {want}");
                    }
                }
            }
        }
    }
}
