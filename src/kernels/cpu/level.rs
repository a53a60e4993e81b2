//! SIMD levels: every kernel is written once over [`Lanes`], compiled for each level and dispatched at run time.

use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
use super::lanes::{Avx2, Avx512, Sse41};
use super::lanes::{Lanes, Portable};

/// SIMD instructions that kernels may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// The baseline of the target.
    Portable,
    /// SSE4.1.
    Sse41,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512F and BW.
    Avx512,
}

/// A kernel that is compiled for each level.
pub trait Kernel {
    /// Result of the kernel.
    type Output;

    /// Runs the kernel; must be `#[inline(always)]`, as must everything it calls that handles `L`.
    ///
    /// # Safety
    /// The processor must have the instructions of `L`.
    unsafe fn run<L: Lanes>(self) -> Self::Output;
}

impl Level {
    /// The best level of this processor; `MVP_CPU_LEVEL` (`portable`, `sse4.1`, `avx2`, `avx512`) may lower it.
    pub fn best() -> Self {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| {
            let available = Self::available();
            let wished = std::env::var("MVP_CPU_LEVEL").ok();
            let wished = available
                .iter()
                .find(|level| wished.as_deref() == Some(level.name()));
            wished.or(available.last()).copied().unwrap_or(Self::Portable)
        })
    }

    /// All levels of this processor, the best last.
    pub fn available() -> Vec<Self> {
        let all = [Self::Portable, Self::Sse41, Self::Avx2, Self::Avx512];
        all.into_iter().filter(|level| level.is_available()).collect()
    }

    /// Whether this processor supports it; cached.
    #[inline]
    fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return match self {
            Self::Portable => true,
            Self::Sse41 => is_x86_feature_detected!("sse4.1") && is_x86_feature_detected!("ssse3"),
            Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
            }
        };
        #[cfg(not(target_arch = "x86_64"))]
        return self == Self::Portable;
    }

    /// "portable", "sse4.1", "avx2", "avx512".
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Sse41 => "sse4.1",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// Runs `kernel` at this level, or portably if the processor does not support it.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "sse4.1,ssse3")]
            unsafe fn sse41<K: Kernel>(kernel: K) -> K::Output {
                // SAFETY: the caller checked for SSE4.1.
                unsafe { kernel.run::<Sse41>() }
            }
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2<K: Kernel>(kernel: K) -> K::Output {
                // SAFETY: the caller checked for AVX2 and FMA.
                unsafe { kernel.run::<Avx2>() }
            }
            #[target_feature(enable = "avx512f,avx512bw,avx2,fma")]
            unsafe fn avx512<K: Kernel>(kernel: K) -> K::Output {
                // SAFETY: the caller checked for AVX-512F and BW.
                unsafe { kernel.run::<Avx512>() }
            }
            if self.is_available() {
                // SAFETY: just checked.
                unsafe {
                    match self {
                        Self::Portable => {}
                        Self::Sse41 => return sse41(kernel),
                        Self::Avx2 => return avx2(kernel),
                        Self::Avx512 => return avx512(kernel),
                    }
                }
            }
        }
        // SAFETY: plain Rust.
        unsafe { kernel.run::<Portable>() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_level_is_available() {
        assert!(Level::available().contains(&Level::best()));
    }
}
