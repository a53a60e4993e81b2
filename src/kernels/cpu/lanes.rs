//! Sixteen f32 at a time, whatever the processor calls them.

/// Numbers in one [`Lanes`].
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
    /// Sums of products of the values of the 128 four-bit codes in the 64 bytes at `codes` with the 128 whole numbers at
    /// `x`, which stand where [`Self::code_place`] says: those of codes 0 to 63 in the lower eight lanes, those of the rest
    /// in the upper eight. The values are in units of 1 / [`CODE_UNIT`], the numbers no larger than [`CODE_FACTOR`].
    unsafe fn code_dots(codes: *const u8, x: *const i16, table: &CodeTable) -> Self;
    /// Asks for the 64 bytes at `from`, which need not exist, to be brought near.
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

/// What 1 is in [`CodeTable`].
pub const CODE_UNIT: f32 = 16384.0;
/// Largest magnitude of a number that is multiplied with a [`CodeTable`]'s value: eight products fit in 32 bits.
pub const CODE_FACTOR: f32 = 16383.0;

/// The sixteen values from -1 to 1 that four-bit codes stand for, in the forms that processors look things up.
#[derive(Debug, Clone)]
#[repr(C, align(64))]
pub struct CodeTable {
    /// Twice, since the processor heeds five bits of a place.
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

    /// What the codes in the high and in the low half of each byte stand for.
    pub fn pairs(&self) -> &[[f32; 2]; 256] {
        &self.pairs
    }
}

/// For any processor.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; LANES]);

impl Portable {
    #[inline(always)]
    fn map(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

// SAFETY: plain Rust; the trait's own conditions cover the pointers.
unsafe impl Lanes for Portable {
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Self([value; LANES])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: readable for sixteen values.
        Self(unsafe { from.cast::<[f32; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: readable for sixteen values.
        let bits = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        Self(bits.map(|b| f32::from_bits(u32::from(b) << 16)))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: writable for sixteen values.
        unsafe { to.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.map(other, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.map(other, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.map(other, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.map(other, |a, b| a / b)
    }
    // As the processor's own instructions: the second where either is not a number, so that a NaN reaches the result.
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        other.map(self, |b, a| if b > a { b } else { a })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        other.map(self, |b, a| if b < a { b } else { a })
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, term: Self) -> Self {
        // Without the processor's instruction a fused product is a slow library call.
        self.map(factor, |a, b| a * b).map(term, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        Self(self.0.map(f32::round_ties_even))
    }
    #[inline(always)]
    unsafe fn scale(self, exponent: Self) -> Self {
        self.map(exponent, |a, n| {
            a * f32::from_bits(((n as i32).wrapping_add(127) as u32) << 23)
        })
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let mut v = self.0;
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                v[i] += v[i + width];
            }
            width /= 2;
        }
        v[0]
    }
    #[inline(always)]
    unsafe fn halves(low: f32, high: f32) -> Self {
        Self(std::array::from_fn(|i| if i < LANES / 2 { low } else { high }))
    }
    #[inline(always)]
    unsafe fn code_dots(codes: *const u8, x: *const i16, table: &CodeTable) -> Self {
        // SAFETY: readable for 64 bytes and 128 numbers.
        let (codes, x) = unsafe {
            (
                &*codes.cast::<[[[u8; 4]; 8]; 2]>(),
                &*x.cast::<[[[i16; 8]; 8]; 2]>(),
            )
        };
        let mut sums = [[0.0; LANES / 2]; 2];
        for (sums, (codes, x)) in sums.iter_mut().zip(codes.iter().zip(x)) {
            for (codes, x) in codes.iter().zip(x) {
                // Spelt out, so that the values go to a register and not through memory.
                let [a, b, c, d] = codes.map(|byte| table.unit_pairs[usize::from(byte)]);
                let values = [a[0], a[1], b[0], b[1], c[0], c[1], d[0], d[1]];
                for (sum, (value, x)) in sums.iter_mut().zip(values.iter().zip(x.map(f32::from))) {
                    *sum += value * x;
                }
            }
        }
        Self(std::array::from_fn(|lane| sums[lane / 8][lane % 8]))
    }
    #[inline(always)]
    unsafe fn prefetch(_from: *const u8) {}
    #[inline(always)]
    fn code_place(i: usize) -> usize {
        i
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        self.0.iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use self::x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{CodeTable, Lanes};

    /// AVX-512F.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx512(__m512);

    // SAFETY: every method needs AVX-512F, as `Level::Avx512` promises.
    unsafe impl Lanes for Avx512 {
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: see the trait.
            Self(unsafe { _mm512_set1_ps(value) })
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: see the trait.
            Self(unsafe { _mm512_loadu_ps(from) })
        }
        #[inline(always)]
        unsafe fn load_bf16(from: *const u16) -> Self {
            // SAFETY: see the trait.
            unsafe {
                let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
                Self(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)))
            }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: see the trait.
            unsafe { _mm512_storeu_ps(to, self.0) }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: see the trait.
            Self(unsafe { _mm512_add_ps(self.0, other.0) })
        }
        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            // SAFETY: see the trait.
            Self(unsafe { _mm512_sub_ps(self.0, other.0) })
        }
        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            // SAFETY: see the trait.
            Self(unsafe { _mm512_mul_ps(self.0, other.0) })
        }
        #[inline(always)]
        unsafe fn div(self, other: Self) -> Self {
            // SAFETY: see the trait.
            Self(unsafe { _mm512_div_ps(self.0, other.0) })
        }
        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self {
            // SAFETY: see the trait. The second operand wins where one is not a number.
            Self(unsafe { _mm512_max_ps(other.0, self.0) })
        }
        #[inline(always)]
        unsafe fn min(self, other: Self) -> Self {
            // SAFETY: see the trait. The second operand wins where one is not a number.
            Self(unsafe { _mm512_min_ps(other.0, self.0) })
        }
        #[inline(always)]
        unsafe fn mul_add(self, factor: Self, term: Self) -> Self {
            // SAFETY: see the trait.
            Self(unsafe { _mm512_fmadd_ps(self.0, factor.0, term.0) })
        }
        #[inline(always)]
        unsafe fn round(self) -> Self {
            // SAFETY: see the trait.
            Self(unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0) })
        }
        #[inline(always)]
        unsafe fn scale(self, exponent: Self) -> Self {
            // SAFETY: see the trait.
            Self(unsafe { _mm512_scalef_ps(self.0, exponent.0) })
        }
        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            // SAFETY: see the trait.
            unsafe { _mm512_reduce_add_ps(self.0) }
        }
        #[inline(always)]
        unsafe fn halves(low: f32, high: f32) -> Self {
            // SAFETY: see the trait.
            unsafe {
                Self(_mm512_mask_blend_ps(
                    0xff00,
                    _mm512_set1_ps(low),
                    _mm512_set1_ps(high),
                ))
            }
        }
        #[inline(always)]
        unsafe fn code_dots(codes: *const u8, x: *const i16, table: &CodeTable) -> Self {
            // SAFETY: see the trait; 64 bytes and 128 numbers are readable.
            unsafe {
                let codes = _mm512_loadu_si512(codes.cast());
                let table = _mm512_load_si512(table.words.as_ptr().cast());
                // The lookup heeds the low five bits of each word alone.
                macro_rules! product {
                    ($part:literal, $codes:expr) => {
                        _mm512_madd_epi16(
                            _mm512_permutexvar_epi16($codes, table),
                            _mm512_loadu_si512(x.add($part * 32).cast()),
                        )
                    };
                }
                let sum = _mm512_add_epi32(
                    _mm512_add_epi32(product!(0, codes), product!(1, _mm512_srli_epi16::<4>(codes))),
                    _mm512_add_epi32(
                        product!(2, _mm512_srli_epi16::<8>(codes)),
                        product!(3, _mm512_srli_epi16::<12>(codes)),
                    ),
                );
                Self(_mm512_cvtepi32_ps(sum))
            }
        }
        #[inline(always)]
        unsafe fn prefetch(from: *const u8) {
            // SAFETY: a hint, whatever the address.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
        }
        #[inline(always)]
        fn code_place(i: usize) -> usize {
            i % 32 * 4 + ((i / 32) ^ 1)
        }
        #[inline(always)]
        unsafe fn largest(self) -> f32 {
            // SAFETY: see the trait.
            unsafe { _mm512_reduce_max_ps(self.0) }
        }
    }

    /// AVX2 with FMA.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx2(__m256, __m256);

    impl Avx2 {
        /// Sums of products of the values of 64 codes with `x`.
        #[inline(always)]
        unsafe fn half_dots(codes: __m256i, x: *const i16, table: &CodeTable) -> __m256i {
            // SAFETY: AVX2, as the callers'; `x` holds 64 numbers.
            unsafe {
                let mask = _mm256_set1_epi8(15);
                let (low, high) = (
                    _mm256_and_si256(codes, mask),
                    _mm256_and_si256(_mm256_srli_epi16::<4>(codes), mask),
                );
                _mm256_add_epi32(
                    Self::byte_dots(low, x, table),
                    Self::byte_dots(high, x.add(32), table),
                )
            }
        }

        /// Sums of products of the values of 32 codes, one a byte, with `x`. Each value is put together from its two bytes:
        /// the processor looks up bytes.
        #[inline(always)]
        unsafe fn byte_dots(codes: __m256i, x: *const i16, table: &CodeTable) -> __m256i {
            // SAFETY: AVX2, as the callers'; the tables are sixteen bytes each, `x` holds 32 numbers.
            unsafe {
                let lower = _mm256_broadcastsi128_si256(_mm_load_si128(table.bytes[0].as_ptr().cast()));
                let upper = _mm256_broadcastsi128_si256(_mm_load_si128(table.bytes[1].as_ptr().cast()));
                let (lower, upper) = (
                    _mm256_shuffle_epi8(lower, codes),
                    _mm256_shuffle_epi8(upper, codes),
                );
                let first = _mm256_unpacklo_epi8(lower, upper);
                let second = _mm256_unpackhi_epi8(lower, upper);
                _mm256_add_epi32(
                    _mm256_madd_epi16(first, _mm256_loadu_si256(x.cast())),
                    _mm256_madd_epi16(second, _mm256_loadu_si256(x.add(16).cast())),
                )
            }
        }

        #[inline(always)]
        unsafe fn widen(bits: __m128i) -> __m256 {
            // SAFETY: AVX2, as the callers'.
            unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits))) }
        }

        #[inline(always)]
        unsafe fn power_of_two(n: __m256) -> __m256 {
            // SAFETY: AVX2, as the callers'.
            unsafe {
                let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
            }
        }
    }

    // SAFETY: every method needs AVX2 and FMA, as `Level::Avx2` promises.
    unsafe impl Lanes for Avx2 {
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: see the trait.
            let v = unsafe { _mm256_set1_ps(value) };
            Self(v, v)
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: see the trait.
            unsafe { Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
        }
        #[inline(always)]
        unsafe fn load_bf16(from: *const u16) -> Self {
            // SAFETY: see the trait.
            unsafe {
                Self(
                    Self::widen(_mm_loadu_si128(from.cast())),
                    Self::widen(_mm_loadu_si128(from.add(8).cast())),
                )
            }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: see the trait.
            unsafe {
                _mm256_storeu_ps(to, self.0);
                _mm256_storeu_ps(to.add(8), self.1);
            }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: see the trait.
            unsafe { Self(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)) }
        }
        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            // SAFETY: see the trait.
            unsafe { Self(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1)) }
        }
        #[inline(always)]
        unsafe fn mul(self, other: Self) -> Self {
            // SAFETY: see the trait.
            unsafe { Self(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1)) }
        }
        #[inline(always)]
        unsafe fn div(self, other: Self) -> Self {
            // SAFETY: see the trait.
            unsafe { Self(_mm256_div_ps(self.0, other.0), _mm256_div_ps(self.1, other.1)) }
        }
        #[inline(always)]
        unsafe fn max(self, other: Self) -> Self {
            // SAFETY: see the trait. The second operand wins where one is not a number.
            unsafe { Self(_mm256_max_ps(other.0, self.0), _mm256_max_ps(other.1, self.1)) }
        }
        #[inline(always)]
        unsafe fn min(self, other: Self) -> Self {
            // SAFETY: see the trait. The second operand wins where one is not a number.
            unsafe { Self(_mm256_min_ps(other.0, self.0), _mm256_min_ps(other.1, self.1)) }
        }
        #[inline(always)]
        unsafe fn mul_add(self, factor: Self, term: Self) -> Self {
            // SAFETY: see the trait.
            unsafe {
                Self(
                    _mm256_fmadd_ps(self.0, factor.0, term.0),
                    _mm256_fmadd_ps(self.1, factor.1, term.1),
                )
            }
        }
        #[inline(always)]
        unsafe fn round(self) -> Self {
            // SAFETY: see the trait.
            unsafe {
                Self(
                    _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0),
                    _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.1),
                )
            }
        }
        #[inline(always)]
        unsafe fn scale(self, exponent: Self) -> Self {
            // SAFETY: see the trait.
            unsafe {
                Self(
                    _mm256_mul_ps(self.0, Self::power_of_two(exponent.0)),
                    _mm256_mul_ps(self.1, Self::power_of_two(exponent.1)),
                )
            }
        }
        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            // SAFETY: see the trait.
            unsafe {
                let v = _mm256_add_ps(self.0, self.1);
                let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
                let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
                _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
            }
        }
        #[inline(always)]
        unsafe fn halves(low: f32, high: f32) -> Self {
            // SAFETY: see the trait.
            unsafe { Self(_mm256_set1_ps(low), _mm256_set1_ps(high)) }
        }
        #[inline(always)]
        unsafe fn code_dots(codes: *const u8, x: *const i16, table: &CodeTable) -> Self {
            // SAFETY: see the trait; 64 bytes and 128 numbers are readable.
            unsafe {
                let (first, second) = (
                    _mm256_loadu_si256(codes.cast()),
                    _mm256_loadu_si256(codes.add(32).cast()),
                );
                Self(
                    _mm256_cvtepi32_ps(Self::half_dots(first, x, table)),
                    _mm256_cvtepi32_ps(Self::half_dots(second, x.add(64), table)),
                )
            }
        }
        #[inline(always)]
        unsafe fn prefetch(from: *const u8) {
            // SAFETY: a hint, whatever the address.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
        }
        #[inline(always)]
        fn code_place(i: usize) -> usize {
            let (half, vector, word) = (i / 64, i / 16 % 4, i % 16);
            let byte = word / 8 * 16 + vector % 2 * 8 + word % 8;
            half * 64 + byte * 2 + usize::from(vector < 2)
        }
        #[inline(always)]
        unsafe fn largest(self) -> f32 {
            // SAFETY: see the trait.
            unsafe {
                let v = _mm256_max_ps(self.0, self.1);
                let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
                let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
                _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
            }
        }
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
