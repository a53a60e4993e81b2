//! What a connection's place allows its requests.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use actix_http::ConnectionType;
use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::middleware::Next;
use actix_web::web::Bytes;
use actix_web::{Error, HttpMessage, HttpRequest, ResponseError};

use super::errors::ApiError;
use super::logging::warn_of_connections;
use super::places::{Asking, Line};

/// When a request's first byte came.
#[derive(Clone, Copy)]
struct Began(Instant);

/// When the first byte of `request` came.
pub(super) fn began(request: &HttpRequest) -> Instant {
    let began = request.extensions().get::<Began>().copied();
    began.map_or_else(Instant::now, |Began(at)| at)
}

/// Middleware: keeps spare places for `/health`, and ends connections that have lived long enough.
pub(super) async fn admit<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let Some(line) = request.request().conn_data::<Arc<Line>>().cloned() else {
        return Ok(next.call(request).await?.map_into_boxed_body());
    };
    let (asking, first_byte) = line.begin_request();
    let began = Began(first_byte.unwrap_or_else(Instant::now));
    request.extensions_mut().insert(began);
    let mut response = if line.is_spare() && request.path() != "/health" {
        warn_of_connections();
        request.into_response(ApiError::TooManyConnections.error_response())
    } else {
        next.call(request).await?.map_into_boxed_body()
    };
    if line.is_spare() || line.is_old() {
        let head = response.response_mut().head_mut();
        head.set_connection_type(ConnectionType::Close);
    }
    let asking = Cell::new(Some(asking));
    Ok(response.map_body(|_, answer| {
        BoxBody::new(CountedBody {
            answer,
            _asking: asking.take(),
        })
    }))
}

/// An answer that counts as a request in work until its last byte was taken.
struct CountedBody {
    answer: BoxBody,
    _asking: Option<Asking>,
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
