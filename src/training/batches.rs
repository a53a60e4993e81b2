//! The sampler: which samples form which batch of which optimizer step.
//!
//! It is a function of seed, epoch and the samples' lengths and pages, so that a resumed run continues with the same batches.

use std::cmp::Reverse;
use std::collections::HashMap;

use crate::random::StreamRng;

/// One optimizer step: the sample numbers of its batches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepPlan {
    /// Epoch, from 0.
    pub epoch: u64,
    /// Sample numbers of each batch; a batch is one forward pass.
    pub batches: Vec<Vec<usize>>,
}

impl StepPlan {
    /// All samples of the step.
    pub fn samples(&self) -> impl Iterator<Item = usize> + '_ {
        self.batches.iter().flatten().copied()
    }
}

/// Length and page of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleInfo {
    /// Number of tokens of page, prompt and answer.
    pub tokens: usize,
    /// Number of its page, which several samples may share.
    pub page: usize,
}

/// All samples, grouped by page. Groups stay together, because each page is encoded once per batch.
#[derive(Debug, Clone)]
pub struct PageGroups {
    samples: Vec<SampleInfo>,
    /// Samples of each page.
    pages: Vec<Vec<usize>>,
}

impl PageGroups {
    /// Groups `samples`, given in order of their numbers.
    pub fn new(samples: Vec<SampleInfo>) -> Self {
        let mut pages: Vec<Vec<usize>> = Vec::new();
        let mut indices = HashMap::new();
        for (number, sample) in samples.iter().enumerate() {
            let index = *indices.entry(sample.page).or_insert(pages.len());
            if index == pages.len() {
                pages.push(Vec::new());
            }
            pages[index].push(number);
        }
        Self { samples, pages }
    }

    /// Number of samples.
    pub fn sample_count(&self) -> usize {
        self.samples.len()
    }

    /// Number of tokens of the longest sample.
    pub fn longest(&self) -> usize {
        self.samples.iter().map(|sample| sample.tokens).max().unwrap_or(0)
    }

    /// Number of tokens of the samples numbered `samples`.
    pub fn tokens<'a>(&self, samples: impl IntoIterator<Item = &'a usize>) -> usize {
        samples
            .into_iter()
            .map(|&sample| self.samples[sample].tokens)
            .sum()
    }
}

/// How samples are combined into batches and steps.
#[derive(Debug, Clone, Copy)]
pub struct Batching {
    /// Samples per optimizer step, over all processes.
    pub step_samples: usize,
    /// Maximum samples per batch.
    pub batch_size: usize,
    /// Maximum tokens per batch; a single sample may have more.
    pub batch_tokens: usize,
    /// Seed of the permutations.
    pub seed: u64,
}

impl Batching {
    /// Optimizer steps per epoch of `samples` samples; the last one may be smaller.
    pub fn steps_per_epoch(&self, samples: usize) -> u64 {
        samples.div_ceil(self.step_samples) as u64
    }

    /// Batches of all samples, in order, without shuffling.
    pub fn in_order(&self, samples: &PageGroups) -> Vec<Vec<usize>> {
        self.pack(&samples.pages.concat(), samples)
    }

    /// Balances `groups`, sorted by length, over as many batches as [`Self::pack`] makes: greedy longest-first bin packing.
    ///
    /// Each group goes to the batch with the fewest tokens that has room for it, and is split if no batch has. If the result
    /// breaks a limit, the batches are those of [`Self::pack`].
    fn balance(&self, groups: &[&[usize]], samples: &PageGroups) -> Vec<Vec<usize>> {
        let packed = self.pack(&groups.concat(), samples);
        let mut balanced = vec![(0, Vec::new()); packed.len()];
        for &group in groups {
            let mut left = group;
            while !left.is_empty() {
                let room = |batch: &(usize, Vec<usize>)| self.batch_size - batch.1.len();
                let Some(batch) = balanced
                    .iter_mut()
                    .filter(|batch| room(batch) > 0)
                    .min_by_key(|batch| (room(batch) < left.len(), batch.0))
                else {
                    return packed;
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
        if !balanced.iter().all(fits) {
            return packed;
        }
        balanced.into_iter().map(|(_, batch)| batch).collect()
    }

    /// Packs the samples numbered `chosen` into batches, in order.
    fn pack(&self, chosen: &[usize], samples: &PageGroups) -> Vec<Vec<usize>> {
        let mut batches: Vec<Vec<usize>> = Vec::new();
        let mut tokens = 0;
        for &sample in chosen {
            let length = samples.samples[sample].tokens;
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

/// Plans the steps of a run.
#[derive(Debug, Clone)]
pub struct StepPlanner {
    batching: Batching,
    samples: PageGroups,
    /// The epoch of `order`.
    epoch: Option<u64>,
    order: Vec<usize>,
}

impl StepPlanner {
    /// A planner of `samples`, batched by `batching`.
    pub fn new(batching: Batching, samples: PageGroups) -> Self {
        Self {
            batching,
            samples,
            epoch: None,
            order: Vec::new(),
        }
    }

    /// The step after `done` steps.
    ///
    /// The batches of a step have about equally many tokens, so that no process waits for another.
    pub fn plan(&mut self, done: u64) -> StepPlan {
        let (batching, samples) = (&self.batching, &self.samples);
        let steps = batching.steps_per_epoch(samples.sample_count()).max(1);
        let (epoch, step) = (done / steps, (done % steps) as usize);
        if self.epoch != Some(epoch) {
            let pages = StreamRng::new(batching.seed, epoch).permutation(samples.pages.len());
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
            .chunk_by(|&a, &b| samples.samples[a].page == samples.samples[b].page)
            .collect();
        groups.sort_by_key(|&group| (Reverse(samples.tokens(group)), group[0]));
        StepPlan {
            epoch,
            batches: batching.balance(&groups, samples),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Samples of these lengths, `each` per page.
    fn samples(lengths: &[usize], each: usize) -> PageGroups {
        let lengths = lengths.iter().enumerate();
        PageGroups::new(
            lengths
                .map(|(i, &tokens)| SampleInfo {
                    tokens,
                    page: i / each,
                })
                .collect(),
        )
    }

    #[test]
    fn the_order_is_fixed() {
        // Changing it breaks --resume of runs of an earlier version.
        let batching = Batching {
            step_samples: 64,
            batch_size: 64,
            batch_tokens: usize::MAX,
            seed: 42,
        };
        let first = StepPlanner::new(batching, samples(&[1; 64], 1))
            .plan(0)
            .batches
            .concat();
        assert_eq!(
            first,
            (0..64).collect::<Vec<_>>(),
            "equal lengths stay in order within a step"
        );
    }

    #[test]
    fn batches_of_a_step_are_balanced_and_pages_are_not_split() {
        let batching = Batching {
            step_samples: 32,
            batch_size: 8,
            batch_tokens: usize::MAX,
            seed: 1,
        };
        let lengths: Vec<usize> = (1..=32).map(|i| i * 100).collect();
        for each in [1, 2] {
            let samples = samples(&lengths, each);
            let batches = StepPlanner::new(batching, samples.clone()).plan(0).batches;
            let tokens: Vec<usize> = batches.iter().map(|batch| samples.tokens(batch)).collect();
            assert_eq!(tokens, [13200; 4]);
        }
        // Over a long epoch, too, each page is in one batch.
        let lengths: Vec<usize> = (0..320).map(|i| 100 + i * 37 % 101).collect();
        let samples = samples(&lengths, 2);
        let mut steps = StepPlanner::new(batching, samples);
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
        fn every_sample_is_drawn_once_per_epoch(
            lengths in prop::collection::vec(1usize..500, 1..60), each in 1usize..4, step_samples in 1usize..20,
            batch_size in 1usize..8, batch_tokens in 1usize..1500, seed: u64,
        ) {
            let batching = Batching { step_samples, batch_size, batch_tokens, seed };
            let samples = samples(&lengths, each);
            let fits = |batch: &Vec<usize>| batch.len() <= batch_size && (batch.len() == 1 || samples.tokens(batch) <= batch_tokens);
            let steps = batching.steps_per_epoch(lengths.len());
            let mut plans = StepPlanner::new(batching, samples.clone());
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
            let all = batching.in_order(&samples);
            prop_assert!(all.iter().all(fits));
            prop_assert_eq!(all.concat(), (0..lengths.len()).collect::<Vec<_>>());
        }
    }
}
