//! Portable lanes in plain Rust.

use super::{CodeFactors, CodeTable, LANES, Lanes};

/// For any processor.
///
/// Plain Rust has no lookup inside a register: four-bit products load the two values of each byte from a table, some 64
/// cycles for 64 bytes. Whole numbers are no faster there, since compilers do not find the instructions for their sums.
#[derive(Clone, Copy)]
pub(in super::super) struct Portable([f32; LANES]);

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
    unsafe fn code_dots(codes: *const u8, x: &CodeFactors, table: &CodeTable) -> Self {
        // SAFETY: readable for 64 bytes; `x` has 128 numbers.
        let (codes, x) = unsafe {
            (
                &*codes.cast::<[[[u8; 4]; 8]; 2]>(),
                &*x.0.as_ptr().cast::<[[[i16; 8]; 8]; 2]>(),
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
