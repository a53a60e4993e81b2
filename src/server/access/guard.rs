//! Middleware: a key before every route but those of [`is_health`].

use std::sync::Arc;
use std::time::Instant;

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{self, HeaderMap};
use actix_web::middleware::Next;
use actix_web::web::Data;
use actix_web::{Error, HttpMessage, HttpRequest};

use super::in_address::has_key_parameter;
use super::keys::{ApiKey, KeyScope};
use crate::server::audit::note;
use crate::server::errors::ApiError;
use crate::server::http::is_health;
use crate::server::metrics;
use crate::server::state::ServerState;

/// Name of the key of a request, in its extensions.
struct KeyName(Arc<str>);

/// Name of the key that `request` was sent with; `None` if none is needed.
pub(in crate::server) fn client(request: &HttpRequest) -> Option<Arc<str>> {
    request
        .extensions()
        .get::<KeyName>()
        .map(|KeyName(name)| Arc::clone(name))
}

/// Middleware: answers 401 to requests without a key of the server, and 403 to those whose key is for other routes.
pub(in crate::server) async fn guard<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    match checked(&request).await {
        Ok(key) => {
            if let Some(key) = key {
                request.extensions_mut().insert(KeyName(key.name));
            }
            Ok(next.call(request).await?.map_into_boxed_body())
        }
        Err(error) => Ok(request.error_response(error)),
    }
}

/// The key of a request; `None` if it needs none.
async fn checked(request: &ServiceRequest) -> Result<Option<ApiKey>, ApiError> {
    let state = request
        .app_data::<Data<ServerState>>()
        .ok_or(ApiError::Internal)?;
    let Some(keys) = state.access.keys() else {
        return Ok(None);
    };
    let in_address = has_key_parameter(request.query_string());
    // The path as sent, which the router may read as another one: only what is certain is open.
    if is_health(request.path()) {
        return match in_address {
            true => Err(ApiError::KeyInAddress),
            false => Ok(None),
        };
    }
    let key = sent_key(request.headers()).and_then(|sent| keys.find(sent));
    let Some(key) = key else {
        let address = request.peer_addr().map(|address| address.ip());
        if let Some(delay) = state.access.attempts.refused(address, Instant::now()) {
            // Nobody without a key may fill the disk.
            note(request.request(), |facts| facts.unlogged = true);
            tokio::time::sleep(delay).await;
        }
        return Err(match in_address {
            true => ApiError::KeyInAddress,
            false => ApiError::Unauthorized,
        });
    };
    note(request.request(), |facts| facts.key = Some(Arc::clone(&key.name)));
    if in_address {
        return Err(ApiError::KeyInAddress);
    }
    let is_metrics = request.match_pattern().as_deref() == Some(metrics::ROUTE);
    match (key.scope, is_metrics) {
        (KeyScope::Inference, true) => Err(ApiError::WrongScope("it is for every route but /metrics")),
        (KeyScope::Metrics, false) => Err(ApiError::WrongScope("it is for /metrics only")),
        _ => Ok(Some(key)),
    }
}

/// The key of `Authorization: Bearer`, or else of `X-Api-Key`.
fn sent_key(headers: &HeaderMap) -> Option<&[u8]> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.as_bytes().split_at_checked("Bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"Bearer ").then(|| key.trim_ascii())
    });
    let key = bearer.or_else(|| headers.get("x-api-key").map(|value| value.as_bytes()));
    key.filter(|key| !key.is_empty())
}

#[cfg(test)]
mod tests {
    use actix_web::http::header::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn keys_are_read_from_two_headers() {
        let sent = |lines: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
            }
            sent_key(&headers).map(<[u8]>::to_vec)
        };
        for (lines, key) in [
            (&[("authorization", "Bearer abc")][..], Some("abc")),
            (&[("authorization", "bearer  abc ")], Some("abc")),
            (&[("x-api-key", "abc")], Some("abc")),
            (
                &[("x-api-key", "abc"), ("authorization", "Basic xyz")],
                Some("abc"),
            ),
            (
                &[("x-api-key", "abc"), ("authorization", "Bearer xyz")],
                Some("xyz"),
            ),
            (&[("authorization", "abc")], None),
            (&[("authorization", "Bearer")], None),
            (&[("authorization", "Bearer ")], None),
            (&[("x-api-key", "")], None),
            (&[], None),
        ] {
            assert_eq!(sent(lines).as_deref(), key.map(str::as_bytes), "{lines:?}");
        }
    }
}
