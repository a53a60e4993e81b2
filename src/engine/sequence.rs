//! The reader's answers, token by token: prompt, prefill, joint steps.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use tch::Device;

use super::backend::Backend;
use super::kv_budget::KvShare;
use super::output_stream::OutputStream;
use super::reader::{ModelInputs, Reader};
use super::request::{GeneratedToken, ImageSize, OnStep, ReadRequest, Reading, Step, TokenLogprob, Variant};
use crate::device::synchronize;
use crate::generation::{
    ChoiceExtras, FinishReason, GenerationOptions, MaskWorker, TokenChooser, best, log_sum_exp,
};
use crate::processing::TextProcessor;
use crate::qwen2_5_vl::{CancelCheck, KvCache, LogitsToKeep, Prefill};
use crate::{Error, Result};

/// A request after preprocessing.
pub struct Prompt {
    start: Instant,
    inputs: ModelInputs,
    options: GenerationOptions,
    logprobs: Option<usize>,
    mask: Option<MaskWorker>,
}

/// An answer that is being generated.
pub struct Sequence<'m> {
    start: Instant,
    sizes: Vec<ImageSize>,
    prompt_tokens: usize,
    cached_tokens: usize,
    /// Number of most likely tokens whose log-probabilities are told.
    logprobs: Option<usize>,
    cache: KvCache,
    _share: KvShare,
    chooser: TokenChooser,
    /// Chosen last; not in the output before [`Backend::push`].
    token: i64,
    output: OutputStream<'m>,
    first: Duration,
}

impl Backend for Reader {
    type Prompt = Prompt;
    type Sequence<'m> = Sequence<'m>;

    fn variants(&self) -> &[Variant] {
        Reader::variants(self)
    }

    fn max_batch(&self) -> usize {
        match self.model.device() {
            Device::Cpu => 4,
            _ => 8,
        }
    }

    fn prepare(&self, request: &ReadRequest) -> Result<Prompt> {
        let start = Instant::now();
        let mut options = self.options.with(&request.overrides)?;
        let vocab_size = self.model.config().text.vocab_size;
        let mask = request
            .mask
            .as_ref()
            .map(|source| MaskWorker::start(source, vocab_size));
        let mask = mask.transpose().map_err(|error| Error::System {
            what: "a thread",
            source: error,
        })?;
        let inputs = self.inputs(request, options.max_new_tokens)?;
        options.max_new_tokens = inputs.max_new_tokens;
        Ok(Prompt {
            start,
            inputs,
            options,
            logprobs: request.logprobs,
            mask,
        })
    }

    fn has_room(&self, prompt: &Prompt) -> bool {
        self.kv.has_room(prompt.inputs.tokens())
    }

    fn begin<'m>(
        &'m self,
        prompt: Prompt,
        on_step: &mut OnStep<'_>,
    ) -> Result<ControlFlow<Reading, Sequence<'m>>> {
        let Prompt {
            start,
            inputs,
            options,
            logprobs,
            mask,
        } = prompt;
        let (ids, adapter) = (&inputs.input_ids, inputs.adapter);
        let share = self.kv.take(inputs.tokens());
        let mut cache = self.model.cache_with(inputs.tokens(), adapter)?;
        let prefill = match self.prefill(&inputs, &mut cache, &mut || on_step(Step::NONE)) {
            Err(Error::Cancelled) => {
                return Ok(ControlFlow::Break(Reading::cancelled(
                    inputs.sizes,
                    ids.len(),
                    start,
                )));
            }
            other => other?,
        };
        let logits = self.model.logits_with(&prefill.hidden, adapter)?;
        let extras = ChoiceExtras {
            keeps_raw: logprobs.is_some(),
            mask,
        };
        let vocab_size = self.model.config().text.vocab_size;
        let mut chooser = TokenChooser::new(&options, ids, vocab_size, logits.device(), extras)?;
        let token = chooser.next(&logits)?;
        let mut sequence = Sequence {
            start,
            prompt_tokens: ids.len(),
            cached_tokens: inputs.kept.as_ref().map_or(0, |kept| kept.tokens()),
            sizes: inputs.sizes,
            logprobs,
            cache,
            _share: share,
            chooser,
            token,
            output: OutputStream::new(&self.text, options, inputs.input_ids.len()),
            first: start.elapsed(),
        };
        Ok(match self.push(&mut sequence, on_step)? {
            Some(reading) => ControlFlow::Break(reading),
            None => ControlFlow::Continue(sequence),
        })
    }

    fn step(&self, sequences: &mut [&mut Sequence<'_>]) -> Vec<Result<()>> {
        self.step_together(sequences).unwrap_or_else(|error| {
            // One error for all: the first gets it as it is.
            let others = sequences
                .iter()
                .skip(1)
                .map(|_| Error::Internal(error.to_string()));
            let others: Vec<_> = others.collect();
            std::iter::once(error).chain(others).map(Err).collect()
        })
    }

    fn push(&self, sequence: &mut Sequence<'_>, on_step: &mut OnStep<'_>) -> Result<Option<Reading>> {
        let token = sequence.token;
        let logprob = match (sequence.logprobs, sequence.chooser.raw()) {
            (Some(top), Some(raw)) if !sequence.output.ends_with(token) => {
                Some(logprob(&self.text, token, raw, top))
            }
            _ => None,
        };
        match sequence.output.push(token, logprob, on_step)? {
            Some(reason) => sequence.end(reason, on_step).map(Some),
            None => {
                sequence.chooser.accept(token)?;
                Ok(None)
            }
        }
    }

    fn wait(&self) {
        synchronize(self.model.device());
    }
}

impl Reader {
    fn prefill(
        &self,
        inputs: &ModelInputs,
        cache: &mut KvCache,
        cancel: &mut CancelCheck<'_>,
    ) -> Result<Prefill> {
        let (ids, grids) = (&inputs.input_ids, &inputs.grids);
        if let Some(kept) = &inputs.kept {
            cache.restore(kept)?;
        }
        let features = match &inputs.pixel_values {
            Some(pixels) => {
                let adapter = inputs.adapter;
                Some(
                    self.model
                        .image_features_cancellable(pixels, grids, adapter, cancel)?,
                )
            }
            None => None,
        };
        let read = (ids.as_slice(), features.as_ref(), grids.as_slice());
        let prefill = self
            .model
            .prefill_cancellable(read, cache, LogitsToKeep::Last, cancel)?;
        if let (Some(key), None, Some(prefixes)) = (inputs.prefix, &inputs.kept, &self.prefixes)
            && prefixes.takes(self.kv.of(key.tokens))
        {
            prefixes.keep(key, cache.prefix(key.tokens)?);
        }
        Ok(prefill)
    }

    fn step_together(&self, sequences: &mut [&mut Sequence<'_>]) -> Result<Vec<Result<()>>> {
        let mut step: Vec<_> = sequences
            .iter_mut()
            .map(|sequence| (sequence.token, &mut sequence.cache))
            .collect();
        let logits = self.model.decode_together(&mut step)?;
        let mut choosers: Vec<_> = sequences
            .iter_mut()
            .map(|sequence| &mut sequence.chooser)
            .collect();
        let tokens = TokenChooser::next_together(&mut choosers, &logits)?;
        let chosen = sequences.iter_mut().zip(tokens);
        Ok(chosen
            .map(|(sequence, token)| token.map(|token| sequence.token = token))
            .collect())
    }
}

impl Sequence<'_> {
    fn end(&mut self, finish_reason: FinishReason, on_step: &mut OnStep<'_>) -> Result<Reading> {
        let output = &mut self.output;
        output.finish(finish_reason, on_step)?;
        let latency_seconds = self.start.elapsed().as_secs_f64();
        Ok(Reading {
            text: std::mem::take(&mut output.text),
            tokens: std::mem::take(&mut output.tokens),
            logprobs: std::mem::take(&mut output.logprobs),
            images: std::mem::take(&mut self.sizes),
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens,
            completion_tokens: output.generated,
            finish_reason,
            time_to_first_token_seconds: self.first.as_secs_f64(),
            latency_seconds,
        })
    }
}

/// Log-probability of `token`, and the `top` most likely ones, by the raw `logits` `[vocab]`.
fn logprob(text: &TextProcessor, token: i64, logits: &[f32], top: usize) -> GeneratedToken {
    let total = log_sum_exp(logits);
    let of = |index: usize| TokenLogprob {
        id: index as i64,
        bytes: text.token_bytes(index as i64).to_vec(),
        logprob: logits[index] - total,
    };
    GeneratedToken {
        token: of(token as usize),
        top: best(logits, top).into_iter().map(of).collect(),
    }
}
