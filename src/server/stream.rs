//! The events of a request that is answered while it is generated.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, watch};
use tracing::Span;

use super::errors::ApiError;
use crate::engine::{Answer, EngineError, GeneratedToken, QueueSlot, ReadRequest, Step, Ticket};

/// What happens to a request, in this order: `Queued` at once and whenever the number changes, `Delta`s, one `Answer`.
pub(super) enum Event {
    /// Its place in the queue.
    Queued {
        /// Number of requests that run or wait before it; 0: it is its turn.
        before: usize,
    },
    /// New text.
    Delta(Delta),
    /// The whole answer. Its text is final: it can be shorter than the deltas where a repetition was cut.
    Answer(Result<Answer, ApiError>),
}

/// Text since the last delta, which ends with a whole character, and the tokens that begin in it.
#[derive(Default)]
pub(super) struct Delta {
    pub text: String,
    /// Empty unless the request asks for log-probabilities.
    pub tokens: Vec<GeneratedToken>,
}

/// The events of a submitted request. Dropping them cancels it.
pub(super) struct Events {
    ticket: Ticket,
    waiting: Arc<Waiting>,
    turns: watch::Receiver<()>,
    /// As last reported.
    before: Option<usize>,
    answer: Option<Result<Answer, ApiError>>,
    ended: bool,
    /// Taken by [`Self::first`], and not yet returned.
    first: Option<Event>,
    /// Ended without having had its turn.
    rejected: bool,
    /// Memory of the pictures.
    memory: Option<OwnedSemaphorePermit>,
    /// Of the request, so that errors are logged with its id.
    span: Span,
}

impl Events {
    /// Submits `request`, whose pictures are accounted for by `memory`. The request is cancelled when more than `limit` bytes wait
    /// for the client.
    pub(super) fn submit(
        slot: QueueSlot,
        request: ReadRequest,
        memory: Option<OwnedSemaphorePermit>,
        limit: usize,
    ) -> Result<Self, EngineError> {
        let waiting = Arc::new(Waiting::new(limit));
        let on_step = Box::new({
            let waiting = Arc::clone(&waiting);
            move |step: Step<'_>| waiting.push(step)
        });
        let ticket = slot.submit_with(request, on_step)?;
        Ok(Self {
            turns: ticket.turns(),
            ticket,
            waiting,
            before: None,
            answer: None,
            ended: false,
            first: None,
            rejected: false,
            memory,
            span: Span::current(),
        })
    }

    /// Waits for the first event that is not about the queue, at most for `patience`. It is still returned by [`Self::next`].
    ///
    /// # Errors
    /// The answer, if it is an error and comes first.
    pub(super) async fn first(&mut self, patience: Duration) -> Result<(), ApiError> {
        let waiting = async {
            loop {
                match self.next().await {
                    Some(Event::Queued { .. }) => {}
                    event => return event,
                }
            }
        };
        match tokio::time::timeout(patience, waiting).await {
            Ok(Some(Event::Answer(Err(error)))) => return Err(error),
            Ok(event) => self.first = event,
            // Reported again.
            Err(_) => self.before = None,
        }
        Ok(())
    }

    /// The next event; `None` after the answer.
    pub(super) async fn next(&mut self) -> Option<Event> {
        if let Some(event) = self.first.take() {
            return Some(event);
        }
        loop {
            // Its turn is reported also where the answer has come by now.
            if !self.rejected && self.before != Some(0) {
                let before = self.ticket.before().unwrap_or(0);
                if self.before.replace(before) != Some(before) {
                    return Some(Event::Queued { before });
                }
            }
            if let Some(delta) = self.waiting.take() {
                return Some(Event::Delta(delta));
            }
            if self.ended {
                return self.answer.take().map(Event::Answer);
            }
            let answer = tokio::select! {
                answer = self.ticket.answer() => answer,
                () = self.waiting.changed.notified() => continue,
                _ = self.turns.changed(), if self.before != Some(0) => continue,
            };
            self.ended = true;
            self.rejected = matches!(
                answer,
                Err(EngineError::QueueDeadline { .. } | EngineError::Stopping)
            );
            self.memory = None;
            self.answer = Some(match self.waiting.overflow() {
                Some(limit_kib) => Err(ApiError::SlowReader { limit_kib }),
                None => self.span.in_scope(|| answer.map_err(ApiError::from)),
            });
        }
    }
}

/// Text that waits for the client, between the engine's thread and the connection's.
struct Waiting {
    limit: usize,
    changed: Notify,
    text: Mutex<WaitingText>,
}

#[derive(Default)]
struct WaitingText {
    delta: Delta,
    bytes: usize,
    /// Whether it was more than the limit.
    overflowed: bool,
}

impl Waiting {
    fn new(limit: usize) -> Self {
        Self {
            limit,
            changed: Notify::new(),
            text: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, WaitingText> {
        // No critical section panics halfway through an update.
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a step's text; `Break` when too much waits.
    fn push(&self, step: Step<'_>) -> ControlFlow<()> {
        if step.text.is_empty() && step.tokens.is_empty() {
            return ControlFlow::Continue(());
        }
        {
            let mut waiting = self.lock();
            if waiting.overflowed {
                return ControlFlow::Break(());
            }
            waiting.bytes += step.text.len() + step.tokens.iter().map(bytes_of).sum::<usize>();
            if waiting.bytes > self.limit {
                waiting.overflowed = true;
                return ControlFlow::Break(());
            }
            waiting.delta.text.push_str(step.text);
            waiting.delta.tokens.extend_from_slice(step.tokens);
        }
        self.changed.notify_one();
        ControlFlow::Continue(())
    }

    fn take(&self) -> Option<Delta> {
        let mut waiting = self.lock();
        let delta = std::mem::take(&mut waiting.delta);
        waiting.bytes = 0;
        (!delta.text.is_empty() || !delta.tokens.is_empty()).then_some(delta)
    }

    /// The limit in KiB, if more than that waited.
    fn overflow(&self) -> Option<usize> {
        self.lock().overflowed.then_some(self.limit / 1024)
    }
}

/// Memory of a token, bytes.
fn bytes_of(token: &GeneratedToken) -> usize {
    let tokens = std::iter::once(&token.token).chain(&token.top);
    tokens.map(|token| size_of_val(token) + token.bytes.len()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(text: &str) -> Step<'_> {
        Step { text, ..Step::NONE }
    }

    #[test]
    fn deltas_that_wait_are_joined() {
        let waiting = Waiting::new(10);
        assert!(waiting.take().is_none());
        assert!(waiting.push(step("Hgb ")).is_continue());
        assert!(waiting.push(Step::NONE).is_continue());
        assert!(waiting.push(step("9")).is_continue());
        assert_eq!(waiting.take().map(|delta| delta.text).as_deref(), Some("Hgb 9"));
        assert!(waiting.take().is_none());
    }

    #[test]
    fn more_than_the_limit_cancels() {
        let waiting = Waiting::new(2048);
        let half = "x".repeat(1024);
        assert!(waiting.push(step(&half)).is_continue());
        assert!(waiting.push(step(&half)).is_continue());
        assert_eq!(waiting.overflow(), None);
        assert!(waiting.push(step("x")).is_break());
        assert_eq!(waiting.overflow(), Some(2));
        let waited = waiting.take().map(|delta| delta.text.len());
        assert_eq!(waited, Some(2048), "what fitted is still sent");
        // Tokens count with their alternatives.
        let token = crate::engine::TokenLogprob {
            id: 1,
            bytes: vec![b'x'; 100],
            logprob: 0.0,
        };
        let tokens = [GeneratedToken {
            top: vec![token.clone(); 20],
            token,
        }];
        let waiting = Waiting::new(2048);
        let waited = waiting.push(Step {
            text: "x",
            tokens: &tokens,
            ..Step::NONE
        });
        assert!(waited.is_break());
    }
}
