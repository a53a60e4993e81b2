//! Which instructions to use: every kernel is written once over [`Lanes`] and compiled for each level.

use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
use super::lanes::{Avx2, Avx512};
use super::lanes::{Lanes, Portable};

/// Instructions that kernels may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Those of any processor the program runs on.
    Portable,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512F and BW.
    Avx512,
}

/// Work that is compiled for each level.
pub trait Kernel {
    /// What comes out.
    type Output;

    /// Does it; must be `#[inline(always)]`, as must everything it calls that handles `L`.
    ///
    /// # Safety
    /// The processor must have the instructions of `L`.
    unsafe fn run<L: Lanes>(self) -> Self::Output;
}

impl Level {
    /// The best that this processor has; `MVP_CPU_LEVEL` (`portable`, `avx2`, `avx512`) may lower it.
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

    /// All that this processor has, the best last.
    pub fn available() -> Vec<Self> {
        let mut levels = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                levels.push(Self::Avx2);
                if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw") {
                    levels.push(Self::Avx512);
                }
            }
        }
        levels
    }

    /// "portable", "avx2", "avx512".
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// Runs `kernel` with this level's instructions; a level that the processor lacks falls back to portable ones.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[cfg(target_arch = "x86_64")]
        {
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
            // Detection is cached: a load and a test.
            let has_avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            if self == Self::Avx512
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && has_avx2
            {
                // SAFETY: just checked.
                return unsafe { avx512(kernel) };
            }
            if self != Self::Portable && has_avx2 {
                // SAFETY: just checked.
                return unsafe { avx2(kernel) };
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
