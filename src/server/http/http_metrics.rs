//! Who is told what became of requests.

use actix_web::http::StatusCode;

use crate::server::errors::ApiError;

/// Is told what became of requests.
pub(in crate::server) trait HttpMetrics: Send + Sync {
    /// A request was answered; `route` is the pattern that its path matches, if any. Status 499: the client left before the answer.
    fn answered(&self, route: Option<&str>, status: u16);

    /// A request was answered with `error`; it is also [`Self::answered`].
    fn rejected(&self, error: &ApiError);

    /// The HTTP parser refused a request.
    fn refused(&self, status: StatusCode);
}

/// Nobody is told.
impl HttpMetrics for () {
    fn answered(&self, _: Option<&str>, _: u16) {}
    fn rejected(&self, _: &ApiError) {}
    fn refused(&self, _: StatusCode) {}
}
