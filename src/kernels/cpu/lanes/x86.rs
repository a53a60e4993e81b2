//! The lanes of x86-64 processors.

use std::arch::x86_64::*;

use super::{CodeFactors, CodeTable, Lanes};

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
    unsafe fn code_dots(codes: *const u8, x: &CodeFactors, table: &CodeTable) -> Self {
        // SAFETY: see the trait; 64 bytes are readable.
        unsafe {
            let codes = _mm512_loadu_si512(codes.cast());
            let table = _mm512_load_si512(table.words.as_ptr().cast());
            // The look-up uses the low five bits of each word only.
            macro_rules! product {
                ($part:literal, $codes:expr) => {
                    _mm512_madd_epi16(
                        _mm512_permutexvar_epi16($codes, table),
                        _mm512_load_si512(x.0.as_ptr().add($part * 32).cast()),
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
        // SAFETY: AVX2, as the callers'; `x` holds 64 numbers, aligned.
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

    /// Dot products of the values of 32 codes, one per byte, with `x`. Each value is combined from two byte look-ups.
    #[inline(always)]
    unsafe fn byte_dots(codes: __m256i, x: *const i16, table: &CodeTable) -> __m256i {
        // SAFETY: AVX2, as the callers'; the tables are sixteen bytes each, `x` holds 32 numbers, aligned.
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
                _mm256_madd_epi16(first, _mm256_load_si256(x.cast())),
                _mm256_madd_epi16(second, _mm256_load_si256(x.add(16).cast())),
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
    unsafe fn code_dots(codes: *const u8, x: &CodeFactors, table: &CodeTable) -> Self {
        // SAFETY: see the trait; 64 bytes are readable.
        unsafe {
            let (first, second) = (
                _mm256_loadu_si256(codes.cast()),
                _mm256_loadu_si256(codes.add(32).cast()),
            );
            Self(
                _mm256_cvtepi32_ps(Self::half_dots(first, x.0.as_ptr(), table)),
                _mm256_cvtepi32_ps(Self::half_dots(second, x.0.as_ptr().add(64), table)),
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

/// SSE4.1: what every x86-64 processor since about 2009 has.
///
/// Arithmetic limits its four-bit products, not memory: [`Lanes::code_dots`] and the scaling take 86 vector instructions for
/// 64 bytes, sixteen bytes at a time; 28 cycles where a processor does three a cycle.
#[derive(Clone, Copy)]
pub(in super::super) struct Sse41([__m128; 4]);

/// An [`Sse41`] of `$value` for each `$i`. A closure would not be compiled for the level's instructions.
macro_rules! four {
    ($i:ident => $value:expr) => {
        Sse41([
            {
                let $i = 0;
                $value
            },
            {
                let $i = 1;
                $value
            },
            {
                let $i = 2;
                $value
            },
            {
                let $i = 3;
                $value
            },
        ])
    };
}

impl Sse41 {
    /// Sums of products of the values of 32 codes with `x`.
    #[inline(always)]
    unsafe fn quarter_dots(codes: *const u8, x: *const i16, table: &CodeTable) -> __m128i {
        // SAFETY: SSE4.1, as the callers'; 16 bytes are readable, `x` holds 32 numbers, aligned.
        unsafe {
            let mask = _mm_set1_epi8(15);
            let codes = _mm_loadu_si128(codes.cast());
            let (low, high) = (
                _mm_and_si128(codes, mask),
                _mm_and_si128(_mm_srli_epi16::<4>(codes), mask),
            );
            _mm_add_epi32(
                Self::byte_dots(low, x, table),
                Self::byte_dots(high, x.add(16), table),
            )
        }
    }

    /// Dot products of the values of 16 codes, one per byte, with `x`; as [`Avx2::byte_dots`].
    #[inline(always)]
    unsafe fn byte_dots(codes: __m128i, x: *const i16, table: &CodeTable) -> __m128i {
        // SAFETY: SSE4.1, as the callers'; the tables are sixteen bytes each, `x` holds 16 numbers, aligned.
        unsafe {
            let lower = _mm_shuffle_epi8(_mm_load_si128(table.bytes[0].as_ptr().cast()), codes);
            let upper = _mm_shuffle_epi8(_mm_load_si128(table.bytes[1].as_ptr().cast()), codes);
            let first = _mm_unpacklo_epi8(lower, upper);
            let second = _mm_unpackhi_epi8(lower, upper);
            _mm_add_epi32(
                _mm_madd_epi16(first, _mm_load_si128(x.cast())),
                _mm_madd_epi16(second, _mm_load_si128(x.add(8).cast())),
            )
        }
    }

    #[inline(always)]
    unsafe fn widen(bits: __m128i) -> __m128 {
        // SAFETY: SSE4.1, as the callers'.
        unsafe { _mm_castsi128_ps(_mm_slli_epi32::<16>(_mm_cvtepu16_epi32(bits))) }
    }

    #[inline(always)]
    unsafe fn power_of_two(n: __m128) -> __m128 {
        // SAFETY: SSE4.1, as the callers'.
        unsafe {
            let biased = _mm_add_epi32(_mm_cvtps_epi32(n), _mm_set1_epi32(127));
            _mm_castsi128_ps(_mm_slli_epi32::<23>(biased))
        }
    }
}

// SAFETY: every method needs SSE4.1, as `Level::Sse41` promises.
unsafe impl Lanes for Sse41 {
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        // SAFETY: see the trait.
        unsafe { Self([_mm_set1_ps(value); 4]) }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: see the trait.
        unsafe { four!(i => _mm_loadu_ps(from.add(i * 4))) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self {
        // SAFETY: see the trait.
        unsafe { four!(i => Self::widen(_mm_loadl_epi64(from.add(i * 4).cast()))) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        for (i, four) in self.0.into_iter().enumerate() {
            // SAFETY: see the trait.
            unsafe { _mm_storeu_ps(to.add(i * 4), four) }
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: see the trait.
        unsafe { four!(i => _mm_add_ps(self.0[i], other.0[i])) }
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: see the trait.
        unsafe { four!(i => _mm_sub_ps(self.0[i], other.0[i])) }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: see the trait.
        unsafe { four!(i => _mm_mul_ps(self.0[i], other.0[i])) }
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        // SAFETY: see the trait.
        unsafe { four!(i => _mm_div_ps(self.0[i], other.0[i])) }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: see the trait. The second operand wins where one is not a number.
        unsafe { four!(i => _mm_max_ps(other.0[i], self.0[i])) }
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        // SAFETY: see the trait. The second operand wins where one is not a number.
        unsafe { four!(i => _mm_min_ps(other.0[i], self.0[i])) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, term: Self) -> Self {
        // SAFETY: see the trait. These processors have no fused product.
        unsafe { self.mul(factor).add(term) }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        // SAFETY: see the trait.
        unsafe { four!(i => _mm_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0[i])) }
    }
    #[inline(always)]
    unsafe fn scale(self, exponent: Self) -> Self {
        // SAFETY: see the trait.
        unsafe { four!(i => _mm_mul_ps(self.0[i], Self::power_of_two(exponent.0[i]))) }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let [a, b, c, d] = self.0;
        // SAFETY: see the trait.
        unsafe {
            let v = _mm_add_ps(_mm_add_ps(a, c), _mm_add_ps(b, d));
            let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
        }
    }
    #[inline(always)]
    unsafe fn halves(low: f32, high: f32) -> Self {
        // SAFETY: see the trait.
        let (low, high) = unsafe { (_mm_set1_ps(low), _mm_set1_ps(high)) };
        Self([low, low, high, high])
    }
    #[inline(always)]
    unsafe fn code_dots(codes: *const u8, x: &CodeFactors, table: &CodeTable) -> Self {
        // SAFETY: see the trait; 64 bytes are readable.
        unsafe {
            let x = x.0.as_ptr();
            four!(i => _mm_cvtepi32_ps(Self::quarter_dots(codes.add(i * 16), x.add(i * 32), table)))
        }
    }
    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        // SAFETY: a hint, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
    }
    #[inline(always)]
    fn code_place(i: usize) -> usize {
        let (quarter, vector, word) = (i / 32, i / 8 % 4, i % 8);
        let byte = vector % 2 * 8 + word;
        quarter * 32 + byte * 2 + usize::from(vector < 2)
    }
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        let [a, b, c, d] = self.0;
        // SAFETY: see the trait.
        unsafe {
            let v = _mm_max_ps(_mm_max_ps(a, b), _mm_max_ps(c, d));
            let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
            _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
        }
    }
}
