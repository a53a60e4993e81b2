//! Admission: which requests a connection may make.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use actix_http::ConnectionType;
use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::middleware::Next;
use actix_web::web::{Bytes, Data};
use actix_web::{Error, HttpMessage, HttpRequest};

use super::connection_slots::{ActiveRequest, ConnectionState};
use super::logging::warn_of_excess_connections;
use crate::server::errors::ApiError;

/// Whether the server is about to stop: clients are told to open a connection elsewhere for their next request.
#[derive(Debug, Clone, Default)]
pub(in crate::server) struct Stopping(Arc<AtomicBool>);

impl Stopping {
    pub(in crate::server) fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub(in crate::server) fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// What spare connections serve, and what needs no key; on the demo page's port below `/api`.
const HEALTH: [&str; 3] = ["/health", "/health/live", "/health/ready"];

/// Whether `path`, as sent, is one of the health routes.
pub(in crate::server) fn is_health(path: &str) -> bool {
    HEALTH.contains(&path.strip_prefix("/api").unwrap_or(path))
}

/// Arrival time of a request's first byte.
#[derive(Clone, Copy)]
struct Arrival(Instant);

/// Arrival time of the first byte of `request`.
pub(in crate::server) fn arrival(request: &HttpRequest) -> Instant {
    let arrival = request.extensions().get::<Arrival>().copied();
    arrival.map_or_else(Instant::now, |Arrival(at)| at)
}

/// Middleware: restricts spare connections to the health routes, and closes connections after their maximum lifetime, or if
/// the server is about to stop.
pub(super) async fn admit<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let Some(connection) = request.request().conn_data::<Arc<ConnectionState>>().cloned() else {
        return Ok(next.call(request).await?.map_into_boxed_body());
    };
    let stopping = request.app_data::<Data<Stopping>>().cloned();
    let (active, first_byte) = connection.begin_request();
    let arrival = Arrival(first_byte.unwrap_or_else(Instant::now));
    request.extensions_mut().insert(arrival);
    let mut response = if connection.is_spare() && !is_health(request.path()) {
        warn_of_excess_connections();
        request.error_response(ApiError::TooManyConnections)
    } else {
        next.call(request).await?.map_into_boxed_body()
    };
    if connection.is_spare() || connection.is_old() || stopping.is_some_and(|stopping| stopping.is_set()) {
        let head = response.response_mut().head_mut();
        head.set_connection_type(ConnectionType::Close);
    }
    let active = Cell::new(Some(active));
    Ok(response.map_body(|_, answer| {
        BoxBody::new(CountedBody {
            answer,
            _active: active.take(),
        })
    }))
}

/// A response body that keeps its request active until the last byte is sent.
struct CountedBody {
    answer: BoxBody,
    _active: Option<ActiveRequest>,
}

impl MessageBody for CountedBody {
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
