//! Choice of the next token, where the logits are if that suffices, else on the host.

use tch::{Device, Tensor};

use super::device_greedy::DeviceGreedy;
use super::{GenerationOptions, Sampler};
use crate::Result;

/// Chooses the tokens of one generation.
pub enum TokenChooser {
    /// On the device of the logits.
    OnDevice(DeviceGreedy),
    /// By the sampler.
    OnHost {
        /// The sampler.
        sampler: Box<Sampler>,
        /// `[vocab]`, copied from the logits and overwritten.
        scores: Vec<f32>,
    },
}

impl TokenChooser {
    /// For one generation from `prompt` token ids with logits `[vocab_size]` on `device`. With `on_host` the scores are looked
    /// at in [`Self::next`].
    pub fn new(
        options: &GenerationOptions,
        prompt: &[i64],
        vocab_size: usize,
        device: Device,
        on_host: bool,
    ) -> Result<Self> {
        if !on_host && let Some(greedy) = DeviceGreedy::new(options, prompt, vocab_size, device)? {
            return Ok(Self::OnDevice(greedy));
        }
        Ok(Self::OnHost {
            sampler: Box::new(Sampler::new(options, prompt)),
            scores: vec![0.0; vocab_size],
        })
    }

    /// The next token by `logits`, f32 `[vocab]` or `[1, vocab]`. On the host, `look` gets the raw scores first, and may change
    /// them.
    ///
    /// # Errors
    /// [`Error::NonFinite`](crate::Error::NonFinite) for NaN or Inf; those of `look`.
    pub fn next(&mut self, logits: &Tensor, look: impl FnOnce(&mut [f32]) -> Result<()>) -> Result<i64> {
        match self {
            Self::OnDevice(greedy) => greedy.next(logits),
            Self::OnHost { sampler, scores } => {
                let host = logits.f_to_device(Device::Cpu)?.f_view([-1])?;
                host.f_copy_data(scores, logits.numel())?;
                look(scores)?;
                sampler.next(scores)
            }
        }
    }
}
