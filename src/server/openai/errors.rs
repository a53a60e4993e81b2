//! Errors in OpenAI's form.

use actix_web::body::BoxBody;
use actix_web::dev::ServiceResponse;
use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderValue};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::PromptError;
use crate::server::errors::{ApiError, framework_error};

/// Maximum characters of a client's own key in an error.
const MAX_NAME_CHARACTERS: usize = 128;

/// An invalid request to OpenAI's routes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct RequestError {
    /// HTTP status.
    pub status: StatusCode,
    /// What is wrong, and what to do.
    pub message: String,
    /// The parameter at fault, as in `messages[0].content[1].image_url.url`.
    pub param: Option<String>,
    /// OpenAI's code of the error.
    pub code: Option<&'static str>,
}

impl RequestError {
    /// 400 for a parameter.
    pub(super) fn new(code: &'static str, param: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            message: message.into(),
            param: Some(param.into()),
            code: Some(code),
        }
    }

    /// 400 for the whole body.
    pub(super) fn body(code: &'static str, message: impl Into<String>) -> Self {
        Self {
            param: None,
            ..Self::new(code, "", message)
        }
    }

    /// This error with another status.
    pub(super) fn with_status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }
}

/// A client's text, short enough for an error.
pub(super) fn shortened(name: &str) -> String {
    match name.char_indices().nth(MAX_NAME_CHARACTERS) {
        Some((end, _)) => format!("{}...", &name[..end]),
        None => name.to_owned(),
    }
}

/// Error response of the routes below `/v1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OpenAiError {
    /// The error.
    pub error: ErrorObject,
}

/// OpenAI's error object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorObject {
    /// What is wrong, and what to do.
    pub message: String,
    /// `invalid_request_error`, `rate_limit_error` or `server_error`.
    pub r#type: String,
    /// The parameter at fault, as in `messages[0].content[1].image_url.url`.
    pub param: Option<String>,
    /// For programs, as `context_length_exceeded`.
    pub code: Option<String>,
}

impl OpenAiError {
    pub(in crate::server) fn new(
        status: StatusCode,
        message: String,
        param: Option<String>,
        code: Option<&str>,
    ) -> Self {
        let kind = match status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        Self {
            error: ErrorObject {
                message,
                r#type: kind.to_owned(),
                param,
                code: code.map(str::to_owned),
            },
        }
    }
}

impl ApiError {
    /// Status and body in OpenAI's form, in which an invalid parameter is always 400.
    pub(in crate::server) fn openai(&self) -> (StatusCode, OpenAiError) {
        use actix_web::ResponseError;
        let (status, param, code) = match self {
            Self::Request(error) => (error.status, error.param.clone(), error.code),
            Self::Prompt(error) => {
                let code = match error {
                    PromptError::ContextOverflow { .. } | PromptError::MemoryOverflow { .. } => {
                        "context_length_exceeded"
                    }
                    PromptError::TooLong { .. } => "string_above_max_length",
                    PromptError::ImageCount { .. } => "invalid_value",
                };
                (StatusCode::BAD_REQUEST, Some("messages".to_owned()), Some(code))
            }
            Self::Image(_) | Self::DecodeMemory { .. } => (
                StatusCode::BAD_REQUEST,
                Some("messages".to_owned()),
                Some("invalid_image"),
            ),
            Self::Field { field, .. } => (
                StatusCode::BAD_REQUEST,
                Some((*field).to_owned()),
                Some("invalid_value"),
            ),
            other => {
                let code = match other {
                    Self::Unauthorized => Some("invalid_api_key"),
                    Self::WrongScope(_) => Some("insufficient_permissions"),
                    Self::KeyLimit { .. } => Some("rate_limit_exceeded"),
                    _ => None,
                };
                (other.status_code(), None, code)
            }
        };
        (status, OpenAiError::new(status, self.to_string(), param, code))
    }
}

/// Whether the errors of `path` have OpenAI's form: those below `/v1`, on the demo page's port below `/api/v1`.
pub(in crate::server) fn applies_to(path: &str) -> bool {
    let path = path.strip_prefix("/api").unwrap_or(path);
    path == "/v1" || path.starts_with("/v1/")
}

/// The response with its error, if it is one, in OpenAI's form.
pub(in crate::server) fn with_openai_body(
    mut response: ServiceResponse<BoxBody>,
) -> ServiceResponse<BoxBody> {
    let status = response.status();
    if !status.is_client_error() && !status.is_server_error() {
        return response;
    }
    let error = response.response().error();
    let (status, body) = match error.and_then(|error| error.as_error::<ApiError>()) {
        Some(error) => error.openai(),
        None => {
            let kind = response.headers().get(header::CONTENT_TYPE);
            let is_json = kind.is_some_and(|kind| kind == "application/json");
            let message = match error {
                Some(error) => error.to_string(),
                // Forwarded from an API, which has chosen the form.
                None if is_json => return response,
                None => framework_error(status).detail,
            };
            (status, OpenAiError::new(status, message, None, None))
        }
    };
    *response.response_mut().status_mut() = status;
    let headers = response.headers_mut();
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.map_body(|_, _| BoxBody::new(serde_json::to_string(&body).unwrap_or_default()))
}
