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

    /// The next token by `logits`, f32 `[vocab]` or `[1, vocab]`.
    ///
    /// # Errors
    /// [`Error::NonFinite`](crate::Error::NonFinite) for NaN or Inf.
    pub fn next(&mut self, logits: &Tensor) -> Result<i64> {
        let mut logits = logits.f_view([-1])?;
        if let Some((penalty, seen)) = &self.penalty {
            let less = logits
                .f_div(penalty)?
                .f_where_self(&logits.f_ge(0.0)?, &logits.f_mul(penalty)?)?;
            logits = less.f_where_self(seen, &logits)?;
        }
        // The first of equal ones; NaN counts as the largest.
        let index = logits.f_argmax(0, true)?;
        let value = logits.f_index_select(0, &index)?.f_to_kind(Kind::Double)?;
        let both = Tensor::f_cat(&[value, index.f_to_kind(Kind::Double)?], 0)?;
        let mut chosen = [0f64; 2];
        both.f_to_device(Device::Cpu)?.f_copy_data(&mut chosen, 2)?;
        let [value, index] = chosen;
        if !value.is_finite() {
            return Err(not_a_number("a logit"));
        }
        if let Some((_, seen)) = &mut self.penalty {
            let _ = seen.f_narrow(0, index as i64, 1)?.f_fill_(1)?;
        }
        Ok(index as i64)
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
                let found = greedy.next(&Tensor::from_slice(&logits)).unwrap();
                assert_eq!(found, sampler.next(&mut logits).unwrap(), "penalty {penalty}");
            }
        }
    }

    #[test]
    fn a_number_that_is_none_is_an_error() {
        for wrong in [f32::NAN, f32::INFINITY] {
            let mut greedy = DeviceGreedy::on(&options(1.0), &[], 3, Device::Cpu).unwrap();
            let error = greedy.next(&Tensor::from_slice(&[0.0, wrong, 1.0])).unwrap_err();
            assert!(error.to_string().contains("not a finite number"), "{error}");
        }
        assert!(
            DeviceGreedy::new(&options(1.0), &[], 3, Device::Cpu)
                .unwrap()
                .is_none()
        );
    }
}
