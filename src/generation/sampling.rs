//! Sampling of the next token.

use std::collections::HashSet;

use super::GenerationOptions;
use crate::random::StreamRng;
use crate::{Error, Result};

/// Below this temperature decoding is greedy.
const GREEDY_TEMPERATURE: f64 = 1e-5;

/// Whether the most likely token is always taken.
pub(super) fn is_greedy(options: &GenerationOptions) -> bool {
    options.temperature < GREEDY_TEMPERATURE
}

/// Samples the tokens of one generation; holds the history for the repetition penalty and the random state.
///
/// The order is transformers': repetition penalty, temperature, top-k, top-p, then one draw. Draws come from ChaCha12,
/// so a seed gives the same answer on every platform.
///
/// Reference:
/// [`RepetitionPenaltyLogitsProcessor`](https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/generation/logits_process.py#L306-L413),
/// [`TemperatureLogitsWarper`](https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/generation/logits_process.py#L238-L303),
/// [`TopKLogitsWarper`](https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/generation/logits_process.py#L542-L595),
/// [`TopPLogitsWarper`](https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/generation/logits_process.py#L473-L539).
pub struct Sampler {
    temperature: f64,
    top_k: Option<usize>,
    top_p: Option<f64>,
    penalty: f32,
    seen: HashSet<usize>,
    random: StreamRng,
    /// Scratch buffer of `[vocab]` values.
    weights: Vec<f32>,
    order: Vec<usize>,
}

impl Sampler {
    /// A sampler for one generation from `prompt` token ids.
    pub fn new(options: &GenerationOptions, prompt: &[i64]) -> Self {
        let mut sampler = Self {
            temperature: options.temperature,
            top_k: options.top_k,
            top_p: options.top_p.filter(|&p| p < 1.0),
            penalty: options.repetition_penalty as f32,
            seen: HashSet::new(),
            random: options
                .seed
                .map_or_else(StreamRng::from_os, |seed| StreamRng::new(seed, 0)),
            weights: Vec::new(),
            order: Vec::new(),
        };
        for &id in prompt {
            sampler.remember(id);
        }
        sampler
    }

    /// Samples the next token from `logits` `[vocab]`, which it overwrites.
    ///
    /// # Errors
    /// [`Error::NonFinite`] for NaN or Inf.
    pub fn next(&mut self, logits: &mut [f32]) -> Result<i64> {
        self.penalize(logits);
        let mut token = argmax(logits)?;
        if self.temperature >= GREEDY_TEMPERATURE {
            self.warp(logits);
            token = self.draw(logits)?;
        }
        let token = token as i64;
        self.remember(token);
        Ok(token)
    }

    /// Applies penalty, temperature, top-k and top-p to `logits` `[vocab]` as [`Sampler::next`] does, removed tokens being negative
    /// infinity. Samples nothing and keeps no history.
    pub fn process(&mut self, logits: &mut [f32]) -> Result<()> {
        self.penalize(logits);
        argmax(logits)?;
        if self.temperature > 0.0 {
            self.warp(logits);
        }
        Ok(())
    }

    fn remember(&mut self, id: i64) {
        if self.penalty != 1.0
            && let Ok(id) = usize::try_from(id)
        {
            self.seen.insert(id);
        }
    }

    fn penalize(&self, logits: &mut [f32]) {
        for &id in &self.seen {
            if let Some(x) = logits.get_mut(id) {
                *x = if *x < 0.0 {
                    *x * self.penalty
                } else {
                    *x / self.penalty
                };
            }
        }
    }

    fn warp(&mut self, logits: &mut [f32]) {
        if self.temperature != 1.0 {
            let temperature = self.temperature as f32;
            logits.iter_mut().for_each(|x| *x /= temperature);
        }
        if let Some(k) = self.top_k
            && (1..logits.len()).contains(&k)
        {
            self.keep_top_k(logits, k);
        }
        if let Some(p) = self.top_p {
            self.keep_top_p(logits, p);
        }
    }

    /// Removes logits below the k-th largest; ties are kept.
    fn keep_top_k(&mut self, logits: &mut [f32], k: usize) {
        self.weights.clear();
        self.weights.extend_from_slice(logits);
        let (_, &mut kth, _) = self.weights.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
        remove(logits, |x| x < kth);
    }

    /// Removes the least likely tokens with a cumulative probability of at most 1 - p; keeps at least one.
    fn keep_top_p(&mut self, logits: &mut [f32], p: f64) {
        let (total, left) = self.weigh(logits);
        let mut budget = (1.0 - p) * total;
        // At most `left` tokens have a weight this small, so that together they stay within the budget: only the others,
        // usually few, need sorting. (The largest weight is 1 and never small.)
        let small = budget / left as f64;
        self.order.clear();
        for (index, &weight) in self.weights.iter().enumerate() {
            if f64::from(weight) > small || weight == 1.0 {
                self.order.push(index);
            } else {
                budget -= f64::from(weight);
                logits[index] = f32::NEG_INFINITY;
            }
        }
        self.order
            .sort_unstable_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(a.cmp(&b)));
        let but_last = self.order.len().saturating_sub(1);
        for &index in &self.order[..but_last] {
            budget -= f64::from(self.weights[index]);
            if budget < 0.0 {
                break;
            }
            logits[index] = f32::NEG_INFINITY;
        }
    }

    /// Draws one token by its probability.
    fn draw(&mut self, logits: &[f32]) -> Result<usize> {
        let (total, _) = self.weigh(logits);
        if !(total.is_finite() && total > 0.0) {
            return Err(not_a_number("the sum of the probabilities"));
        }
        let uniform = self.random.unit();
        let mut left = uniform * total;
        let mut chosen = 0;
        for (index, &weight) in self.weights.iter().enumerate() {
            if weight > 0.0 {
                chosen = index;
                left -= f64::from(weight);
                if left < 0.0 {
                    break;
                }
            }
        }
        Ok(chosen)
    }

    /// Writes `exp(x - max)` to `weights`; returns their sum and the number of tokens that are not removed.
    fn weigh(&mut self, logits: &[f32]) -> (f64, usize) {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let (mut total, mut left) = (0.0, 0);
        self.weights.clear();
        self.weights.extend(logits.iter().map(|&x| {
            if x == f32::NEG_INFINITY {
                return 0.0;
            }
            let weight = (x - max).exp();
            total += f64::from(weight);
            left += 1;
            weight
        }));
        (total, left)
    }
}

fn remove(logits: &mut [f32], condition: impl Fn(f32) -> bool) {
    for x in logits {
        if condition(*x) {
            *x = f32::NEG_INFINITY;
        }
    }
}

/// Index of the largest logit, the first one of ties; an error if one is NaN or the largest is infinite.
fn argmax(logits: &[f32]) -> Result<usize> {
    /// Independent lanes, so that the compiler can vectorize.
    const LANES: usize = 16;
    let mut best = [f32::NEG_INFINITY; LANES];
    let mut broken = [0_u32; LANES];
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for ((best, broken), &x) in best.iter_mut().zip(&mut broken).zip(chunk) {
            *best = if x > *best { x } else { *best };
            *broken |= u32::from(x.is_nan());
        }
    }
    let max = best.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
    if broken.iter().any(|&b| b != 0) || rest.iter().any(|x| x.is_nan()) || !max.is_finite() {
        return Err(not_a_number("a logit"));
    }
    Ok(logits.iter().position(|&x| x == max).unwrap_or(0))
}

pub(super) fn not_a_number(what: &str) -> Error {
    Error::NonFinite(format!(
        "{what} is not a finite number: the weights are damaged, or too large for this precision"
    ))
}
