//! Choices that are as good as random and the same on every machine.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use sha2::{Digest, Sha256};

/// One page's choices, or those of one part of it.
pub(super) struct Dice(ChaCha8Rng);

impl Dice {
    /// The choices of one `purpose`; pages differ by `index`, and by `attempt` where one was refused.
    pub(super) fn new(seed: u64, purpose: &str, index: u64, attempt: u64) -> Self {
        let digest = Sha256::new()
            .chain_update(seed.to_le_bytes())
            .chain_update(index.to_le_bytes())
            .chain_update(attempt.to_le_bytes())
            .chain_update(purpose);
        Self(ChaCha8Rng::from_seed(digest.finalize().into()))
    }

    /// A whole number below `count`; 0 where that is 0.
    pub(super) fn below(&mut self, count: usize) -> usize {
        ((u64::from(self.0.next_u32()) * count as u64) >> 32) as usize
    }

    /// Both ends included.
    pub(super) fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high.saturating_sub(low) + 1)
    }

    /// From 0 to 1, 1 excluded.
    pub(super) fn unit(&mut self) -> f64 {
        f64::from(self.0.next_u32()) / 4_294_967_296.0
    }

    pub(super) fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    pub(super) fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// One of a list that is not empty, as all lists of the data files are.
    pub(super) fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// `count` different ones, or all there are, in any order.
    pub(super) fn several<'a, T>(&mut self, items: &'a [T], count: usize) -> Vec<&'a T> {
        let mut left: Vec<&T> = items.iter().collect();
        let mut chosen = Vec::new();
        while chosen.len() < count && !left.is_empty() {
            chosen.push(left.swap_remove(self.below(left.len())));
        }
        chosen
    }

    /// One of a list, by weight.
    pub(super) fn weighted<'a, T>(&mut self, items: &'a [T], weight: impl Fn(&T) -> u32) -> Option<&'a T> {
        let total: u32 = items.iter().map(&weight).sum();
        let mut left = self.below(total as usize) as u32;
        items.iter().find(|item| {
            let weight = weight(item);
            let found = left < weight;
            left = left.saturating_sub(weight);
            found
        })
    }

    /// Random bytes in one go.
    pub(super) fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill_bytes(bytes);
    }
}
