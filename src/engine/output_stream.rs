//! Output of one generation: end tokens, stop strings, repetition guard, text streaming.

use super::request::{CacheUse, GeneratedToken, OnStep, Step};
use crate::Result;
use crate::generation::{FinishReason, GenerationOptions, RepetitionGuard, StopStrings};
use crate::processing::{TextProcessor, TokenStream};

/// The output so far.
pub(super) struct OutputStream<'a> {
    /// Text passed to `on_step`.
    pub(super) text: String,
    /// Token ids without the end token and truncated repetitions.
    pub(super) tokens: Vec<i64>,
    /// Log-probabilities of `tokens`, if asked for.
    pub(super) logprobs: Vec<GeneratedToken>,
    /// Number of generated tokens, including the end token and repetitions.
    pub(super) generated: usize,
    /// Tokens of prompt and images.
    prompt_tokens: usize,
    /// For each of `logprobs`: where its text begins, in bytes of the whole text, held back or not.
    starts: Vec<usize>,
    /// Number of `logprobs` passed to `on_step`.
    reported: usize,
    /// Bytes decoded so far, held back or not.
    decoded: usize,
    options: GenerationOptions,
    processor: &'a TextProcessor,
    stream: TokenStream<'a>,
    stop: StopStrings,
    guard: Option<RepetitionGuard>,
    cancelled: bool,
}

impl<'a> OutputStream<'a> {
    pub(super) fn new(
        processor: &'a TextProcessor,
        options: GenerationOptions,
        prompt_tokens: usize,
    ) -> Self {
        Self {
            text: String::new(),
            tokens: Vec::new(),
            logprobs: Vec::new(),
            generated: 0,
            prompt_tokens,
            starts: Vec::new(),
            reported: 0,
            decoded: 0,
            stream: processor.stream(),
            stop: StopStrings::new(&options.stop),
            guard: options.repetition_detection.map(RepetitionGuard::new),
            options,
            processor,
            cancelled: false,
        }
    }

    /// Whether `token` ends the answer.
    pub(super) fn ends_with(&self, token: i64) -> bool {
        self.options.stop_token_ids.contains(&token)
    }

    /// Adds the next token; returns why the output ends, if it does.
    pub(super) fn push(
        &mut self,
        token: i64,
        logprob: Option<GeneratedToken>,
        on_step: &mut OnStep<'_>,
    ) -> Result<Option<FinishReason>> {
        self.generated += 1;
        let generated = Some(CacheUse {
            tokens: self.prompt_tokens + self.generated,
            capacity: self.prompt_tokens + self.options.max_new_tokens,
        });
        if self.ends_with(token) {
            self.emit("", generated, on_step);
            return Ok(Some(FinishReason::Stop));
        }
        self.tokens.push(token);
        if let Some(logprob) = logprob {
            self.logprobs.push(logprob);
            self.starts.push(self.decoded);
        }
        let piece = self.stream.push(token)?;
        self.decoded += piece.len();
        let released = self.stop.push(&piece);
        self.emit(&released.text, generated, on_step);
        if released.stopped {
            return Ok(Some(FinishReason::Stop));
        }
        if let Some(repeats) = self.guard.as_mut().and_then(|g| g.push(token)) {
            self.tokens.truncate(self.tokens.len().saturating_sub(repeats));
            self.logprobs.truncate(self.tokens.len());
            self.text = self.processor.decode(&self.tokens)?;
            return Ok(Some(FinishReason::Repetition));
        }
        if self.cancelled {
            return Ok(Some(FinishReason::Cancelled));
        }
        Ok((self.generated >= self.options.max_new_tokens).then_some(FinishReason::Length))
    }

    /// Emits the text held back, unless the output was truncated or cancelled, and drops the tokens of a stop string.
    pub(super) fn finish(&mut self, reason: FinishReason, on_step: &mut OnStep<'_>) -> Result<()> {
        if matches!(reason, FinishReason::Repetition | FinishReason::Cancelled) {
            return Ok(());
        }
        let tail = self.stream.finish()?;
        let released = self.stop.push(&tail);
        self.emit(&released.text, None, on_step);
        if !released.stopped {
            let held = self.stop.finish();
            self.emit(&held, None, on_step);
        }
        let kept = self.starts.partition_point(|&start| start < self.text.len());
        self.logprobs.truncate(kept);
        Ok(())
    }

    /// Calls `on_step` for every token, even with an empty text, so that the caller can cancel.
    fn emit(&mut self, text: &str, generated: Option<CacheUse>, on_step: &mut OnStep<'_>) {
        self.text.push_str(text);
        let begun = self.starts.partition_point(|&start| start < self.text.len());
        let step = Step {
            text,
            tokens: self.logprobs.get(self.reported..begun).unwrap_or_default(),
            generated,
        };
        self.reported = self.reported.max(begun);
        self.cancelled |= on_step(step).is_break();
    }
}
