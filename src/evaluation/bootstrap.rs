//! How sure a difference between two models is, by drawing the pages again and again.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::records::round_to;

const RESAMPLES: usize = 2000;
const SEED: u64 = 42;
/// Between these lies what is sure at 95 %.
const TAILS: [f64; 2] = [0.025, 0.975];

/// A mean difference and the 95 % confidence interval around it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// Pairs.
    pub samples: u64,
    /// Mean of the second ones less the first ones.
    pub mean: f64,
    /// Lower end of the 95 % interval.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// The difference between paired scores, 4 decimals; `None` without a pair. The same scores give the same interval.
pub fn paired_difference(before: &[f64], after: &[f64]) -> Option<Difference> {
    let differences: Vec<f64> = before
        .iter()
        .zip(after)
        .map(|(before, after)| after - before)
        .collect();
    let count = differences.len();
    if count == 0 {
        return None;
    }
    let mut random = ChaCha8Rng::seed_from_u64(SEED);
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let drawn = (0..count).map(|_| {
                let index = (u64::from(random.next_u32()) * count as u64) >> 32;
                differences.get(index as usize).copied().unwrap_or_default()
            });
            drawn.sum::<f64>() / count as f64
        })
        .collect();
    means.sort_by(f64::total_cmp);
    let [low, high] = TAILS.map(|tail| means[(tail * (RESAMPLES - 1) as f64).round() as usize]);
    let mean = differences.iter().sum::<f64>() / count as f64;
    Some(Difference {
        samples: count as u64,
        mean: round_to(mean, 4),
        low: round_to(low, 4),
        high: round_to(high, 4),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    #[test]
    fn equal_scores_differ_by_nothing_and_a_constant_gain_is_sure() {
        let scores = [50.0, 80.0, 99.0];
        let same = paired_difference(&scores, &scores).unwrap();
        assert_eq!((same.samples, same.mean, same.low, same.high), (3, 0.0, 0.0, 0.0));
        let gained = paired_difference(&scores, &scores.map(|score| score + 1.5)).unwrap();
        assert_eq!((gained.mean, gained.low, gained.high), (1.5, 1.5, 1.5));
        assert_eq!(paired_difference(&[], &[]), None);
    }

    #[test]
    fn the_interval_is_that_of_the_normal_distribution_for_many_pairs() {
        // Differences of -1 and 1 in turn: the mean's deviation is 1/20, 95 % lie within 1.96 of it.
        let after: Vec<f64> = (0..400)
            .map(|index| if index % 2 == 0 { 1.0 } else { -1.0 })
            .collect();
        let difference = paired_difference(&[0.0; 400], &after).unwrap();
        assert!(
            (difference.low + 0.098).abs() < 0.02 && (difference.high - 0.098).abs() < 0.02,
            "{difference:?}"
        );
    }

    proptest! {
        #[test]
        fn the_mean_lies_within_what_was_seen_and_the_ends_are_in_order(pairs in vec((0.0f64..100.0, 0.0f64..100.0), 1..40)) {
            let (before, after): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
            let difference = paired_difference(&before, &after).unwrap();
            let seen: Vec<f64> = before.iter().zip(&after).map(|(before, after)| after - before).collect();
            let least = seen.iter().copied().fold(f64::INFINITY, f64::min) - 1e-3;
            let most = seen.iter().copied().fold(f64::NEG_INFINITY, f64::max) + 1e-3;
            prop_assert!(least <= difference.low && difference.low <= difference.high && difference.high <= most);
            prop_assert_eq!(Some(difference), paired_difference(&before, &after));
        }
    }
}
