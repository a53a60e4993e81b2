//! Keys in the query of an address, where proxies and browsers keep them: refused, and never logged.

use actix_web::Error;
use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::middleware::Next;

use crate::server::errors::ApiError;

/// Parameters of an address in which clients of other services send keys.
const KEY_PARAMETERS: [&str; 8] = [
    "key",
    "api_key",
    "api-key",
    "apikey",
    "x-api-key",
    "token",
    "access_token",
    "auth",
];

/// Whether a client has written a key into the query.
pub(super) fn has_key_parameter(query: &str) -> bool {
    let names = query
        .split('&')
        .map(|pair| pair.split('=').next().unwrap_or_default());
    names.into_iter().any(|name| {
        KEY_PARAMETERS
            .iter()
            .any(|known| name.eq_ignore_ascii_case(known))
    })
}

/// Middleware: answers 400 to requests with a key in the address.
pub(in crate::server) async fn refuse_key_in_address<B: MessageBody + 'static>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    if has_key_parameter(request.query_string()) {
        return Ok(request.error_response(ApiError::KeyInAddress));
    }
    Ok(next.call(request).await?.map_into_boxed_body())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_in_the_address_are_noticed() {
        for query in ["key=x", "a=b&api_key=x", "TOKEN=x", "token"] {
            assert!(has_key_parameter(query), "{query}");
        }
        for query in ["", "a=key", "keys=x", "page=1"] {
            assert!(!has_key_parameter(query), "{query}");
        }
    }
}
