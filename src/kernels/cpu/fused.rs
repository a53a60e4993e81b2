//! Fused element-wise passes over a prompt's rows: one pass over memory each, where libtorch's operations take several.
//!
//! All take f32 tensors on the CPU; see [`applies`].

use tch::{Device, Kind, Tensor};

use super::lanes::{LANES, Lanes};
use super::level::{Kernel, Level};
use super::shared::Shared;
use super::team;
use crate::Result;

/// Fewer values than this run on one thread.
const TEAM_VALUES: usize = 1 << 15;

/// Whether these kernels support `x`: f32, on the CPU, contiguous.
pub fn applies(x: &Tensor) -> bool {
    x.kind() == Kind::Float && x.device() == Device::Cpu && x.is_contiguous()
}

/// Values of a tensor that the kernels [support](applies).
fn values(x: &Tensor) -> &[f32] {
    assert!(applies(x), "an f32 tensor on the CPU, contiguous");
    if x.numel() == 0 {
        return &[];
    }
    // SAFETY: contiguous, f32, on the CPU; the tensor lives as long as the slice.
    unsafe { std::slice::from_raw_parts(x.data_ptr().cast(), x.numel()) }
}

fn values_mut(x: &mut Tensor) -> &mut [f32] {
    let length = values(x).len();
    if length == 0 {
        return &mut [];
    }
    // SAFETY: as in `values`; the tensor is borrowed mutably. Views of it are not read meanwhile: callers own it.
    unsafe { std::slice::from_raw_parts_mut(x.data_ptr().cast(), length) }
}

/// Runs `work` on ranges of rows, on all threads if there are enough values.
fn by_rows(rows: usize, width: usize, work: impl Fn(std::ops::Range<usize>) + Sync) {
    let threads = if rows * width < TEAM_VALUES {
        1
    } else {
        tch::get_num_threads().max(1) as usize
    };
    team::run(threads, |member| work(member.share(rows, 4)));
}

/// x / rms(x) · weight. x: `[.., width]`, weight: `[width]`; same shape out.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let mut out = x.f_empty_like()?;
    let (input, weight) = (values(x), values(weight));
    let width = weight.len();
    let target = Shared::new(values_mut(&mut out));
    by_rows(input.len() / width, width, |rows| {
        let range = rows.start * width..rows.end * width;
        Level::best().run(RmsNorm {
            x: &input[range.clone()],
            weight,
            eps: eps as f32,
            // SAFETY: threads' rows are disjoint.
            out: unsafe { target.write(range) },
        });
    });
    Ok(out)
}

/// x += delta, then [`rms_norm`] of the sum.
pub fn add_rms_norm(x: &mut Tensor, delta: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let mut out = x.f_empty_like()?;
    let (delta, weight) = (values(delta), values(weight));
    let width = weight.len();
    let sums = Shared::new(values_mut(x));
    assert_eq!(delta.len(), sums.len(), "as many values to add");
    let target = Shared::new(values_mut(&mut out));
    by_rows(delta.len() / width, width, |rows| {
        let range = rows.start * width..rows.end * width;
        // SAFETY: threads' rows are disjoint.
        let (x, out) = unsafe { (sums.write(range.clone()), target.write(range.clone())) };
        for (x, delta) in x.iter_mut().zip(&delta[range]) {
            *x += delta;
        }
        Level::best().run(RmsNorm {
            x,
            weight,
            eps: eps as f32,
            out,
        });
    });
    Ok(out)
}

/// gate = silu(gate) · up, in place; both of one shape.
pub fn swiglu(gate: &mut Tensor, up: &Tensor) {
    let up = values(up);
    let gate = Shared::new(values_mut(gate));
    assert_eq!(gate.len(), up.len(), "gate and up of one shape");
    by_rows(up.len().div_ceil(LANES), LANES, |rows| {
        let range = rows.start * LANES..(rows.end * LANES).min(up.len());
        Level::best().run(SwiGlu {
            // SAFETY: threads' rows are disjoint.
            gate: unsafe { gate.write(range.clone()) },
            up: &up[range],
        });
    });
}

/// Gradient of [`rms_norm`] with respect to x, from its output's gradient. x, gradient: `[.., width]` → same shape.
pub fn rms_norm_backward(x: &Tensor, gradient: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let mut out = x.f_empty_like()?;
    let (input, gradient, weight) = (values(x), values(gradient), values(weight));
    assert_eq!(input.len(), gradient.len(), "as many gradients");
    let width = weight.len();
    let target = Shared::new(values_mut(&mut out));
    by_rows(input.len() / width, width, |rows| {
        let range = rows.start * width..rows.end * width;
        Level::best().run(RmsNormBackward {
            x: &input[range.clone()],
            gradient: &gradient[range.clone()],
            weight,
            eps: eps as f32,
            // SAFETY: threads' rows are disjoint.
            out: unsafe { target.write(range) },
        });
    });
    Ok(out)
}

/// Dropout with probability `part`: dropped values are zero, the others divided by 1 - `part`. The mask depends only on the
/// seed and the index of a value.
pub fn dropout(x: &Tensor, seed: u64, part: f64) -> Result<Tensor> {
    let mut out = x.f_empty_like()?;
    let input = values(x);
    let target = Shared::new(values_mut(&mut out));
    by_rows(input.len().div_ceil(LANES), LANES, |rows| {
        let range = rows.start * LANES..(rows.end * LANES).min(input.len());
        Level::best().run(Dropout {
            x: &input[range.clone()],
            first: range.start as u32,
            seed: [seed as u32, (seed >> 32) as u32],
            least: (part * f64::from(u32::MAX)) as u32,
            scale: (1.0 / (1.0 - part)) as f32,
            // SAFETY: threads' rows are disjoint.
            out: unsafe { target.write(range) },
        });
    });
    Ok(out)
}

/// Heads at the start of each row.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    /// Number of heads.
    pub count: usize,
    /// Head width.
    pub dim: usize,
}

/// Applies rotary embeddings to the first `heads` of each row in place: x · cos + rotate_half(x) · sin.
///
/// x: `[rows, ..]` with at least `heads.count * heads.dim` values per row; cos, sin: `[rows, heads.dim]`.
pub fn rotate_halves(x: &mut Tensor, heads: Heads, cos: &Tensor, sin: &Tensor) {
    let (cos, sin) = (values(cos), values(sin));
    let rows = cos.len() / heads.dim;
    let data = Shared::new(values_mut(x));
    let width = data.len().checked_div(rows).unwrap_or(0);
    assert!(width >= heads.count * heads.dim, "rows hold the heads");
    by_rows(rows, width, |rows| {
        for row in rows {
            // SAFETY: threads' rows are disjoint.
            let x = unsafe { data.write(row * width..row * width + heads.count * heads.dim) };
            let turn = row * heads.dim..(row + 1) * heads.dim;
            for head in x.chunks_exact_mut(heads.dim) {
                rotate_head(head, &cos[turn.clone()], &sin[turn.clone()]);
            }
        }
    });
}

/// Applies a rotary embedding to one head in place.
#[inline]
pub fn rotate_head(head: &mut [f32], cos: &[f32], sin: &[f32]) {
    let half = head.len() / 2;
    let (low, high) = head.split_at_mut(half);
    let (cos_low, cos_high) = cos.split_at(half);
    let (sin_low, sin_high) = sin.split_at(half);
    for i in 0..half {
        let (a, b) = (low[i], high[i]);
        low[i] = a * cos_low[i] - b * sin_low[i];
        high[i] = b * cos_high[i] + a * sin_high[i];
    }
}

/// RMSNorm of one row, single-threaded.
pub(crate) fn rms_norm_row(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    Level::best().run(RmsNorm { x, weight, eps, out });
}

struct RmsNorm<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let width = self.weight.len();
        for (x, out) in self.x.chunks_exact(width).zip(self.out.chunks_exact_mut(width)) {
            // SAFETY: indices below `width`, the length of all three; the level was checked by the caller.
            unsafe {
                let mut sums = [L::splat(0.0); 2];
                let mut at = 0;
                while at + 2 * LANES <= width {
                    for (i, sum) in sums.iter_mut().enumerate() {
                        let v = L::load(x.as_ptr().add(at + i * LANES));
                        *sum = v.mul_add(v, *sum);
                    }
                    at += 2 * LANES;
                }
                let mut total = sums[0].add(sums[1]).sum();
                for v in &x[at..] {
                    total += v * v;
                }
                let factor = 1.0 / (total / width as f32 + self.eps).sqrt();
                let scale = L::splat(factor);
                let mut at = 0;
                while at + LANES <= width {
                    let normed = L::load(x.as_ptr().add(at)).mul(scale);
                    normed
                        .mul(L::load(self.weight.as_ptr().add(at)))
                        .store(out.as_mut_ptr().add(at));
                    at += LANES;
                }
                for i in at..width {
                    out[i] = x[i] * factor * self.weight[i];
                }
            }
        }
    }
}

/// gate = silu(gate) · up, single-threaded.
pub(crate) fn swiglu_row(gate: &mut [f32], up: &[f32]) {
    Level::best().run(SwiGlu { gate, up });
}

struct SwiGlu<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl Kernel for SwiGlu<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let mut gates = self.gate.chunks_exact_mut(LANES);
        let ups = self.up.chunks_exact(LANES);
        let rest = ups.remainder();
        for (gate, up) in (&mut gates).zip(ups) {
            // SAFETY: sixteen values each; the level was checked by the caller.
            unsafe {
                L::load(gate.as_ptr())
                    .silu()
                    .mul(L::load(up.as_ptr()))
                    .store(gate.as_mut_ptr());
            }
        }
        for (gate, up) in gates.into_remainder().iter_mut().zip(rest) {
            *gate = *gate / (1.0 + (-*gate).exp()) * up;
        }
    }
}

struct RmsNormBackward<'a> {
    x: &'a [f32],
    gradient: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    out: &'a mut [f32],
}

impl Kernel for RmsNormBackward<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let (width, weight) = (self.weight.len(), self.weight);
        let rows = self.x.chunks_exact(width).zip(self.gradient.chunks_exact(width));
        for ((x, gradient), out) in rows.zip(self.out.chunks_exact_mut(width)) {
            // Sums per lane, so that the compiler can vectorize.
            let (mut squares, mut along) = ([0f32; LANES], [0f32; LANES]);
            let parts = x
                .chunks(LANES)
                .zip(gradient.chunks(LANES))
                .zip(weight.chunks(LANES));
            for ((x, gradient), weight) in parts {
                for (i, ((x, gradient), weight)) in x.iter().zip(gradient).zip(weight).enumerate() {
                    squares[i] += x * x;
                    along[i] += gradient * weight * x;
                }
            }
            let mean = |sums: [f32; LANES]| sums.iter().sum::<f32>() / width as f32;
            let factor = 1.0 / (mean(squares) + self.eps).sqrt();
            let along = mean(along) * factor * factor;
            for (((x, gradient), weight), out) in x.iter().zip(gradient).zip(weight).zip(out) {
                *out = (gradient * weight - x * along) * factor;
            }
        }
    }
}

struct Dropout<'a> {
    x: &'a [f32],
    /// Index of the first value.
    first: u32,
    seed: [u32; 2],
    /// Values whose hash is below this are dropped.
    least: u32,
    scale: f32,
    out: &'a mut [f32],
}

impl Kernel for Dropout<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // Murmur's finalizer of index and seed, twice; the compiler vectorizes it.
        let mixed = |mut h: u32| {
            h = (h ^ (h >> 16)).wrapping_mul(0x85EB_CA6B);
            h = (h ^ (h >> 13)).wrapping_mul(0xC2B2_AE35);
            h ^ (h >> 16)
        };
        for (i, (x, out)) in self.x.iter().zip(self.out).enumerate() {
            let place = self.first.wrapping_add(i as u32);
            let draw = mixed(mixed(place ^ self.seed[0]).wrapping_add(self.seed[1]));
            *out = if draw < self.least { 0.0 } else { x * self.scale };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(shape: &[i64], seed: i64) -> Tensor {
        tch::manual_seed(seed);
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
        (a - b).abs().max().double_value(&[])
    }

    fn reference_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Tensor {
        let mean = x.square().mean_dim(&[-1i64][..], true, Kind::Float);
        x * (mean + eps).rsqrt() * weight
    }

    #[test]
    fn norms_agree_with_libtorch() {
        for (rows, width) in [(1, 5), (7, 64), (300, 257), (513, 256)] {
            let (x, weight) = (random(&[rows, width], 1), random(&[width], 2));
            let got = rms_norm(&x, &weight, 1e-6).unwrap();
            let want = reference_norm(&x, &weight, 1e-6);
            assert!(largest_difference(&got, &want) < 2e-5, "{rows} {width}");
            let delta = random(&[rows, width], 3);
            let mut sum = x.copy();
            let got = add_rms_norm(&mut sum, &delta, &weight, 1e-6).unwrap();
            assert_eq!(largest_difference(&sum, &(&x + &delta)), 0.0);
            assert!(largest_difference(&got, &reference_norm(&sum, &weight, 1e-6)) < 2e-5);
        }
    }

    #[test]
    fn dropout_drops_its_part_and_keeps_the_mean() {
        let x = Tensor::ones([1000, 257], (Kind::Float, Device::Cpu));
        let y = dropout(&x, 0x1234_5678_9ABC, 0.05).unwrap();
        let dropped = y
            .eq(0.0)
            .to_kind(Kind::Double)
            .mean(Kind::Double)
            .double_value(&[]);
        assert!((dropped - 0.05).abs() < 0.002, "{dropped}");
        assert!((y.mean(Kind::Double).double_value(&[]) - 1.0).abs() < 0.002);
        assert_eq!(
            largest_difference(&y, &dropout(&x, 0x1234_5678_9ABC, 0.05).unwrap()),
            0.0
        );
        // Other seeds drop others: where both do is a matter of chance.
        for seed in [0x1234_5678_9ABD, 0x1235_1234_5678_9ABC] {
            let other = dropout(&x, seed, 0.05).unwrap();
            let both = (&y + &other)
                .eq(0.0)
                .to_kind(Kind::Double)
                .mean(Kind::Double)
                .double_value(&[]);
            assert!((both - 0.0025).abs() < 0.0006, "{both}");
        }
        let rows = y
            .eq(0.0)
            .to_kind(Kind::Double)
            .mean_dim(&[1i64][..], false, Kind::Double);
        assert!(
            rows.max().double_value(&[]) < 0.15,
            "no row is dropped as a whole"
        );
    }

    #[test]
    fn swiglu_agrees_with_libtorch() {
        for shape in [[1, 3], [5, 16], [301, 257]] {
            let (mut gate, up) = (random(&shape, 4) * 4.0, random(&shape, 5));
            let want = gate.silu() * &up;
            swiglu(&mut gate, &up);
            assert!(largest_difference(&gate, &want) < 1e-5, "{shape:?}");
        }
    }

    #[test]
    fn rotation_agrees_with_its_formula() {
        let (rows, heads, extra, dim) = (130, 4, 3, 20);
        let mut x = random(&[rows, (heads + extra) * dim], 6);
        let angles = random(&[rows, dim], 7);
        let (cos, sin) = (angles.cos(), angles.sin());
        let before = x.copy();
        let head = |t: &Tensor| t.narrow(1, 0, heads * dim).reshape([rows, heads, dim]);
        let turned = head(&before);
        let half = dim / 2;
        let other = Tensor::cat(
            &[turned.narrow(2, half, half).neg(), turned.narrow(2, 0, half)],
            2,
        );
        let want = turned * cos.unsqueeze(1) + other * sin.unsqueeze(1);
        let count = heads as usize;
        rotate_halves(
            &mut x,
            Heads {
                count,
                dim: dim as usize,
            },
            &cos,
            &sin,
        );
        assert!(largest_difference(&head(&x), &want) < 1e-6);
        let rest = |t: &Tensor| t.narrow(1, heads * dim, extra * dim);
        assert_eq!(largest_difference(&rest(&x), &rest(&before)), 0.0);
    }
}
