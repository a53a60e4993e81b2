//! Choice of the next tokens, where the logits are if that suffices, else on the host.

use tch::{Device, Tensor};

use super::device_greedy::DeviceGreedy;
use super::{GenerationOptions, MaskWorker, Sampler};
use crate::Result;

/// Chooses the tokens of one generation.
pub struct TokenChooser {
    place: Place,
    /// Raw logits `[vocab]` of the last token, where they are kept.
    raw: Option<Vec<f32>>,
    mask: Option<MaskWorker>,
}

/// Where a generation's tokens are chosen.
enum Place {
    /// On the device of the logits.
    Device(DeviceGreedy),
    /// By the sampler. `scores` `[vocab]` are copied from the logits and overwritten.
    Host { sampler: Box<Sampler>, scores: Vec<f32> },
}

/// What a [`TokenChooser`] does beside choosing.
#[derive(Default)]
pub struct ChoiceExtras {
    /// Whether the raw logits of every token are kept.
    pub keeps_raw: bool,
    /// Restricts the tokens.
    pub mask: Option<MaskWorker>,
}

impl TokenChooser {
    /// For one generation from `prompt` token ids with logits `[vocab_size]` on `device`.
    pub fn new(
        options: &GenerationOptions,
        prompt: &[i64],
        vocab_size: usize,
        device: Device,
        extras: ChoiceExtras,
    ) -> Result<Self> {
        let greedy = match extras.keeps_raw || extras.mask.is_some() {
            true => None,
            false => DeviceGreedy::new(options, prompt, vocab_size, device)?,
        };
        Ok(Self {
            place: match greedy {
                Some(greedy) => Place::Device(greedy),
                None => Place::Host {
                    sampler: Box::new(Sampler::new(options, prompt)),
                    scores: vec![0.0; vocab_size],
                },
            },
            raw: extras.keeps_raw.then(Vec::new),
            mask: extras.mask,
        })
    }

    /// The raw logits `[vocab]` that the last token was chosen from; `None` where they are not kept.
    pub fn raw(&self) -> Option<&[f32]> {
        self.raw.as_deref()
    }

    /// The next token by `logits`, f32 `[vocab]` or `[1, vocab]`.
    ///
    /// # Errors
    /// [`Error::NonFinite`](crate::Error::NonFinite) for NaN or Inf; those of the mask.
    pub fn next(&mut self, logits: &Tensor) -> Result<i64> {
        let token = Self::next_together(&mut [self], &logits.f_view([1, -1])?)?.pop();
        token.unwrap_or_else(|| Err(crate::Error::Internal("no token was chosen".into())))
    }

    /// The next tokens of several generations by `logits`, f32 `[generations, vocab]`; errors as of [`Self::next`].
    ///
    /// # Errors
    /// Those of libtorch, which are about all of them.
    pub fn next_together(choosers: &mut [&mut Self], logits: &Tensor) -> Result<Vec<Result<i64>>> {
        let (mut greedy, mut rows) = (Vec::new(), Vec::new());
        let mut tokens: Vec<Option<Result<i64>>> = Vec::new();
        let mut host = None;
        for (row, chooser) in (0i64..).zip(choosers) {
            let Self { place, raw, mask } = &mut **chooser;
            tokens.push(match place {
                Place::Device(chooser) => {
                    greedy.push(chooser);
                    rows.push(row);
                    None
                }
                Place::Host { sampler, scores } => {
                    let host: &mut Tensor = match &mut host {
                        Some(host) => host,
                        None => host.insert(logits.f_to_device(Device::Cpu)?),
                    };
                    let values = scores.len();
                    host.f_select(0, row)?.f_copy_data(scores, values)?;
                    Some(sample(sampler, scores, raw.as_mut(), mask.as_mut()))
                }
            });
        }
        let mut chosen = match rows.len() == tokens.len() {
            true => DeviceGreedy::next_together(&mut greedy, logits)?,
            false if rows.is_empty() => Vec::new(),
            false => {
                let rows = Tensor::f_from_slice(&rows)?.f_to_device(logits.device())?;
                DeviceGreedy::next_together(&mut greedy, &logits.f_index_select(0, &rows)?)?
            }
        }
        .into_iter();
        let missing = || Err(crate::Error::Internal("no token was chosen".into()));
        let tokens = tokens.into_iter();
        Ok(tokens
            .map(|token| token.or_else(|| chosen.next()).unwrap_or_else(missing))
            .collect())
    }

    /// Tells the mask of the chosen token, which does not end the answer.
    ///
    /// # Errors
    /// [`Error::Internal`](crate::Error::Internal) if the mask has panicked.
    pub fn accept(&mut self, token: i64) -> Result<()> {
        self.mask.as_mut().map_or(Ok(()), |mask| mask.accept(token))
    }
}

fn sample(
    sampler: &mut Sampler,
    scores: &mut [f32],
    raw: Option<&mut Vec<f32>>,
    mask: Option<&mut MaskWorker>,
) -> Result<i64> {
    if let Some(raw) = raw {
        raw.clear();
        raw.extend_from_slice(scores);
    }
    if let Some(mask) = mask {
        mask.apply(scores)?;
    }
    sampler.next(scores)
}
