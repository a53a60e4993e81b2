//! SIMD vectors of sixteen f32.

mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(super) use self::portable::Portable;
#[cfg(target_arch = "x86_64")]
pub(super) use self::x86::{Avx2, Avx512, Sse41};

/// f32 values per [`Lanes`].
pub const LANES: usize = 16;

/// Sixteen f32 values; every method works lane by lane.
///
/// Its methods are inlined into functions compiled for the instructions they use; see [`super::level`].
///
/// # Safety
/// A method may be called only where the processor has the implementation's instructions. Pointers must be readable
/// (writable) for sixteen values; they need no alignment.
#[expect(
    clippy::missing_safety_doc,
    reason = "the trait states the one condition of all of them"
)]
pub unsafe trait Lanes: Copy {
    /// The same value in every lane.
    unsafe fn splat(value: f32) -> Self;
    /// Sixteen values from memory.
    unsafe fn load(from: *const f32) -> Self;
    /// Sixteen bfloat16 values, given as their bits, from memory.
    unsafe fn load_bf16(from: *const u16) -> Self;
    /// Sixteen values to memory.
    unsafe fn store(self, to: *mut f32);
    /// `self + other`.
    unsafe fn add(self, other: Self) -> Self;
    /// `self - other`.
    unsafe fn sub(self, other: Self) -> Self;
    /// `self * other`.
    unsafe fn mul(self, other: Self) -> Self;
    /// `self / other`.
    unsafe fn div(self, other: Self) -> Self;
    /// The larger.
    unsafe fn max(self, other: Self) -> Self;
    /// The smaller.
    unsafe fn min(self, other: Self) -> Self;
    /// `self * factor + term`, rounded once where the processor can.
    unsafe fn mul_add(self, factor: Self, term: Self) -> Self;
    /// To the nearest whole number, ties to even.
    unsafe fn round(self) -> Self;
    /// `self * 2^exponent` for whole exponents from -126 to 127.
    unsafe fn scale(self, exponent: Self) -> Self;
    /// The sum of all lanes.
    unsafe fn sum(self) -> f32;
    /// `low` in the lower eight lanes, `high` in the upper eight.
    unsafe fn halves(low: f32, high: f32) -> Self;
    /// Dot products of the values of the 128 4-bit codes in the 64 bytes at `codes` with `x`, whose numbers are ordered by
    /// [`Self::code_place`]: those of codes 0 to 63 in the lower eight lanes, those of the rest in the upper
    /// eight. The values are in units of 1 / [`CODE_UNIT`].
    unsafe fn code_dots(codes: *const u8, x: &CodeFactors, table: &CodeTable) -> Self;
    /// Prefetches the 64 bytes at `from`, which need not be mapped.
    unsafe fn prefetch(from: *const u8);
    /// Which of the 128 codes is multiplied with number `i`; the first code of a byte is its high half.
    fn code_place(i: usize) -> usize;
    /// The largest lane.
    unsafe fn largest(self) -> f32;

    /// e^x within 2 units in the last place, for x held within -87.3 and 88.
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        // SAFETY: forwarded to the caller.
        unsafe {
            // Cody and Waite's reduction, then Cephes' polynomial for e^r, |r| <= ln 2 / 2.
            let x = self.min(Self::splat(88.0)).max(Self::splat(-87.3));
            let n = x.mul(Self::splat(std::f32::consts::LOG2_E)).round();
            let r = n.mul_add(Self::splat(-0.693_359_4), x);
            let r = n.mul_add(Self::splat(2.121_944_4e-4), r);
            let mut p = Self::splat(1.987_569_2e-4);
            for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
                p = p.mul_add(r, Self::splat(c));
            }
            let p = p.mul(r).mul_add(r, r.add(Self::splat(1.0)));
            p.scale(n)
        }
    }

    /// x / (1 + e^-x).
    #[inline(always)]
    unsafe fn silu(self) -> Self {
        // SAFETY: forwarded to the caller.
        unsafe {
            let e = Self::splat(0.0).sub(self).exp();
            self.div(e.add(Self::splat(1.0)))
        }
    }
}

/// The representation of 1 in [`CodeTable`].
pub const CODE_UNIT: f32 = 16384.0;
/// Maximum magnitude of an integer multiplied with a [`CodeTable`] value: eight products fit in 32 bits.
pub const CODE_FACTOR: f32 = 16383.0;

/// Codes per [`Lanes::code_dots`].
pub const CODES: usize = 128;

/// Integers of at most [`CODE_FACTOR`], to be multiplied with code values.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub struct CodeFactors(pub [i16; CODES]);

/// The sixteen values in [-1, 1] of the 4-bit codes, in the layouts of the SIMD look-ups.
#[derive(Debug, Clone)]
#[repr(C, align(64))]
pub struct CodeTable {
    /// Twice, because the look-up uses five index bits.
    words: [[i16; 16]; 2],
    /// Lower and upper byte of each.
    bytes: [[u8; 16]; 2],
    /// The two of each byte, as floats.
    unit_pairs: [[f32; 2]; 256],
    values: [f32; 16],
    pairs: [[f32; 2]; 256],
}

impl CodeTable {
    /// Of code 0, code 1, ...
    pub fn new(values: &[f32; 16]) -> Self {
        let words = values.map(|value| (value.clamp(-1.0, 1.0) * CODE_UNIT).round() as i16);
        Self {
            words: [words; 2],
            bytes: std::array::from_fn(|byte| words.map(|word| word.to_le_bytes()[byte])),
            unit_pairs: std::array::from_fn(|byte| [words[byte >> 4], words[byte & 15]].map(f32::from)),
            values: *values,
            pairs: std::array::from_fn(|byte| [values[byte >> 4], values[byte & 15]]),
        }
    }

    /// The values.
    pub fn values(&self) -> &[f32; 16] {
        &self.values
    }

    /// Values of the codes in the high and the low nibble of each byte.
    pub fn pairs(&self) -> &[[f32; 2]; 256] {
        &self.pairs
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    /// Applies one function of sixteen numbers at every level this processor has.
    fn at_every_level(values: [f32; LANES], check: impl Fn(&str, [f32; LANES], [f32; LANES])) {
        struct Functions<'a>(&'a [f32; LANES]);
        impl super::super::level::Kernel for Functions<'_> {
            type Output = ([f32; LANES], [f32; LANES]);
            #[inline(always)]
            unsafe fn run<L: Lanes>(self) -> Self::Output {
                let (mut exp, mut silu) = ([0.0; LANES], [0.0; LANES]);
                // SAFETY: sixteen values each; the level was detected.
                unsafe {
                    let x = L::load(self.0.as_ptr());
                    x.exp().store(exp.as_mut_ptr());
                    x.silu().store(silu.as_mut_ptr());
                }
                (exp, silu)
            }
        }
        for level in Level::available() {
            let (exp, silu) = level.run(Functions(&values));
            check(&format!("{level:?}"), exp, silu);
        }
    }

    #[test]
    fn exponentials_are_exact_to_a_few_ulps() {
        for start in -60..60 {
            let values: [f32; LANES] = std::array::from_fn(|i| start as f32 + i as f32 * 0.0631);
            at_every_level(values, |level, exp, silu| {
                for i in 0..LANES {
                    let x = f64::from(values[i]);
                    let want = x.exp();
                    assert!((f64::from(exp[i]) / want - 1.0).abs() < 3e-7, "{level} exp({x})");
                    let want = x / (1.0 + (-x).exp());
                    assert!(
                        (f64::from(silu[i]) - want).abs() <= want.abs() * 5e-7 + 1e-30,
                        "{level} silu({x})"
                    );
                }
            });
        }
    }

    #[test]
    fn not_a_number_stays_one_and_extremes_are_bounded() {
        let mut values = [f32::NAN; LANES];
        values[..4].copy_from_slice(&[f32::INFINITY, f32::NEG_INFINITY, -1000.0, 1000.0]);
        at_every_level(values, |level, exp, silu| {
            assert!(exp[4..].iter().all(|x| x.is_nan()), "{level}");
            assert!(silu[4..].iter().all(|x| x.is_nan()), "{level}");
            assert!(
                exp[0].is_finite() && exp[0] > 1e38 && exp[1] < 1e-37 && exp[2] < 1e-37,
                "{level}"
            );
        });
    }
}
