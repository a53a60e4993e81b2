//! Which samples make which optimizer step: a function of seed, epoch and the samples' lengths alone.

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// One optimizer step: samples by number, in batches that are computed at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepPlan {
    /// Which pass over the samples, from 0.
    pub epoch: u64,
    /// Samples of each batch.
    pub batches: Vec<Vec<usize>>,
}

impl StepPlan {
    /// All samples of the step.
    pub fn samples(&self) -> impl Iterator<Item = usize> + '_ {
        self.batches.iter().flatten().copied()
    }
}

/// How samples are put together.
#[derive(Debug, Clone, Copy)]
pub struct Batching {
    /// Samples an optimizer step, all processes together.
    pub step_samples: usize,
    /// Samples a batch, at most.
    pub batch_size: usize,
    /// Tokens a batch, at most; a single sample may have more.
    pub batch_tokens: usize,
    /// Seed of the order.
    pub seed: u64,
}

impl Batching {
    /// Optimizer steps a pass over `samples` samples; the last one may be smaller.
    pub fn steps_per_epoch(&self, samples: usize) -> u64 {
        samples.div_ceil(self.step_samples) as u64
    }

    /// The step after `done` steps, over samples of `lengths` tokens.
    ///
    /// Samples of a batch lie one behind the other, without padding; where they have too many tokens together the batch is
    /// cut. Batches of a step are about equally long, so that of several processes none waits for another.
    pub fn step(&self, lengths: &[usize], done: u64) -> StepPlan {
        let steps = self.steps_per_epoch(lengths.len()).max(1);
        let (epoch, step) = (done / steps, (done % steps) as usize);
        let order = permutation(self.seed, epoch, lengths.len());
        let place = step * self.step_samples..((step + 1) * self.step_samples).min(lengths.len());
        let mut samples = order[place].to_vec();
        samples.sort_by_key(|&sample| (std::cmp::Reverse(lengths[sample]), sample));
        StepPlan {
            epoch,
            batches: self.dealt(&samples, lengths),
        }
    }

    /// `samples`, the longest first, in as many batches as [`Self::cut`] makes, dealt to and fro where they fit.
    fn dealt(&self, samples: &[usize], lengths: &[usize]) -> Vec<Vec<usize>> {
        let cut = self.cut(samples, lengths);
        let mut dealt = vec![Vec::new(); cut.len()];
        for (round, some) in samples.chunks(cut.len().max(1)).enumerate() {
            for (place, &sample) in some.iter().enumerate() {
                let batch = if round % 2 == 0 { place } else { cut.len() - 1 - place };
                dealt[batch].push(sample);
            }
        }
        let fits = |batch: &Vec<usize>| {
            let tokens: usize = batch.iter().map(|&sample| lengths[sample]).sum();
            batch.len() <= self.batch_size && (batch.len() == 1 || tokens <= self.batch_tokens)
        };
        if dealt.iter().all(fits) { dealt } else { cut }
    }

    /// `samples` in their order, cut into batches.
    pub fn cut(&self, samples: &[usize], lengths: &[usize]) -> Vec<Vec<usize>> {
        let mut batches: Vec<Vec<usize>> = Vec::new();
        let mut tokens = 0;
        for &sample in samples {
            let length = lengths[sample];
            match batches.last_mut() {
                Some(batch) if batch.len() < self.batch_size && tokens + length <= self.batch_tokens => {
                    batch.push(sample);
                    tokens += length;
                }
                _ => {
                    batches.push(vec![sample]);
                    tokens = length;
                }
            }
        }
        batches
    }
}

/// An order of `0..n` by seed and epoch; Fisher and Yates.
fn permutation(seed: u64, epoch: u64, n: usize) -> Vec<usize> {
    let mut random = ChaCha12Rng::seed_from_u64(seed);
    random.set_stream(epoch);
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, below(&mut random, i as u64 + 1) as usize);
    }
    order
}

/// A number below `bound`, each equally likely (Lemire's method).
fn below(random: &mut ChaCha12Rng, bound: u64) -> u64 {
    loop {
        let product = u128::from(random.next_u64()) * u128::from(bound);
        // The low half of a biased draw lies below 2^64 mod bound.
        if product as u64 >= bound.wrapping_neg() % bound {
            return (product >> 64) as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_order_is_fixed() {
        // Changing it breaks every --resume of a training that an earlier version began.
        let batching = Batching {
            step_samples: 64,
            batch_size: 64,
            batch_tokens: usize::MAX,
            seed: 42,
        };
        let first = batching.step(&[1; 64], 0).batches.concat();
        assert_eq!(
            first,
            (0..64).collect::<Vec<_>>(),
            "equal lengths stay in order within a step"
        );
        assert_eq!(permutation(42, 0, 10), permutation(42, 0, 10));
        assert_ne!(permutation(42, 0, 64), permutation(42, 1, 64));
        assert_ne!(permutation(42, 0, 64), permutation(43, 0, 64));
    }

    #[test]
    fn batches_of_a_step_are_about_equally_long() {
        let lengths: Vec<usize> = (1..=32).map(|i| i * 100).collect();
        let batching = Batching {
            step_samples: 32,
            batch_size: 8,
            batch_tokens: usize::MAX,
            seed: 1,
        };
        let batches = batching.step(&lengths, 0).batches;
        let tokens: Vec<usize> = batches
            .iter()
            .map(|batch| batch.iter().map(|&sample| lengths[sample]).sum())
            .collect();
        assert_eq!(tokens, [13200; 4]);
    }

    proptest! {
        #[test]
        fn every_sample_comes_once_an_epoch(
            lengths in prop::collection::vec(1usize..500, 1..60), step_samples in 1usize..20, batch_size in 1usize..8,
            batch_tokens in 1usize..1500, seed: u64,
        ) {
            let batching = Batching { step_samples, batch_size, batch_tokens, seed };
            let steps = batching.steps_per_epoch(lengths.len());
            for epoch in 0..2 {
                let mut seen = Vec::new();
                for step in 0..steps {
                    let plan = batching.step(&lengths, epoch * steps + step);
                    prop_assert_eq!(plan.epoch, epoch);
                    for batch in &plan.batches {
                        let tokens: usize = batch.iter().map(|&sample| lengths[sample]).sum();
                        prop_assert!(batch.len() <= batch_size && (batch.len() == 1 || tokens <= batch_tokens));
                    }
                    prop_assert!(plan.samples().count() <= step_samples);
                    seen.extend(plan.samples());
                }
                seen.sort_unstable();
                prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            }
        }
    }
}
