//! Bounds on request bodies: size, time, rate; no reading after the response.
//!
//! actix has timeouts for request heads and idle connections, but none for bodies, and after a handler dropped a chunked body it keeps
//! reading as long as the client sends.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::error::PayloadError;
use actix_web::http::header;
use actix_web::middleware::Next;
use actix_web::web::{Bytes, Data};
use actix_web::{Error, HttpMessage, HttpRequest};
use futures_util::Stream;
use tokio::time::{Sleep, sleep};

use super::logging::BodyBytes;
use super::options::HttpOptions;
use crate::server::errors::ApiError;

/// A bounded request body. Clones share one stream.
#[derive(Clone)]
pub(in crate::server) struct GuardedBody(Rc<RefCell<Inner>>);

struct Inner {
    payload: Payload,
    announced: u64,
    left: u64,
    read: BodyBytes,
    deadline: Pin<Box<Sleep>>,
    /// Deadline for more bytes, and minimum rate in bytes/s.
    rate: Option<(Pin<Box<Sleep>>, u64)>,
    end: End,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    Complete,
    Broken,
    TooLarge,
    Late,
    Slow,
}

/// Grace period before the minimum rate applies.
const GRACE: Duration = Duration::from_secs(5);

impl GuardedBody {
    fn new(payload: Payload, announced: u64, options: &HttpOptions, read: BodyBytes) -> Self {
        let deadline = Duration::from_secs(options.body_deadline_seconds);
        let rate = (options.min_body_rate > 0).then(|| (Box::pin(sleep(GRACE)), options.min_body_rate));
        Self(Rc::new(RefCell::new(Inner {
            payload,
            announced,
            left: options.max_body_bytes(),
            read,
            deadline: Box::pin(sleep(deadline)),
            rate,
            end: End::Open,
        })))
    }

    fn end(&self) -> End {
        self.0.borrow().end
    }

    /// Sets the maximum size, of what is not read yet.
    pub(in crate::server) fn limit(&self, bytes: u64) {
        self.0.borrow_mut().left = bytes;
    }

    /// Extends the deadlines by `waited`, the time for which the server did not read.
    pub(in crate::server) fn extend_deadlines(&self, waited: Duration) {
        let mut inner = self.0.borrow_mut();
        let deadline = inner.deadline.deadline() + waited;
        inner.deadline.as_mut().reset(deadline);
        if let Some((timer, _)) = &mut inner.rate {
            let deadline = timer.deadline() + waited;
            timer.as_mut().reset(deadline);
        }
    }
}

impl Inner {
    fn is_slow(&mut self, context: &mut Context<'_>) -> bool {
        let timer = self.rate.as_mut();
        timer.is_some_and(|(timer, _)| timer.as_mut().poll(context).is_ready())
    }

    /// Extends the deadline for more bytes by the time that `bytes` may take at the minimum rate.
    fn received(&mut self, bytes: u64) {
        if let Some((timer, rate)) = &mut self.rate {
            let deadline = timer.deadline() + Duration::from_micros(bytes * 1_000_000 / *rate);
            timer.as_mut().reset(deadline);
        }
    }
}

impl Stream for GuardedBody {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut inner = self.0.borrow_mut();
        let end = inner.end;
        let (end, item) = match end {
            End::Complete => return Poll::Ready(None),
            End::Broken => (End::Broken, Err(PayloadError::Incomplete(None))),
            End::TooLarge => (End::TooLarge, Err(PayloadError::Overflow)),
            End::Late => (End::Late, Err(PayloadError::Incomplete(None))),
            End::Slow => (End::Slow, Err(PayloadError::Incomplete(None))),
            End::Open if inner.announced > inner.left => (End::TooLarge, Err(PayloadError::Overflow)),
            End::Open if inner.deadline.as_mut().poll(context).is_ready() => {
                (End::Late, Err(PayloadError::Incomplete(None)))
            }
            End::Open if inner.is_slow(context) => (End::Slow, Err(PayloadError::Incomplete(None))),
            End::Open => match ready!(Pin::new(&mut inner.payload).poll_next(context)) {
                None => {
                    inner.end = End::Complete;
                    return Poll::Ready(None);
                }
                Some(Err(error)) => (End::Broken, Err(error)),
                Some(Ok(bytes)) => {
                    let length = bytes.len() as u64;
                    inner.read.set(inner.read.get() + length);
                    inner.announced = 0;
                    inner.received(length);
                    match inner.left.checked_sub(length) {
                        None => (End::TooLarge, Err(PayloadError::Overflow)),
                        Some(left) => {
                            inner.left = left;
                            (End::Open, Ok(bytes))
                        }
                    }
                }
            },
        };
        inner.end = end;
        Poll::Ready(Some(item))
    }
}

/// Why the body of `request` could not be read as a form: a bound, or a malformed form.
pub(in crate::server) fn body_error(request: &HttpRequest) -> ApiError {
    let body = request.extensions().get::<GuardedBody>().cloned();
    let Some(options) = request.app_data::<Data<HttpOptions>>() else {
        return ApiError::Internal;
    };
    match body.map(|body| body.end()) {
        Some(End::TooLarge) => ApiError::UploadTooLarge {
            limit_mib: options.max_upload_mib,
        },
        Some(End::Late) => ApiError::BodyDeadline {
            seconds: options.body_deadline_seconds,
        },
        Some(End::Slow) => ApiError::BodyRate {
            rate: options.min_body_rate,
        },
        _ => ApiError::Malformed,
    }
}

/// Middleware: bounds every request body.
pub(super) async fn guard_body<B: MessageBody + 'static>(
    mut request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let payload = request.take_payload();
    let Some(options) = request.app_data::<Data<HttpOptions>>().cloned() else {
        return Err(ApiError::Internal.into());
    };
    if matches!(payload, Payload::None) {
        return Ok(next.call(request).await?.map_into_boxed_body());
    }
    let announced = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok())
        .unwrap_or(0);
    let read = request.extensions().get::<BodyBytes>().cloned();
    let body = GuardedBody::new(
        payload,
        announced,
        &options,
        read.unwrap_or_else(|| Rc::new(Cell::new(0))),
    );
    request.set_payload(Payload::Stream {
        payload: Box::pin(body.clone()),
    });
    request.extensions_mut().insert(body.clone());
    let response = next.call(request).await?.map_into_boxed_body();
    if body.end() == End::Complete {
        return Ok(response);
    }
    Ok(response.map_body(|_, answer| BoxBody::new(HoldingBody { answer, _body: body })))
}

/// A response body that keeps the unread rest of the request body alive: actix then closes the connection afterwards, whereas it would
/// read a dropped chunked body to its end.
struct HoldingBody {
    answer: BoxBody,
    _body: GuardedBody,
}

impl MessageBody for HoldingBody {
    type Error = <BoxBody as MessageBody>::Error;

    fn size(&self) -> BodySize {
        self.answer.size()
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Pin::new(&mut self.answer).poll_next(context)
    }
}
