//! Log-probabilities of tokens.

/// `ln(sum(exp(logits)))`: a token's log-probability is its logit minus this.
pub fn log_sum_exp(logits: &[f32]) -> f32 {
    /// Independent sums, so that the compiler can vectorize; also more exact than one f32 sum.
    const LANES: usize = 16;
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sums = [0.0_f32; LANES];
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for (sum, &x) in sums.iter_mut().zip(chunk) {
            *sum += (x - max).exp();
        }
    }
    let sum: f64 = sums.iter().map(|&sum| f64::from(sum)).sum();
    let rest: f64 = rest.iter().map(|&x| f64::from((x - max).exp())).sum();
    (f64::from(max) + (sum + rest).ln()) as f32
}

/// Indices of the `k` largest logits, the largest first; of ties the first.
pub fn best(logits: &[f32], k: usize) -> Vec<usize> {
    let mut best: Vec<usize> = Vec::with_capacity(k + 1);
    for (index, &logit) in logits.iter().enumerate() {
        let full = best.len() == k;
        if full && best.last().is_none_or(|&last| logit <= logits[last]) {
            continue;
        }
        let at = best.partition_point(|&other| logits[other] >= logit);
        best.insert(at, index);
        best.truncate(k);
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_sum_to_one_whatever_the_offset() {
        for offset in [-1e4, 0.0, 1e4] {
            let logits: Vec<f32> = (0..1000)
                .map(|i| offset + (i as f32 * 0.37).sin() * 9.0)
                .collect();
            let total = log_sum_exp(&logits);
            let sum: f64 = logits.iter().map(|&x| f64::from(x - total).exp()).sum();
            assert!((sum - 1.0).abs() < 2e-3, "{offset}: {sum}");
        }
        assert_eq!(log_sum_exp(&[3.0]), 3.0);
        assert_eq!(log_sum_exp(&[f32::NEG_INFINITY, 3.0]), 3.0);
    }

    #[test]
    fn the_best_come_first_and_ties_in_order() {
        let logits = [1.0, 5.0, 3.0, 5.0, 4.0];
        assert_eq!(best(&logits, 3), [1, 3, 4]);
        assert_eq!(best(&logits, 0), [0; 0]);
        assert_eq!(best(&logits, 9), [1, 3, 4, 2, 0]);
    }
}
