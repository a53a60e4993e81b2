//! Which samples make which optimizer step: a function of seed, epoch and the samples' lengths and pages alone.

use std::cmp::Reverse;
use std::collections::HashMap;

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

/// A sample as batches see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Tokens of page, prompt and answer.
    pub tokens: usize,
    /// Number of its page, which other samples may have too.
    pub page: usize,
}

/// All samples, by their pages: those of one page stay together, since a batch looks at each of its pages once.
#[derive(Debug, Clone)]
pub struct ByPage {
    shapes: Vec<Shape>,
    /// Samples of each page.
    pages: Vec<Vec<usize>>,
}

impl ByPage {
    /// Of samples in their order.
    pub fn new(shapes: Vec<Shape>) -> Self {
        let mut pages: Vec<Vec<usize>> = Vec::new();
        let mut places = HashMap::new();
        for (sample, shape) in shapes.iter().enumerate() {
            let place = *places.entry(shape.page).or_insert(pages.len());
            if place == pages.len() {
                pages.push(Vec::new());
            }
            pages[place].push(sample);
        }
        Self { shapes, pages }
    }

    /// How many samples there are.
    pub fn samples(&self) -> usize {
        self.shapes.len()
    }

    /// Tokens of the longest one.
    pub fn longest(&self) -> usize {
        self.shapes.iter().map(|shape| shape.tokens).max().unwrap_or(0)
    }

    /// Tokens of some.
    pub fn tokens<'a>(&self, samples: impl IntoIterator<Item = &'a usize>) -> usize {
        samples
            .into_iter()
            .map(|&sample| self.shapes[sample].tokens)
            .sum()
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

    /// All samples in their order, in batches.
    pub fn all(&self, samples: &ByPage) -> Vec<Vec<usize>> {
        self.cut(&samples.pages.concat(), samples)
    }

    /// `groups`, the longest first, in as many batches as [`Self::cut`] makes: each where there are fewest tokens and room
    /// for it, in parts where it has room nowhere.
    fn dealt(&self, groups: &[&[usize]], samples: &ByPage) -> Vec<Vec<usize>> {
        let cut = self.cut(&groups.concat(), samples);
        let mut dealt = vec![(0, Vec::new()); cut.len()];
        for &group in groups {
            let mut left = group;
            while !left.is_empty() {
                let room = |batch: &(usize, Vec<usize>)| self.batch_size - batch.1.len();
                let Some(batch) = dealt
                    .iter_mut()
                    .filter(|batch| room(batch) > 0)
                    .min_by_key(|batch| (room(batch) < left.len(), batch.0))
                else {
                    return cut;
                };
                let (here, rest) = left.split_at(left.len().min(room(batch)));
                batch.0 += samples.tokens(here);
                batch.1.extend_from_slice(here);
                left = rest;
            }
        }
        let fits = |(tokens, batch): &(usize, Vec<usize>)| {
            !batch.is_empty() && (batch.len() == 1 || *tokens <= self.batch_tokens)
        };
        if !dealt.iter().all(fits) {
            return cut;
        }
        dealt.into_iter().map(|(_, batch)| batch).collect()
    }

    /// `chosen` in their order, cut into batches.
    fn cut(&self, chosen: &[usize], samples: &ByPage) -> Vec<Vec<usize>> {
        let mut batches: Vec<Vec<usize>> = Vec::new();
        let mut tokens = 0;
        for &sample in chosen {
            let length = samples.shapes[sample].tokens;
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

/// The steps of a training, one after the other.
#[derive(Debug, Clone)]
pub struct Steps {
    batching: Batching,
    samples: ByPage,
    /// Which epoch's order is at hand.
    epoch: Option<u64>,
    order: Vec<usize>,
}

impl Steps {
    /// Of `samples`, put together as `batching` says.
    pub fn new(batching: Batching, samples: ByPage) -> Self {
        Self {
            batching,
            samples,
            epoch: None,
            order: Vec::new(),
        }
    }

    /// The step after `done` steps.
    ///
    /// Samples of a batch lie one behind the other, without padding; where they have too many tokens together the batch is
    /// cut. Batches of a step are about equally long, so that of several processes none waits for another.
    pub fn plan(&mut self, done: u64) -> StepPlan {
        let (batching, samples) = (&self.batching, &self.samples);
        let steps = batching.steps_per_epoch(samples.samples()).max(1);
        let (epoch, step) = (done / steps, (done % steps) as usize);
        if self.epoch != Some(epoch) {
            let pages = permutation(batching.seed, epoch, samples.pages.len());
            self.order = pages
                .iter()
                .flat_map(|&page| &samples.pages[page])
                .copied()
                .collect();
            self.epoch = Some(epoch);
        }
        let start = step * batching.step_samples;
        let end = (start + batching.step_samples).min(self.order.len());
        let mut groups: Vec<&[usize]> = self.order[start..end]
            .chunk_by(|&a, &b| samples.shapes[a].page == samples.shapes[b].page)
            .collect();
        groups.sort_by_key(|&group| (Reverse(samples.tokens(group)), group[0]));
        StepPlan {
            epoch,
            batches: batching.dealt(&groups, samples),
        }
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

    /// Samples of these lengths, `each` to a page.
    fn samples(lengths: &[usize], each: usize) -> ByPage {
        let shapes = lengths.iter().enumerate();
        ByPage::new(
            shapes
                .map(|(i, &tokens)| Shape {
                    tokens,
                    page: i / each,
                })
                .collect(),
        )
    }

    #[test]
    fn the_order_is_fixed() {
        // Changing it breaks every --resume of a training that an earlier version began.
        let batching = Batching {
            step_samples: 64,
            batch_size: 64,
            batch_tokens: usize::MAX,
            seed: 42,
        };
        let first = Steps::new(batching, samples(&[1; 64], 1))
            .plan(0)
            .batches
            .concat();
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
    fn batches_of_a_step_are_about_equally_long_and_pages_stay_whole() {
        let batching = Batching {
            step_samples: 32,
            batch_size: 8,
            batch_tokens: usize::MAX,
            seed: 1,
        };
        let lengths: Vec<usize> = (1..=32).map(|i| i * 100).collect();
        for each in [1, 2] {
            let samples = samples(&lengths, each);
            let batches = Steps::new(batching, samples.clone()).plan(0).batches;
            let tokens: Vec<usize> = batches.iter().map(|batch| samples.tokens(batch)).collect();
            assert_eq!(tokens, [13200; 4]);
        }
        // Pages of a long pass, in any order, are each in one batch.
        let lengths: Vec<usize> = (0..320).map(|i| 100 + i * 37 % 101).collect();
        let samples = samples(&lengths, 2);
        let mut steps = Steps::new(batching, samples);
        for step in 0..10 {
            for batch in steps.plan(step).batches {
                assert!(
                    batch.chunks(2).all(|pair| pair[0] / 2 == pair[1] / 2),
                    "{batch:?}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn every_sample_comes_once_an_epoch(
            lengths in prop::collection::vec(1usize..500, 1..60), each in 1usize..4, step_samples in 1usize..20,
            batch_size in 1usize..8, batch_tokens in 1usize..1500, seed: u64,
        ) {
            let batching = Batching { step_samples, batch_size, batch_tokens, seed };
            let samples = samples(&lengths, each);
            let fits = |batch: &Vec<usize>| batch.len() <= batch_size && (batch.len() == 1 || samples.tokens(batch) <= batch_tokens);
            let steps = batching.steps_per_epoch(lengths.len());
            let mut plans = Steps::new(batching, samples.clone());
            for epoch in 0..2 {
                let mut seen = Vec::new();
                for step in 0..steps {
                    let plan = plans.plan(epoch * steps + step);
                    prop_assert_eq!(plan.epoch, epoch);
                    prop_assert!(plan.batches.iter().all(fits));
                    prop_assert!(plan.samples().count() <= step_samples);
                    seen.extend(plan.samples());
                }
                seen.sort_unstable();
                prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            }
            let all = batching.all(&samples);
            prop_assert!(all.iter().all(fits));
            prop_assert_eq!(all.concat(), (0..lengths.len()).collect::<Vec<_>>());
        }
    }
}
