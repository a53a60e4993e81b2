//! Reads the pages of a document one after the other: while the model reads one, the next is decoded.

use std::collections::VecDeque;
use std::time::Instant;

use actix_web::web::Data;
use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use tokio::sync::OwnedSemaphorePermit;

use super::decoding::decode_document_page;
use super::errors::ApiError;
use super::sse::EventSource;
use super::state::ServerState;
use super::stream::{Answered, Delta, Event, Prepared, Submitted};
use super::types::{PageResult, PageStatus};
use super::upload::UploadMemory;
use crate::documents::{Document, DocumentPage};
use crate::engine::{QueueSlot, ReadRequest};
use crate::generation::FinishReason;
use crate::processing::{PixelBounds, RgbPage};
use crate::records::seconds;

/// What happens to a document. For each page `PageStart`, `Queued` and `Delta`s if it can be decoded, and `PageDone`; at last one `Answer`.
pub(super) enum DocumentEvent {
    PageStart {
        /// Its number in the document, from 1.
        page: u32,
    },
    /// As [`Event::Queued`].
    Queued {
        before: usize,
    },
    Delta(Delta),
    /// The page that was begun last.
    PageDone(Box<PageResult>),
    /// All pages, in the order asked for.
    Answer(Vec<PageOutcome>),
}

/// What became of a page.
pub(super) struct PageOutcome {
    /// Its number in the document, from 1.
    pub page: u32,
    pub result: Result<Box<Answered>, ApiError>,
    /// From the start of its decoding to its answer.
    pub seconds: f64,
}

impl PageOutcome {
    /// A reading that met the deadline of generation is an error.
    pub(super) fn new(
        page: u32,
        result: Result<Box<Answered>, ApiError>,
        seconds: f64,
        deadline_seconds: u64,
    ) -> Self {
        let result = result.and_then(|answered| match answered.answer.reading.finish_reason {
            FinishReason::Deadline => Err(ApiError::GenerationDeadline {
                seconds: deadline_seconds,
            }),
            _ => Ok(answered),
        });
        Self {
            page,
            result,
            seconds,
        }
    }

    /// Its entry in the answer.
    pub(super) fn summary(&self) -> PageResult {
        let read = self.result.as_ref().ok().map(|answered| &answered.answer.reading);
        let image = read.and_then(|reading| reading.images.first());
        let finish_reason = read.map(|reading| reading.finish_reason);
        PageResult {
            page: self.page,
            status: match finish_reason {
                None => PageStatus::Failed,
                Some(FinishReason::Length) => PageStatus::Truncated,
                Some(FinishReason::Repetition) => PageStatus::Repetition,
                Some(_) => PageStatus::Ok,
            },
            text: read.map(|reading| reading.text.clone()).unwrap_or_default(),
            error: self.result.as_ref().err().map(ToString::to_string),
            width: image.map(|image| image.width),
            height: image.map(|image| image.height),
            resized_width: image.map(|image| image.resized_width),
            resized_height: image.map(|image| image.resized_height),
            image_tokens: image.map(|image| image.tokens),
            seconds: seconds(self.seconds),
            finish_reason,
        }
    }
}

/// What is asked about each page.
pub(super) struct PageQuestion {
    /// Makes the request about a page.
    pub request: Box<dyn Fn(RgbPage) -> ReadRequest>,
    /// Bounds of the size that pages are decoded to.
    pub bounds: Option<PixelBounds>,
    /// Maximum bytes of text that wait for the client.
    pub text_limit: usize,
}

type Decoded = Result<(DocumentPage, OwnedSemaphorePermit), ApiError>;

enum Ahead {
    Decoding(LocalBoxFuture<'static, Decoded>),
    Decoded(Box<Decoded>),
}

enum Step {
    /// Before a page, or after the last one.
    Between,
    Decoding,
    Reading(Box<Submitted>),
    Ended,
}

/// The reading of a document. Dropping it cancels it.
pub(super) struct DocumentReading {
    state: Data<ServerState>,
    document: Document,
    question: PageQuestion,
    /// Pages that are not begun.
    numbers: VecDeque<u32>,
    slot: Option<QueueSlot>,
    /// The page after the one that is read, or the one that is about to be.
    ahead: Option<Ahead>,
    step: Step,
    begun: Instant,
    current: u32,
    /// In the order of the pages asked for.
    outcomes: Vec<PageOutcome>,
}

impl DocumentReading {
    pub(super) fn new(
        state: Data<ServerState>,
        mut slot: QueueSlot,
        document: Document,
        numbers: Vec<u32>,
        question: PageQuestion,
    ) -> Self {
        slot.keep();
        Self {
            state,
            document,
            question,
            numbers: numbers.into(),
            slot: Some(slot),
            ahead: None,
            step: Step::Between,
            begun: Instant::now(),
            current: 0,
            outcomes: Vec::new(),
        }
    }

    /// Reads all pages.
    pub(super) async fn outcomes(mut self) -> Vec<PageOutcome> {
        loop {
            match self.next().await {
                Some(DocumentEvent::Answer(outcomes)) => return outcomes,
                Some(_) => {}
                None => return Vec::new(),
            }
        }
    }

    /// Begins to decode the page after the current one.
    fn look_ahead(&mut self) {
        let Some(&number) = self.numbers.front() else {
            return;
        };
        let (state, document, bounds) = (self.state.clone(), self.document.clone(), self.question.bounds);
        let decode = async move { decode_document_page(&state, &document, number, bounds, 0).await };
        self.ahead = Some(Ahead::Decoding(decode.boxed_local()));
    }

    /// The decoded page, once it is there.
    async fn decoded(&mut self) -> Decoded {
        match &mut self.ahead {
            Some(Ahead::Decoding(decoding)) => {
                let decoded = decoding.await;
                self.ahead = None;
                decoded
            }
            _ => match self.ahead.take() {
                Some(Ahead::Decoded(decoded)) => *decoded,
                _ => Err(ApiError::Internal),
            },
        }
    }

    fn submit(
        &mut self,
        (page, memory): (DocumentPage, OwnedSemaphorePermit),
    ) -> Result<Submitted, ApiError> {
        let slot = self.slot.take().ok_or(ApiError::Internal)?;
        let prepared = Prepared {
            slot,
            request: (self.question.request)(page.page),
            warnings: page.warnings.iter().map(ToString::to_string).collect(),
            memory: (Some(memory), UploadMemory::default()),
        };
        Ok(Submitted::new(prepared, self.question.text_limit)?)
    }

    fn done(&mut self, result: Result<Box<Answered>, ApiError>) -> DocumentEvent {
        let seconds = self.begun.elapsed().as_secs_f64();
        let deadline_seconds = self.state.options.generation_deadline_seconds;
        let outcome = PageOutcome::new(self.current, result, seconds, deadline_seconds);
        let summary = outcome.summary();
        self.outcomes.push(outcome);
        self.step = Step::Between;
        if self.slot.is_none() {
            // Without a place in the queue the rest cannot be read, for the same reason.
            self.numbers.clear();
            self.ahead = None;
        }
        DocumentEvent::PageDone(Box::new(summary))
    }
}

impl EventSource for DocumentReading {
    type Event = DocumentEvent;

    async fn next(&mut self) -> Option<DocumentEvent> {
        loop {
            match &mut self.step {
                Step::Between => {
                    let Some(&number) = self.numbers.front() else {
                        self.step = Step::Ended;
                        return Some(DocumentEvent::Answer(std::mem::take(&mut self.outcomes)));
                    };
                    if self.ahead.is_none() {
                        self.look_ahead();
                    }
                    self.numbers.pop_front();
                    (self.begun, self.current) = (Instant::now(), number);
                    self.step = Step::Decoding;
                    return Some(DocumentEvent::PageStart { page: number });
                }
                Step::Decoding => {
                    let decoded = self.decoded().await;
                    self.look_ahead();
                    match decoded.and_then(|page| self.submit(page)) {
                        Ok(submitted) => self.step = Step::Reading(Box::new(submitted)),
                        Err(error) => return Some(self.done(Err(error))),
                    }
                }
                Step::Reading(submitted) => {
                    let event = match &mut self.ahead {
                        Some(Ahead::Decoding(decoding)) => tokio::select! {
                            event = submitted.next() => event,
                            decoded = decoding => {
                                self.ahead = Some(Ahead::Decoded(Box::new(decoded)));
                                continue;
                            }
                        },
                        _ => submitted.next().await,
                    };
                    match event {
                        Some(Event::Queued { before }) => return Some(DocumentEvent::Queued { before }),
                        Some(Event::Delta(delta)) => return Some(DocumentEvent::Delta(delta)),
                        Some(Event::Answer(answer)) => {
                            self.slot = submitted.take_slot();
                            if let Some(slot) = &mut self.slot {
                                slot.keep();
                            }
                            return Some(self.done(answer));
                        }
                        None => return Some(self.done(Err(ApiError::Internal))),
                    }
                }
                Step::Ended => return None,
            }
        }
    }
}
