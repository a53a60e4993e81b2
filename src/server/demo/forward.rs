//! Forwarding to the API: allow-listed routes and headers, bodies passed on in pieces in both directions.

use std::error::Error as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use actix_web::body::{BodySize, MessageBody};
use actix_web::error::PayloadError;
use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderName, HeaderValue};
use actix_web::web::{self, Bytes, Data, ServiceConfig};
use actix_web::{Error, HttpMessage, HttpRequest, HttpResponse};
use futures_util::stream::{Stream, StreamExt, poll_fn};
use reqwest::redirect::Policy;
use reqwest::{Body, Client, Response, Url};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::api_url::ApiUrl;
use super::errors::DemoError;
use crate::console::RateLimit;
use crate::server::http::{GuardedBody, HttpOptions, TlsRefusal, body_error, readable, request_id};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// TCP keep-alive detects an API that vanished.
const PROBE_AFTER: Duration = Duration::from_secs(10);

/// Headers of a request that the API gets, besides `x-request-id`.
const REQUEST_HEADERS: [HeaderName; 5] = [
    header::CONTENT_TYPE,
    header::ACCEPT,
    header::AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("traceparent"),
];
/// Headers of the API's answer that the browser gets, besides the type.
const RESPONSE_HEADERS: [HeaderName; 3] = [
    header::RETRY_AFTER,
    header::WWW_AUTHENTICATE,
    // Tells a reverse proxy not to collect a stream.
    HeaderName::from_static("x-accel-buffering"),
];
/// The types of the API's answers. Any other one, HTML above all, is not passed on.
const CONTENT_TYPES: [&str; 2] = ["application/json", "text/event-stream"];

/// The route whose bodies are JSON, pattern of the page's server.
const CHAT: &str = "/api/v1/chat/completions";

/// The API that requests are forwarded to.
#[derive(Clone)]
pub(super) struct Api {
    client: Client,
    url: ApiUrl,
}

impl Api {
    pub(super) fn new(url: ApiUrl) -> io::Result<Self> {
        let client = Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .no_gzip()
            .no_brotli()
            .no_zstd()
            .no_deflate()
            .referer(false)
            .http1_only()
            .tls_built_in_root_certs(url.is_https())
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_keepalive(PROBE_AFTER)
            .tcp_keepalive_interval(PROBE_AFTER / 2)
            // A kept connection belongs to one worker's runtime, and may end while the next request is written to it.
            .pool_max_idle_per_host(0);
        let client = client.build().map_err(io::Error::other)?;
        Ok(Self { client, url })
    }
}

/// Adds the routes of the API that the page uses.
pub(super) fn add_routes(config: &mut ServiceConfig) {
    for path in ["/health", "/benchmark", "/v1/models", "/v1/models/{id}"] {
        config.service(readable(path, forward));
    }
    for path in ["/extract", "/analyze", "/v1/chat/completions"] {
        config.service(web::resource(path).post(forward));
    }
}

/// Forwards a request. When the browser disconnects, this or the answer's body is dropped, and with it the connection to the API,
/// which then stops reading the page.
async fn forward(
    request: HttpRequest,
    api: Data<Api>,
    options: Data<HttpOptions>,
) -> Result<HttpResponse, Error> {
    let url = route(&request, &api.url).ok_or(DemoError::NoRoute)?;
    // Both methods are standard ones.
    let method = reqwest::Method::from_bytes(request.method().as_str().as_bytes());
    let mut outgoing = api.client.request(method.map_err(|_| DemoError::NoRoute)?, url);
    for name in REQUEST_HEADERS {
        for value in request.headers().get_all(&name) {
            outgoing = outgoing.header(name.as_str(), value.as_bytes());
        }
    }
    if let Some(id) = request_id(&request) {
        outgoing = outgoing.header("x-request-id", id);
    }
    let body = request.extensions().get::<GuardedBody>().cloned();
    let Some(body) = body.filter(|_| !request.method().is_safe()) else {
        let answer = outgoing.send().await.map_err(|error| unreachable(&api, error))?;
        return Ok(passed_on(&api, answer, None)?);
    };
    if request.match_pattern().is_some_and(|pattern| pattern == CHAT) {
        body.limit(options.max_json_bytes());
    }
    if let Some(length) = request.headers().get(header::CONTENT_LENGTH) {
        outgoing = outgoing.header("content-length", length.as_bytes());
    }
    let (chunks, outgoing_body) = outgoing_body();
    let mut upload: Upload = Box::pin(upload(body, chunks));
    let mut sending = std::pin::pin!(outgoing.body(outgoing_body).send());
    let (answer, rest) = tokio::select! {
        biased;
        uploaded = &mut upload => {
            uploaded.map_err(|_| body_error(&request))?;
            (sending.await, None)
        }
        // An answer before the end of the body, an error: the rest of the body is of no use.
        answer = &mut sending => (answer, Some(upload)),
    };
    let answer = answer.map_err(|error| unreachable(&api, error))?;
    Ok(passed_on(&api, answer, rest)?)
}

/// The API's address of a request's route: made from the pattern that it matches, not from its path.
fn route(request: &HttpRequest, api: &ApiUrl) -> Option<Url> {
    let pattern = request.match_pattern()?;
    let segments = pattern.strip_prefix("/api/")?.split('/');
    let id = request.match_info().get("id").unwrap_or_default();
    api.route(segments.map(|segment| if segment == "{id}" { id } else { segment }))
}

type Upload = Pin<Box<dyn Future<Output = Result<(), PayloadError>>>>;

/// Passes the body on as it arrives; an error is the browser's.
async fn upload(mut body: GuardedBody, chunks: Sender<Option<Bytes>>) -> Result<(), PayloadError> {
    while let Some(chunk) = body.next().await {
        match chunks.try_send(Some(chunk?)) {
            Ok(()) => {}
            // The API reads no further: its answer, or its absence, says why.
            Err(TrySendError::Closed(_)) => return Ok(()),
            Err(TrySendError::Full(chunk)) => {
                let start = Instant::now();
                if chunks.send(chunk).await.is_err() {
                    return Ok(());
                }
                // The API's time, not the browser's.
                body.extend_deadlines(start.elapsed());
            }
        }
    }
    let _ = chunks.send(None).await;
    Ok(())
}

/// A body of the chunks that are sent to it. `None` ends it; without one, the body is broken and the API must not take it for whole.
fn outgoing_body() -> (Sender<Option<Bytes>>, Body) {
    let (sender, mut receiver): (_, Receiver<Option<Bytes>>) = channel(1);
    let chunks = poll_fn(move |context| {
        receiver.poll_recv(context).map(|received| match received {
            Some(chunk) => chunk.map(Ok),
            None => Some(Err(io::Error::from(io::ErrorKind::UnexpectedEof))),
        })
    });
    (sender, Body::wrap_stream(chunks))
}

/// The API's answer without what a browser could misread.
fn passed_on(api: &Api, answer: Response, rest: Option<Upload>) -> Result<HttpResponse, DemoError> {
    let kind = answer.headers().get(reqwest::header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).and_then(essence);
    let status = StatusCode::from_u16(answer.status().as_u16()).ok();
    let is_encoded = answer.headers().contains_key(reqwest::header::CONTENT_ENCODING);
    let status = status.filter(|status| !status.is_redirection() && !is_encoded);
    let (Some(kind), Some(status)) = (kind, status) else {
        warn(api, "the answer is neither JSON nor an event stream");
        return Err(DemoError::NotTheApi);
    };
    let mut response = HttpResponse::build(status);
    response.content_type(kind);
    for name in RESPONSE_HEADERS {
        for value in answer.headers().get_all(name.as_str()) {
            if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
                response.append_header((name.clone(), value));
            }
        }
    }
    let length = answer.headers().get(reqwest::header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
    Ok(response.body(AnswerBody {
        length,
        chunks: Box::pin(answer.bytes_stream()),
        _rest: rest,
    }))
}

/// The allowed content type that `text` is.
fn essence(text: &str) -> Option<&'static str> {
    let essence = text.split(';').next()?.trim();
    CONTENT_TYPES
        .into_iter()
        .find(|kind| essence.eq_ignore_ascii_case(kind))
}

/// The body of the API's answer.
struct AnswerBody {
    length: Option<u64>,
    chunks: Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>>>>,
    /// Dropped with the answer: if it ended before, the client would break off the connection, and with it the answer.
    _rest: Option<Upload>,
}

impl MessageBody for AnswerBody {
    type Error = AnswerEnded;

    fn size(&self) -> BodySize {
        self.length.map_or(BodySize::Stream, BodySize::Sized)
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let next = self.chunks.as_mut().poll_next(context);
        next.map(|chunk| chunk.map(|chunk| chunk.map_err(|_| AnswerEnded)))
    }
}

/// The browser's connection is closed after it, so that the page sees a broken answer.
#[derive(Debug, thiserror::Error)]
#[error("the API's answer ended early")]
struct AnswerEnded;

fn unreachable(api: &Api, error: reqwest::Error) -> DemoError {
    // Its text names the path, which the browser wrote.
    let error = error.without_url();
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        reason = cause.to_string();
        source = cause.source();
    }
    if let Some(refusal) = TlsRefusal::of(&error) {
        reason = refusal.to_string();
    }
    warn(api, &reason);
    DemoError::Unreachable
}

fn warn(api: &Api, reason: &str) {
    static LIMIT: RateLimit = RateLimit::new();
    if let Some(requests) = LIMIT.due() {
        tracing::warn!(api = %api.url, reason, requests, "the API does not answer");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_built_for_both_schemes() {
        for url in ["http://127.0.0.1:8000", "https://api.example.org"] {
            assert!(Api::new(url.parse().expect("an address")).is_ok(), "{url}");
        }
    }

    #[test]
    fn content_types_are_compared_without_parameters() {
        let allowed = Some("application/json");
        assert_eq!(essence("application/json"), allowed);
        assert_eq!(essence("Application/JSON ; charset=utf-8"), allowed);
        assert_eq!(essence("text/event-stream"), Some("text/event-stream"));
        for other in [
            "",
            "text/html",
            "application/jsonp",
            "text/html, application/json",
            "application/json,text/html",
        ] {
            assert_eq!(essence(other), None, "{other}");
        }
    }
}
