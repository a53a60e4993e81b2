//! Server-sent events: framing, and the response body.

use std::time::{Duration, Instant};

use actix_web::HttpResponse;
use actix_web::body::{BodyStream, BoxBody};
use actix_web::web::Bytes;
use futures_util::stream::unfold;

/// Where events come from. Dropping the future of [`Self::next`] loses none.
pub(super) trait EventSource {
    type Event;

    /// The next event; `None` after the last one.
    fn next(&mut self) -> impl Future<Output = Option<Self::Event>>;
}

/// A comment, which clients skip. It keeps proxies from closing a connection that is quiet.
const KEEP_ALIVE: Bytes = Bytes::from_static(b": keep-alive\n\n");
/// Bytes copied into the connection's buffer at a time.
const CHUNK_BYTES: usize = 16 * 1024;

/// One event, framed. Clients join the lines of `data` with `\n`.
pub(super) fn frame(name: Option<&str>, data: &str) -> String {
    let mut framed = String::with_capacity(data.len() + 32);
    if let Some(name) = name {
        framed.extend(["event: ", name, "\n"]);
    }
    for line in data.replace("\r\n", "\n").split(['\r', '\n']) {
        framed.extend(["data: ", line, "\n"]);
    }
    framed.push('\n');
    framed
}

/// The response that streams `events`, each as the bytes that `format` frames it with, and a comment after each `quiet` time, the
/// first at `comment_due` if nothing comes before.
pub(super) fn response<S: EventSource + 'static>(
    events: S,
    quiet: Duration,
    comment_due: Instant,
    format: impl FnMut(S::Event) -> String + 'static,
) -> HttpResponse {
    let body = Body {
        events,
        format,
        left: Bytes::new(),
    };
    let chunks = unfold((body, comment_due), move |(mut body, comment_due)| async move {
        let chunk = match tokio::time::timeout_at(comment_due.into(), body.next()).await {
            Ok(chunk) => chunk?,
            Err(_) => KEEP_ALIVE,
        };
        Some((Ok::<_, actix_web::Error>(chunk), (body, Instant::now() + quiet)))
    });
    HttpResponse::Ok()
        .content_type("text/event-stream")
        // Some proxies store a response before they pass it on.
        .insert_header(("x-accel-buffering", "no"))
        .body(BoxBody::new(BodyStream::new(Box::pin(chunks))))
}

/// The response of one event, which is framed.
pub(super) fn whole(event: String) -> HttpResponse {
    HttpResponse::Ok().content_type("text/event-stream").body(event)
}

struct Body<S, F> {
    events: S,
    format: F,
    /// The rest of an event.
    left: Bytes,
}

impl<S: EventSource, F: FnMut(S::Event) -> String> Body<S, F> {
    async fn next(&mut self) -> Option<Bytes> {
        while self.left.is_empty() {
            self.left = (self.format)(self.events.next().await?).into();
        }
        Some(self.left.split_to(self.left.len().min(CHUNK_BYTES)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Name and data of the events in `stream`, by the rules of the HTML standard.
    fn parse(stream: &str) -> Vec<(String, String)> {
        let (mut events, mut name, mut data) = (Vec::new(), String::new(), Vec::new());
        for line in stream.replace("\r\n", "\n").split(['\r', '\n']) {
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "" if line.is_empty() && !data.is_empty() => {
                    events.push((std::mem::take(&mut name), data.join("\n")));
                    data.clear();
                }
                "event" => name = value.to_owned(),
                "data" => data.push(value.to_owned()),
                _ => {}
            }
        }
        events
    }

    proptest! {
        #[test]
        fn any_text_comes_through(texts in prop::collection::vec("([\r\n: ]|data|event|\\PC){0,12}", 1..4)) {
            let framed: Vec<String> = texts.iter().map(|text| frame(Some("delta"), text)).collect();
            let stream = framed.join(": keep-alive\n\n");
            let expected: Vec<_> = texts
                .iter()
                .map(|text| ("delta".to_owned(), text.replace("\r\n", "\n").replace('\r', "\n")))
                .collect();
            prop_assert_eq!(parse(&stream), expected);
        }
    }

    #[test]
    fn an_event_is_framed() {
        assert_eq!(frame(Some("delta"), "{}"), "event: delta\ndata: {}\n\n");
        assert_eq!(frame(None, "[DONE]"), "data: [DONE]\n\n");
    }
}
