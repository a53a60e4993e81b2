//! An answer as it grows: end tokens, stop strings, the guard against endless repetition, streaming.

use std::ops::ControlFlow;

use crate::Result;
use crate::generation::{FinishReason, GenerationOptions, RepetitionGuard, StopStrings};
use crate::processing::{TextProcessor, TokenStream};

/// What came out so far.
pub(super) struct Answer<'a> {
    /// The text shown.
    pub(super) text: String,
    /// The answer's tokens, end token and cut-off repeats left out.
    pub(super) tokens: Vec<i64>,
    /// Tokens generated, the end token and repeats among them.
    pub(super) generated: usize,
    options: &'a GenerationOptions,
    processor: &'a TextProcessor,
    stream: TokenStream<'a>,
    stop: StopStrings,
    guard: Option<RepetitionGuard>,
    on_text: &'a mut dyn FnMut(&str) -> ControlFlow<()>,
    cancelled: bool,
}

impl<'a> Answer<'a> {
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

    /// Takes the next token; `Some` ends the answer.
    pub(super) fn push(&mut self, token: i64) -> Result<Option<FinishReason>> {
        self.generated += 1;
        if self.options.stop_token_ids.contains(&token) {
            return Ok(Some(FinishReason::Stop));
        }
        self.tokens.push(token);
        let piece = self.stream.push(token)?;
        let released = self.stop.push(&piece);
        self.show(&released.text);
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

    /// Shows what was held back, where the answer was not cut on purpose.
    pub(super) fn finish(&mut self, reason: FinishReason) -> Result<()> {
        if matches!(reason, FinishReason::Repetition | FinishReason::Cancelled) {
            return Ok(());
        }
        let tail = self.stream.finish()?;
        let released = self.stop.push(&tail);
        self.show(&released.text);
        if !released.stopped {
            let held = self.stop.finish();
            self.show(&held);
        }
        Ok(())
    }

    /// Every token asks the caller whether to go on, text or none.
    fn show(&mut self, text: &str) {
        self.text.push_str(text);
        self.cancelled |= (self.on_text)(text).is_break();
    }
}
