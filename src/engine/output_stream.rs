//! Output of one generation: end tokens, stop strings, repetition guard, text streaming.

use std::ops::ControlFlow;

use crate::Result;
use crate::generation::{FinishReason, GenerationOptions, RepetitionGuard, StopStrings};
use crate::processing::{TextProcessor, TokenStream};

/// The output so far.
pub(super) struct OutputStream<'a> {
    /// Text passed to `on_text`.
    pub(super) text: String,
    /// Token ids without the end token and truncated repetitions.
    pub(super) tokens: Vec<i64>,
    /// Number of generated tokens, including the end token and repetitions.
    pub(super) generated: usize,
    options: &'a GenerationOptions,
    processor: &'a TextProcessor,
    stream: TokenStream<'a>,
    stop: StopStrings,
    guard: Option<RepetitionGuard>,
    on_text: &'a mut dyn FnMut(&str) -> ControlFlow<()>,
    cancelled: bool,
}

impl<'a> OutputStream<'a> {
    pub(super) fn new(
        processor: &'a TextProcessor,
        options: &'a GenerationOptions,
        on_text: &'a mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Self {
        Self {
            text: String::new(),
            tokens: Vec::new(),
            generated: 0,
            options,
            processor,
            stream: processor.stream(),
            stop: StopStrings::new(&options.stop),
            guard: options.repetition_detection.map(RepetitionGuard::new),
            on_text,
            cancelled: false,
        }
    }

    /// Adds the next token; returns why the output ends, if it does.
    pub(super) fn push(&mut self, token: i64) -> Result<Option<FinishReason>> {
        self.generated += 1;
        if self.options.stop_token_ids.contains(&token) {
            return Ok(Some(FinishReason::Stop));
        }
        self.tokens.push(token);
        let piece = self.stream.push(token)?;
        let released = self.stop.push(&piece);
        self.emit(&released.text);
        if released.stopped {
            return Ok(Some(FinishReason::Stop));
        }
        if let Some(repeats) = self.guard.as_mut().and_then(|g| g.push(token)) {
            self.tokens.truncate(self.tokens.len().saturating_sub(repeats));
            self.text = self.processor.decode(&self.tokens)?;
            return Ok(Some(FinishReason::Repetition));
        }
        if self.cancelled {
            return Ok(Some(FinishReason::Cancelled));
        }
        Ok((self.generated >= self.options.max_new_tokens).then_some(FinishReason::Length))
    }

    /// Emits the text held back, unless the output was truncated or cancelled.
    pub(super) fn finish(&mut self, reason: FinishReason) -> Result<()> {
        if matches!(reason, FinishReason::Repetition | FinishReason::Cancelled) {
            return Ok(());
        }
        let tail = self.stream.finish()?;
        let released = self.stop.push(&tail);
        self.emit(&released.text);
        if !released.stopped {
            let held = self.stop.finish();
            self.emit(&held);
        }
        Ok(())
    }

    /// Calls `on_text` for every token, even with an empty text, so that the caller can cancel.
    fn emit(&mut self, text: &str) {
        self.text.push_str(text);
        self.cancelled |= (self.on_text)(text).is_break();
    }
}
