//! Paired bootstrap: confidence interval of the difference between two models' scores.

use serde::{Deserialize, Serialize};

use crate::random::SeededRng;
use crate::records::round_to;

const RESAMPLES: usize = 2000;
const SEED: u64 = 42;
/// Quantiles of the 95 % confidence interval.
const TAILS: [f64; 2] = [0.025, 0.975];

/// Mean paired difference with its 95 % confidence interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// Number of pairs.
    pub samples: u64,
    /// Mean of `after - before`.
    pub mean: f64,
    /// Lower bound of the interval.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
}

/// Difference between paired scores, rounded to 4 decimals; `None` without pairs. Deterministic: the seed is fixed.
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
    let mut random = SeededRng::from_seed(SEED);
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let drawn = (0..count).map(|_| *random.pick(&differences));
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
    fn equal_scores_and_constant_gains_have_no_interval() {
        let scores = [50.0, 80.0, 99.0];
        let same = paired_difference(&scores, &scores).unwrap();
        assert_eq!((same.samples, same.mean, same.low, same.high), (3, 0.0, 0.0, 0.0));
        let gained = paired_difference(&scores, &scores.map(|score| score + 1.5)).unwrap();
        assert_eq!((gained.mean, gained.low, gained.high), (1.5, 1.5, 1.5));
        assert_eq!(paired_difference(&[], &[]), None);
    }

    #[test]
    fn many_pairs_have_the_normal_distributions_interval() {
        // Differences of -1 and 1 in turn: the mean's deviation is 1/20, 95 % is within 1.96 of it.
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
        fn the_interval_is_ordered_and_within_the_observed_differences(pairs in vec((0.0f64..100.0, 0.0f64..100.0), 1..40)) {
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
