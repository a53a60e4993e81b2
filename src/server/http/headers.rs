//! Security headers for every response, and JSON bodies for the framework's own errors.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use actix_web::body::{BodySize, BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::web::Bytes;
use actix_web::{Error, HttpResponse};

use super::options::{MAX_HEADER_BYTES, MAX_HEADERS};
use crate::server::errors::{ApiError, framework_error};
use crate::server::openai;

/// Headers of every response, unless its handler has set them: pages have their own content security policy.
pub(in crate::server) const SAFE_HEADERS: [(HeaderName, &str); 5] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
];

/// Middleware: bounds the request header, and sets security headers and JSON errors on the response.
pub(super) async fn finish<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let head = request.method() == Method::HEAD;
    let response = if header_fits(request.headers()) {
        next.call(request).await?.map_into_boxed_body()
    } else {
        request.error_response(ApiError::HeaderTooLarge)
    };
    let mut response = if openai::applies_to(response.request().path()) {
        openai::with_openai_body(response)
    } else if is_bare_error(&response) {
        with_json_body(response)
    } else {
        response
    };
    let headers = response.headers_mut();
    for (name, value) in SAFE_HEADERS {
        if !headers.contains_key(&name) {
            headers.insert(name, HeaderValue::from_static(value));
        }
    }
    Ok(if head { without_body(response) } else { response })
}

/// The response to HEAD: the body's length without the body. The framework does this by the request that it read last, which may
/// be a later one on the connection.
fn without_body(mut response: ServiceResponse<BoxBody>) -> ServiceResponse<BoxBody> {
    if let BodySize::Sized(length) = response.response().body().size() {
        response.response_mut().head_mut().no_chunking(true);
        response
            .headers_mut()
            .insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    response.map_body(|_, _| BoxBody::new(NoBytes))
}

/// An empty body whose length is already in the header.
struct NoBytes;

impl MessageBody for NoBytes {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Stream
    }

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Poll::Ready(None)
    }
}

fn header_fits(headers: &HeaderMap) -> bool {
    let mut lines = 0;
    let mut bytes = 0;
    for (name, value) in headers {
        lines += 1;
        bytes += name.as_str().len() + value.len() + ": \r\n".len();
    }
    lines <= MAX_HEADERS && bytes <= MAX_HEADER_BYTES
}

fn is_bare_error<B>(response: &ServiceResponse<B>) -> bool {
    let status = response.status();
    let content_type = response.headers().get(header::CONTENT_TYPE);
    (status.is_client_error() || status.is_server_error())
        && content_type.is_none_or(|content_type| content_type != "application/json")
}

fn with_json_body(response: ServiceResponse<BoxBody>) -> ServiceResponse<BoxBody> {
    let status: StatusCode = response.status();
    let kept: [HeaderName; 2] = [header::ALLOW, header::VARY];
    let (request, bare) = response.into_parts();
    let mut json = HttpResponse::build(status).json(framework_error(status));
    for name in kept {
        if let Some(value) = bare.headers().get(&name) {
            json.headers_mut().insert(name, value.clone());
        }
    }
    ServiceResponse::new(request, json)
}
