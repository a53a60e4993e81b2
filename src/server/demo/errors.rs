//! Errors of the page's server.

use actix_web::http::StatusCode;
use actix_web::{HttpResponse, ResponseError};

use crate::records::timestamp;
use crate::server::types::ErrorBody;

/// An error of the page's server, other than those of the API.
#[derive(Debug, thiserror::Error)]
pub(super) enum DemoError {
    /// 404: no such file of the page.
    #[error("no such file")]
    NoFile,
    /// 404: not a route of the API that the page uses.
    #[error("the page does not use this route of the API; ask the API itself")]
    NoRoute,
    /// 403: the name in the address is not this server's.
    #[error("this name is not one of this page's; open it as localhost, or start it with {flag} NAME")]
    ForeignHost {
        /// The flag that allows a name.
        flag: &'static str,
    },
    /// 403: sent by a script of another site.
    #[error("requests of other sites are refused")]
    ForeignOrigin,
    /// 502: no connection to the API, or it ended before the answer.
    #[error("the API does not answer; start it (`server`), or start demo_ui with its address (--api-url)")]
    Unreachable,
    /// 502: neither JSON nor an event stream.
    #[error("what answers at --api-url is not the API; start demo_ui with the API's address")]
    NotTheApi,
}

impl ResponseError for DemoError {
    fn status_code(&self) -> StatusCode {
        match self {
            Self::NoFile | Self::NoRoute => StatusCode::NOT_FOUND,
            Self::ForeignHost { .. } | Self::ForeignOrigin => StatusCode::FORBIDDEN,
            Self::Unreachable | Self::NotTheApi => StatusCode::BAD_GATEWAY,
        }
    }

    fn error_response(&self) -> HttpResponse {
        HttpResponse::build(self.status_code()).json(ErrorBody {
            detail: self.to_string(),
            timestamp: timestamp(),
        })
    }
}
