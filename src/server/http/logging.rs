//! One log line per request, without document text, prompts, file names or paths.

use std::cell::Cell;
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{HeaderMap, HeaderName, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::{Error, HttpMessage, HttpRequest};
use tracing::{Instrument, Span};

use super::http_metrics::HttpMetrics;
use super::trace_parent::{TRACE_PARENT, TraceParent};
use crate::console::RateLimit;
use crate::server::errors::ApiError;

/// Number of body bytes read so far.
pub(super) type BodyBytes = Rc<Cell<u64>>;

/// Id of a request, in its extensions.
struct RequestId(String);

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const MAX_REQUEST_ID_LENGTH: usize = 64;
/// Of log and metrics only: the client disconnected before the response.
pub(in crate::server) const CLIENT_LEFT: u16 = 499;

/// Middleware: assigns the request id, logs the request and tells the metrics.
pub(super) async fn access_log<B: MessageBody>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<B>, Error> {
    let id = given_or_fresh_id(request.headers());
    // At the highest level, so that every event has the id regardless of the filter.
    let span = tracing::error_span!("request", request_id = %id, trace_id = tracing::field::Empty);
    let trace = TraceParent::of(request.headers());
    if let Some(trace) = &trace {
        span.record("trace_id", trace.trace_id());
    }
    let metrics = request.app_data::<Arc<dyn HttpMetrics>>().cloned();
    let body_bytes = BodyBytes::default();
    request.extensions_mut().insert(body_bytes.clone());
    request.extensions_mut().insert(RequestId(id.clone()));
    let mut line = AccessLine {
        span: span.clone(),
        method: known_method(request.method()),
        route: request.match_pattern(),
        status: CLIENT_LEFT,
        started: Instant::now(),
        body_bytes,
        metrics,
    };
    let result = next.call(request).instrument(span).await;
    match result {
        Ok(mut response) => {
            line.status = response.status().as_u16();
            line.route = response.request().match_pattern();
            line.report(response.response().error());
            if let Ok(id) = HeaderValue::from_str(&id) {
                response.headers_mut().insert(REQUEST_ID, id);
            }
            if let Some(trace) = trace {
                response.headers_mut().insert(TRACE_PARENT, trace.into_header());
            }
            Ok(response)
        }
        Err(error) => {
            line.status = error.as_response_error().status_code().as_u16();
            line.report(Some(&error));
            Err(error)
        }
    }
}

/// Logs on drop: after the response, or when the connection ends before it.
struct AccessLine {
    span: Span,
    method: &'static str,
    route: Option<String>,
    status: u16,
    started: Instant,
    body_bytes: BodyBytes,
    metrics: Option<Arc<dyn HttpMetrics>>,
}

impl AccessLine {
    fn report(&self, error: Option<&Error>) {
        let error = error.and_then(|error| error.as_error::<ApiError>());
        if let (Some(metrics), Some(error)) = (&self.metrics, error) {
            metrics.rejected(error);
        }
    }
}

impl Drop for AccessLine {
    fn drop(&mut self) {
        tracing::info!(
            parent: &self.span,
            method = self.method,
            route = self.route.as_deref().unwrap_or("-"),
            status = self.status,
            milliseconds = self.started.elapsed().as_micros() as f64 / 1e3,
            body_bytes = self.body_bytes.get(),
            "request",
        );
        if let Some(metrics) = &self.metrics {
            metrics.answered(self.route.as_deref(), self.status);
        }
    }
}

/// Logs that the HTTP parser rejected a request, which has no access log line.
pub(super) fn warn_of_rejected_request(status: StatusCode) {
    static LIMIT: RateLimit = RateLimit::new();
    if let Some(requests) = LIMIT.due() {
        tracing::warn!(
            status = status.as_u16(),
            requests,
            "malformed requests were refused"
        );
    }
}

/// Logs that connections exceeded their limits.
pub(super) fn warn_of_excess_connections() {
    static LIMIT: RateLimit = RateLimit::new();
    if let Some(requests) = LIMIT.due() {
        tracing::warn!(
            requests,
            "too many connections: requests other than /health were refused"
        );
    }
}

/// The id of `request` in log and response.
pub(in crate::server) fn request_id(request: &HttpRequest) -> Option<String> {
    request
        .extensions()
        .get::<RequestId>()
        .map(|RequestId(id)| id.clone())
}

/// The client's request id if it is safe, otherwise a new one.
fn given_or_fresh_id(headers: &HeaderMap) -> String {
    let given = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok());
    let harmless = |id: &&str| {
        (1..=MAX_REQUEST_ID_LENGTH).contains(&id.len())
            && id
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
    };
    given
        .filter(harmless)
        .map_or_else(fresh_request_id, str::to_owned)
}

fn fresh_request_id() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    // A new `RandomState` is seeded by the operating system.
    let id = RandomState::new().hash_one(COUNT.fetch_add(1, Ordering::Relaxed));
    format!("{id:016x}")
}

/// Methods are client-controlled text; only standard ones are logged.
fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

/// Disables core dumps, which would contain documents.
pub fn forbid_core_dumps() {
    let none = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `none` is a valid rlimit for the length of the call, which changes nothing but this process's limit.
    if unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) } != 0 {
        tracing::warn!("core dumps could not be switched off");
    }
}
