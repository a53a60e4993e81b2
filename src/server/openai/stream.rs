//! Streamed answers.

use std::sync::Arc;
use std::time::Instant;

use actix_web::HttpResponse;
use serde::Serialize;

use super::answer::{AnswerHead, ChatChunk, ChunkDelta};
use super::request::StreamOptions;
use crate::server::errors::ApiError;
use crate::server::metrics::Metrics;
use crate::server::sse::{self, frame};
use crate::server::state::ServerState;
use crate::server::stream::{Answered, Event, Events, Prepared};

/// Streams the answer to the request that `prepare` makes.
///
/// An error that comes before the first token, and before the first comment is due, is an ordinary one, with its status.
pub(super) async fn respond(
    state: &ServerState,
    prepare: impl Future<Output = Result<Prepared, ApiError>> + 'static,
    head: AnswerHead,
    options: StreamOptions,
) -> Result<HttpResponse, ApiError> {
    let quiet = state.options.stream_keep_alive();
    let comment_due = Instant::now() + quiet;
    let mut events = Events::begin(prepare, comment_due, state.options.stream_buffer_bytes()).await?;
    events.first(comment_due).await?;
    let mut chunks = Chunks {
        head,
        options,
        begun: false,
        metrics: Arc::clone(&state.metrics),
    };
    Ok(sse::response(events, quiet, comment_due, move |event| {
        chunks.framed(event)
    }))
}

/// Frames the chunks of one answer.
struct Chunks {
    head: AnswerHead,
    options: StreamOptions,
    /// Whether the role was sent.
    begun: bool,
    metrics: Arc<Metrics>,
}

impl Chunks {
    fn framed(&mut self, event: Event) -> String {
        let mut text = String::new();
        if !self.begun && !matches!(event, Event::Answer(Err(_))) {
            self.begun = true;
            let role = ChunkDelta {
                role: Some("assistant".to_owned()),
                content: Some(String::new()),
            };
            self.push(&mut text, self.head.chunk(role, &[]));
        }
        match event {
            // OpenAI's form has no place for it.
            Event::Queued { .. } => {}
            Event::Delta(delta) => {
                let content = ChunkDelta {
                    role: None,
                    content: Some(delta.text),
                };
                self.push(&mut text, self.head.chunk(content, &delta.tokens));
            }
            Event::Answer(Ok(answer)) => self.push_end(&mut text, &answer),
            // Without `[DONE]`, so that no client takes the answer for whole.
            Event::Answer(Err(error)) => {
                self.metrics.rejected(&error);
                text.push_str(&data(&error.openai().1));
            }
        }
        text
    }

    fn push(&self, text: &mut String, mut chunk: ChatChunk) {
        if self.options.include_usage {
            chunk.usage.get_or_insert(None);
        }
        text.push_str(&data(&chunk));
    }

    fn push_end(&self, text: &mut String, answer: &Answered) {
        self.push(text, self.head.last_chunk(answer));
        if self.options.include_usage {
            self.push(text, self.head.usage_chunk(answer));
        }
        text.push_str(&frame(None, "[DONE]"));
    }
}

fn data(data: &impl Serialize) -> String {
    // The API's types always serialize.
    frame(None, &serde_json::to_string(data).unwrap_or_default())
}
