//! Seeded random numbers, the same on every machine.
//!
//! The streams are fixed: generated documents, prepared splits, `--resume` and seeded answers depend on every value.

use rand_chacha::rand_core::{RngCore, SeedableRng};
use rand_chacha::{ChaCha8Rng, ChaCha12Rng};
use sha2::{Digest, Sha256};

/// A generator with independent streams per seed, ChaCha12: for sampling tokens, shuffling and initialization.
pub struct StreamRng(ChaCha12Rng);

impl StreamRng {
    /// Stream number `stream` of `seed`.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut random = ChaCha12Rng::seed_from_u64(seed);
        random.set_stream(stream);
        Self(random)
    }

    /// Seeded by the operating system.
    pub fn from_os() -> Self {
        Self(ChaCha12Rng::from_os_rng())
    }

    /// Uniform in `[0, 1)`, with 53 bits.
    pub fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Uniform in `[-1, 1)`, with 24 bits: each value is exact in f32.
    pub fn symmetric(&mut self) -> f32 {
        (self.0.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0
    }

    /// A random permutation of `0..n` (Fisher-Yates).
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i as u64 + 1) as usize);
        }
        order
    }

    /// Uniform integer in `0..bound` (Lemire's method).
    fn below(&mut self, bound: u64) -> u64 {
        loop {
            let product = u128::from(self.0.next_u64()) * u128::from(bound);
            // Rejects draws whose low half is below 2^64 mod bound: they are biased.
            if product as u64 >= bound.wrapping_neg() % bound {
                return (product >> 64) as u64;
            }
        }
    }
}

/// A pseudo-random number, the first 8 bytes of a SHA-256: sorting by it shuffles reproducibly, whatever items there are.
pub fn shuffle_key(seed: u64, purpose: &str, item: &str) -> u64 {
    let digest = Sha256::new()
        .chain_update(seed.to_le_bytes())
        .chain_update(purpose)
        .chain_update([0])
        .chain_update(item);
    let bytes = digest.finalize();
    bytes
        .iter()
        .take(8)
        .fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// A fast generator for many small choices, ChaCha8: for generated documents and the bootstrap.
pub struct SeededRng(ChaCha8Rng);

impl SeededRng {
    /// The generator of `seed`.
    pub fn from_seed(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// The generator for one `purpose`, seeded with a hash of all arguments; `index` is the page's, `attempt` counts rejected versions of it.
    pub fn new(seed: u64, purpose: &str, index: u64, attempt: u64) -> Self {
        let digest = Sha256::new()
            .chain_update(seed.to_le_bytes())
            .chain_update(index.to_le_bytes())
            .chain_update(attempt.to_le_bytes())
            .chain_update(purpose);
        Self(ChaCha8Rng::from_seed(digest.finalize().into()))
    }

    /// Uniform integer in `0..count`; 0 if `count` is 0.
    pub fn below(&mut self, count: usize) -> usize {
        ((u64::from(self.0.next_u32()) * count as u64) >> 32) as usize
    }

    /// Uniform integer in `low..=high`.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// Uniform in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        f64::from(self.0.next_u32()) / 4_294_967_296.0
    }

    /// Uniform in `[low, high)`.
    pub fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// True with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// A random element. `items` must not be empty; no list of the data files is.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// A sample of `count` elements without replacement, in random order; all of them if there are fewer.
    pub fn several<'a, T>(&mut self, items: &'a [T], count: usize) -> Vec<&'a T> {
        let mut left: Vec<&T> = items.iter().collect();
        let mut chosen = Vec::new();
        while chosen.len() < count && !left.is_empty() {
            chosen.push(left.swap_remove(self.below(left.len())));
        }
        chosen
    }

    /// A random element, by weight.
    pub fn weighted<'a, T>(&mut self, items: &'a [T], weight: impl Fn(&T) -> u32) -> Option<&'a T> {
        let total: u32 = items.iter().map(&weight).sum();
        let mut left = self.below(total as usize) as u32;
        items.iter().find(|item| {
            let weight = weight(item);
            let found = left < weight;
            left = left.saturating_sub(weight);
            found
        })
    }

    /// Fills `bytes` with random bytes.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill_bytes(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_reproducible_and_independent() {
        let order = |seed, stream| StreamRng::new(seed, stream).permutation(64);
        assert_eq!(order(42, 0), order(42, 0));
        assert_ne!(order(42, 0), order(42, 1));
        assert_ne!(order(42, 0), order(43, 0));
        let mut sorted = order(42, 7);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..64).collect::<Vec<_>>());
        // Stream 0 is the generator without a stream.
        let mut plain = ChaCha12Rng::seed_from_u64(42);
        let mut random = StreamRng::new(42, 0);
        assert!((0..100).all(|_| plain.next_u64() == random.0.next_u64()));
    }

    #[test]
    fn shuffle_keys_depend_on_seed_purpose_and_item() {
        assert_ne!(shuffle_key(42, "a", "b"), shuffle_key(43, "a", "b"));
        assert_ne!(shuffle_key(42, "a", "b"), shuffle_key(42, "ab", ""));
    }
}
