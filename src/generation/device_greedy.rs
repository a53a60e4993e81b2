//! Greedy choice where the logits are: a GPU's logits of 150,000 tokens take longer to the host than a small model's step.

use tch::{Device, Kind, Tensor};

use super::GenerationOptions;
use super::sampling::{is_greedy, not_a_number};
use crate::Result;

/// Chooses the most likely token, with the repetition penalty, as [`Sampler`](super::Sampler) does.
pub struct DeviceGreedy {
    /// The penalty `[]`, and which tokens it applies to: bool `[vocab]`.
    penalty: Option<(Tensor, Tensor)>,
}

impl DeviceGreedy {
    /// For one generation from `prompt` token ids on a GPU; `None` where a sampler is needed, or the logits are on the host anyway.
    pub fn new(
        options: &GenerationOptions,
        prompt: &[i64],
        vocab_size: usize,
        device: Device,
    ) -> Result<Option<Self>> {
        if !device.is_cuda() || !is_greedy(options) {
            return Ok(None);
        }
        Self::on(options, prompt, vocab_size, device).map(Some)
    }

    fn on(options: &GenerationOptions, prompt: &[i64], vocab_size: usize, device: Device) -> Result<Self> {
        if options.repetition_penalty == 1.0 {
            return Ok(Self { penalty: None });
        }
        let mut seen = vec![false; vocab_size];
        for &id in prompt {
            if let Some(seen) = usize::try_from(id).ok().and_then(|id| seen.get_mut(id)) {
                *seen = true;
            }
        }
        // A tensor, not a number: libtorch multiplies by the reciprocal of a number.
        let penalty = Tensor::f_from_slice(&[options.repetition_penalty as f32])?.f_squeeze()?;
        Ok(Self {
            penalty: Some((
                penalty.f_to_device(device)?,
                Tensor::f_from_slice(&seen)?.f_to_device(device)?,
            )),
        })
    }

    /// The next tokens of several generations by `logits`, f32 `[generations, vocab]`; one is
    /// [`Error::NonFinite`](crate::Error::NonFinite) for NaN or Inf.
    ///
    /// # Errors
    /// Those of libtorch.
    pub(super) fn next_together(generations: &mut [&mut Self], logits: &Tensor) -> Result<Vec<Result<i64>>> {
        let with_penalty: Vec<i64> = (0i64..)
            .zip(&*generations)
            .filter_map(|(row, generation)| generation.penalty.as_ref().map(|_| row))
            .collect();
        let penalties = || generations.iter().filter_map(|one| one.penalty.as_ref());
        let mut logits = logits.shallow_clone();
        if !with_penalty.is_empty() {
            let (values, seen): (Vec<_>, Vec<_>) = penalties().map(|(value, seen)| (value, seen)).unzip();
            let values = Tensor::f_stack(&values, 0)?.f_unsqueeze(1)?;
            let seen = Tensor::f_stack(&seen, 0)?;
            let penalized = |some: &Tensor| -> Result<Tensor> {
                let less = some
                    .f_div(&values)?
                    .f_where_self(&some.f_ge(0.0)?, &some.f_mul(&values)?)?;
                Ok(less.f_where_self(&seen, some)?)
            };
            logits = if with_penalty.len() == generations.len() {
                penalized(&logits)?
            } else {
                let rows = Tensor::f_from_slice(&with_penalty)?.f_to_device(logits.device())?;
                logits.f_index_copy(0, &rows, &penalized(&logits.f_index_select(0, &rows)?)?)?
            };
        }
        // The first of equal ones; NaN counts as the largest.
        let index = logits.f_argmax(1, true)?;
        let value = logits.f_gather(1, &index, false)?.f_to_kind(Kind::Double)?;
        let both = Tensor::f_cat(&[value, index.f_to_kind(Kind::Double)?], 1)?;
        let mut chosen = vec![0f64; 2 * generations.len()];
        let values = chosen.len();
        both.f_to_device(Device::Cpu)?.f_copy_data(&mut chosen, values)?;
        let chosen = chosen.as_chunks::<2>().0.iter().zip(generations);
        chosen
            .map(|(&[value, index], generation)| {
                if !value.is_finite() {
                    return Ok(Err(not_a_number("a logit")));
                }
                if let Some((_, seen)) = &mut generation.penalty {
                    let _ = seen.f_narrow(0, index as i64, 1)?.f_fill_(1)?;
                }
                Ok(Ok(index as i64))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::Sampler;
    use crate::random::SeededRng;

    fn options(repetition_penalty: f64) -> GenerationOptions {
        GenerationOptions {
            max_new_tokens: 1,
            temperature: 0.0,
            top_k: None,
            top_p: None,
            repetition_penalty,
            seed: None,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            repetition_detection: None,
        }
    }

    fn next(greedy: &mut DeviceGreedy, logits: &[f32]) -> Result<i64> {
        let logits = Tensor::from_slice(logits).unsqueeze(0);
        DeviceGreedy::next_together(&mut [greedy], &logits)?.remove(0)
    }

    #[test]
    fn generations_together_choose_as_each_alone() {
        let vocab = 499;
        let of = |penalty: f64, prompt: &[i64]| {
            DeviceGreedy::on(&options(penalty), prompt, vocab, Device::Cpu).unwrap()
        };
        let make = || [of(1.1, &[3, 7]), of(1.0, &[]), of(2.0, &[490]), of(1.0, &[1])];
        let (mut alone, mut together) = (make(), make());
        let mut random = SeededRng::from_seed(8);
        for round in 0..100 {
            let mut logits: Vec<Vec<f32>> = (0..4)
                .map(|_| (0..vocab).map(|_| random.below(9) as f32 - 4.0).collect())
                .collect();
            if round == 50 {
                logits[2][5] = f32::NAN;
            }
            let rows: Vec<Tensor> = logits.iter().map(|row| Tensor::from_slice(row)).collect();
            let mut all: Vec<&mut DeviceGreedy> = together.iter_mut().collect();
            let found = DeviceGreedy::next_together(&mut all, &Tensor::stack(&rows, 0)).unwrap();
            for ((found, one), logits) in found.into_iter().zip(&mut alone).zip(&logits) {
                assert_eq!(found.ok(), next(one, logits).ok(), "round {round}");
            }
        }
    }

    #[test]
    fn it_chooses_what_the_sampler_chooses() {
        let vocab = 997;
        for penalty in [1.0, 1.05, 3.0, 0.5] {
            let options = options(penalty);
            let prompt = [3i64, 500, 3, -1, 10_000];
            let mut greedy = DeviceGreedy::on(&options, &prompt, vocab, Device::Cpu).unwrap();
            let mut sampler = Sampler::new(&options, &prompt);
            let mut random = SeededRng::from_seed(7);
            for _ in 0..200 {
                // Few values, so that many are equal.
                let mut logits: Vec<f32> = (0..vocab).map(|_| random.below(9) as f32 - 6.0).collect();
                let found = next(&mut greedy, &logits).unwrap();
                assert_eq!(found, sampler.next(&mut logits).unwrap(), "penalty {penalty}");
            }
        }
    }

    #[test]
    fn a_number_that_is_none_is_an_error() {
        for wrong in [f32::NAN, f32::INFINITY] {
            let mut greedy = DeviceGreedy::on(&options(1.0), &[], 3, Device::Cpu).unwrap();
            let error = next(&mut greedy, &[0.0, wrong, 1.0]).unwrap_err();
            assert!(error.to_string().contains("not a finite number"), "{error}");
        }
        assert!(
            DeviceGreedy::new(&options(1.0), &[], 3, Device::Cpu)
                .unwrap()
                .is_none()
        );
    }
}
