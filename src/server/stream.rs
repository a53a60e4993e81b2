//! A request on its way through the queue: answered whole, or as events while the answer is generated.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use tokio::sync::{Notify, OwnedSemaphorePermit, watch};
use tracing::{Instrument, Span};

use super::errors::ApiError;
use super::sse::EventSource;
use super::upload::UploadMemory;
use crate::engine::{Answer, EngineError, GeneratedToken, QueueSlot, ReadRequest, Step, Ticket};

/// A request whose pictures are decoded, not yet in the queue.
pub(super) struct Prepared {
    pub slot: QueueSlot,
    pub request: ReadRequest,
    /// About its pictures.
    pub warnings: Vec<String>,
    /// Accounts for its pictures and its texts.
    pub memory: (Option<OwnedSemaphorePermit>, UploadMemory),
}

/// An answer, and the warnings about the pictures of its request.
pub(super) struct Answered {
    pub answer: Answer,
    pub warnings: Vec<String>,
}

impl Prepared {
    /// Submits it, and waits for the whole answer.
    pub(super) async fn answer(self) -> Result<Answered, ApiError> {
        let Self {
            slot,
            request,
            warnings,
            memory: _memory,
        } = self;
        let answer = slot.submit(request)?.answer().await?;
        Ok(Answered { answer, warnings })
    }
}

/// What happens to a request, in this order: `Queued` once its pictures are decoded and whenever the number changes, `Delta`s, one
/// `Answer`.
pub(super) enum Event {
    /// Its place in the queue.
    Queued {
        /// Number of requests that run or wait before it; 0: it is its turn.
        before: usize,
    },
    /// New text.
    Delta(Delta),
    /// The whole answer. Its text is final: it can be shorter than the deltas where a repetition was cut.
    Answer(Result<Box<Answered>, ApiError>),
}

/// Text since the last delta, which ends with a whole character, and the tokens that begin in it.
#[derive(Default)]
pub(super) struct Delta {
    pub text: String,
    /// Empty unless the request asks for log-probabilities.
    pub tokens: Vec<GeneratedToken>,
}

/// The events of a request. Dropping them cancels it.
pub(super) enum Events {
    /// Its pictures are being decoded, or wait for the memory of others.
    Preparing(LocalBoxFuture<'static, Result<Submitted, ApiError>>),
    Submitted(Box<Submitted>),
    Ended,
}

impl Events {
    /// Waits until the request that `prepare` makes is in the queue, at most until `until`: from then on it is prepared as the events
    /// are asked for. The request is cancelled when more than `limit` bytes wait for the client.
    ///
    /// # Errors
    /// Of the preparation, if it ends in time; later ones are an event.
    pub(super) async fn begin(
        prepare: impl Future<Output = Result<Prepared, ApiError>> + 'static,
        until: Instant,
        limit: usize,
    ) -> Result<Self, ApiError> {
        let submit = async move { Ok(Submitted::new(prepare.await?, limit)?) };
        // Polled by the response's body, too, which is outside of the request's span.
        let mut submit = submit.in_current_span().boxed_local();
        match tokio::time::timeout_at(until.into(), &mut submit).await {
            Ok(submitted) => Ok(Self::Submitted(Box::new(submitted?))),
            Err(_) => Ok(Self::Preparing(submit)),
        }
    }

    /// Waits for the first event that is not about the queue, at most until `until`. It is still returned by [`Self::next`].
    ///
    /// # Errors
    /// The answer, if it is an error and comes first.
    pub(super) async fn first(&mut self, until: Instant) -> Result<(), ApiError> {
        match self {
            Self::Submitted(submitted) => submitted.first(until).await,
            Self::Preparing(_) | Self::Ended => Ok(()),
        }
    }
}

impl EventSource for Events {
    type Event = Event;

    async fn next(&mut self) -> Option<Event> {
        if let Self::Preparing(submit) = self {
            match submit.await {
                Ok(submitted) => *self = Self::Submitted(Box::new(submitted)),
                Err(error) => {
                    *self = Self::Ended;
                    return Some(Event::Answer(Err(error)));
                }
            }
        }
        match self {
            Self::Submitted(submitted) => submitted.next().await,
            Self::Preparing(_) | Self::Ended => None,
        }
    }
}

/// A request in the queue, or running. Dropping it cancels it.
pub(super) struct Submitted {
    ticket: Ticket,
    waiting: Arc<Waiting>,
    turns: watch::Receiver<()>,
    /// As last reported.
    before: Option<usize>,
    answer: Option<Result<Box<Answered>, ApiError>>,
    ended: bool,
    /// Taken by [`Self::first`], and not yet returned.
    first: Option<Event>,
    /// Ended without having had its turn.
    rejected: bool,
    warnings: Vec<String>,
    memory: (Option<OwnedSemaphorePermit>, UploadMemory),
    /// Of the request, so that errors are logged with its id.
    span: Span,
}

impl Submitted {
    /// Its slot, once it is answered, if it was to be kept.
    pub(super) fn take_slot(&mut self) -> Option<QueueSlot> {
        self.ticket.take_slot()
    }

    pub(super) fn new(prepared: Prepared, limit: usize) -> Result<Self, EngineError> {
        let waiting = Arc::new(Waiting::new(limit));
        let on_step = Box::new({
            let waiting = Arc::clone(&waiting);
            move |step: Step<'_>| waiting.push(step)
        });
        let ticket = prepared.slot.submit_with(prepared.request, on_step)?;
        Ok(Self {
            turns: ticket.turns(),
            ticket,
            waiting,
            before: None,
            answer: None,
            ended: false,
            first: None,
            rejected: false,
            warnings: prepared.warnings,
            memory: prepared.memory,
            span: Span::current(),
        })
    }

    async fn first(&mut self, until: Instant) -> Result<(), ApiError> {
        let waiting = async {
            loop {
                match self.next().await {
                    Some(Event::Queued { .. }) => {}
                    event => return event,
                }
            }
        };
        match tokio::time::timeout_at(until.into(), waiting).await {
            Ok(Some(Event::Answer(Err(error)))) => return Err(error),
            Ok(event) => self.first = event,
            // Reported again.
            Err(_) => self.before = None,
        }
        Ok(())
    }

    /// The next event; `None` after the answer. Dropping the future loses none.
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
            self.memory = Default::default();
            let warnings = std::mem::take(&mut self.warnings);
            let answer = match self.waiting.overflow() {
                Some(limit_kib) => Err(ApiError::SlowReader { limit_kib }),
                None => self.span.in_scope(|| answer.map_err(ApiError::from)),
            };
            self.answer = Some(answer.map(|answer| Box::new(Answered { answer, warnings })));
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
