//! All errors of the API: status, fixed text, JSON body.

use actix_web::http::{StatusCode, header};
use actix_web::{HttpResponse, ResponseError};

use super::http::{HEAD_TIMEOUT, SAFE_HEADERS};
use super::openai::{self, OpenAiError, RequestError};
use super::types::ErrorBody;
use crate::engine::EngineError;
use crate::error::{DocumentError, ImageError, PromptError};
use crate::records::timestamp;

/// An API error.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// 422: no `file` part.
    #[error("no file: send the page as multipart/form-data in the field `file`")]
    NoFile,
    /// 400: invalid image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// 400, 413 or 422: invalid document.
    #[error(transparent)]
    Document(DocumentError),
    /// 422: invalid prompt.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// 422: invalid value of a form field.
    #[error("{field}: {reason}")]
    Field {
        /// Field name.
        field: &'static str,
        /// Expected value.
        reason: String,
    },
    /// 400: repeated form field.
    #[error("the field `{0}` was sent more than once")]
    Repeated(&'static str),
    /// 400: malformed form.
    #[error("the multipart body is malformed or incomplete")]
    Malformed,
    /// 400: too many parts.
    #[error("the form has more than {limit} parts")]
    TooManyParts {
        /// The limit.
        limit: usize,
    },
    /// 413: file or body too large.
    #[error("the upload is larger than {limit_mib} MiB")]
    UploadTooLarge {
        /// The limit, MiB.
        limit_mib: u64,
    },
    /// 413: text field too large.
    #[error("a text field is larger than {limit} bytes")]
    FieldTooLarge {
        /// The limit, bytes.
        limit: usize,
    },
    /// 400: decoding the image would exceed the whole memory budget.
    #[error(
        "decoding the image takes {needed_mib} MiB; the limit is {limit_mib} MiB: send it smaller, or as PNG or JPEG"
    )]
    DecodeMemory {
        /// Memory that decoding would need, MiB.
        needed_mib: u32,
        /// `--max-decoded-mib`.
        limit_mib: u32,
    },
    /// An invalid request to OpenAI's routes.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// 431: request header too large.
    #[error("the request's header is too large")]
    HeaderTooLarge,
    /// 408: body timeout.
    #[error("the body did not arrive within {seconds} s")]
    BodyDeadline {
        /// The deadline, seconds.
        seconds: u64,
    },
    /// 408: upload rate too low.
    #[error("the body arrived more slowly than {rate} bytes a second")]
    BodyRate {
        /// Minimum rate, bytes/s.
        rate: u64,
    },
    /// 408: the client read the stream too slowly.
    #[error("the answer was read too slowly: more than {limit_kib} KiB waited")]
    SlowReader {
        /// `--stream-buffer-kib`.
        limit_kib: usize,
    },
    /// 401: no key, or a wrong one.
    #[error(
        "this route needs a key of this server: send it as `Authorization: Bearer KEY` or `X-Api-Key: KEY`"
    )]
    Unauthorized,
    /// 403: the key is for other routes.
    #[error("this key may not call this route: {0}")]
    WrongScope(&'static str),
    /// 400: a key in the query string.
    #[error(
        "a key in the address is refused, since addresses end up in logs: send it as `Authorization: Bearer KEY`, and replace this one"
    )]
    KeyInAddress,
    /// 429: the key has as many requests in the queue as it may have.
    #[error("{detail}")]
    KeyLimit {
        /// Reason.
        detail: String,
        /// `Retry-After`, seconds.
        retry_after_seconds: u64,
    },
    /// 503: too many connections.
    #[error("too many connections; only /health is answered on this one: close others, and try again in 1 s")]
    TooManyConnections,
    /// 503: memory budget for large responses exhausted.
    #[error("too many large answers at once; try again in 1 s")]
    TooManyAnswers,
    /// 503: memory budget for uploads exhausted.
    #[error("too many uploads at once; try again in 1 s")]
    TooManyUploads,
    /// 503: the engine accepts no requests.
    #[error("{detail}")]
    Unavailable {
        /// Reason.
        detail: String,
        /// Reason, one of [`REASONS`].
        reason: &'static str,
        /// `Retry-After`, seconds.
        retry_after_seconds: u64,
    },
    /// 504: generation timeout.
    #[error("the reading was stopped after {seconds} s")]
    GenerationDeadline {
        /// The deadline, seconds.
        seconds: u64,
    },
    /// 503: the audit log cannot be written.
    #[error("the audit log cannot be written, so nothing is answered; the operator must make room for it")]
    AuditLog,
    /// 500: internal error; the cause is only in the log.
    #[error("internal error; the server's log holds the cause under this answer's x-request-id")]
    Internal,
}

/// What [`ApiError::reason`] and [`parser_reason`] can be.
pub(super) const REASONS: [&str; 23] = [
    "not_ready",
    "draining",
    "queue_full",
    "queue_deadline",
    "key_limit",
    "too_many_connections",
    "too_many_uploads",
    "too_many_answers",
    "unauthorized",
    "forbidden",
    "key_in_address",
    "invalid_image",
    "invalid_request",
    "invalid_http",
    "too_many_pages",
    "upload_too_large",
    "upload_too_slow",
    "header_too_large",
    "header_too_slow",
    "reader_too_slow",
    "generation_deadline",
    "audit_log",
    "internal",
];

impl ApiError {
    fn unavailable(reason: &'static str, detail: String, retry_after_seconds: u64) -> Self {
        Self::Unavailable {
            detail,
            reason,
            retry_after_seconds,
        }
    }

    /// One word for the metrics, of [`REASONS`].
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Unavailable { reason, .. } => reason,
            Self::KeyLimit { .. } => "key_limit",
            Self::TooManyConnections => "too_many_connections",
            Self::TooManyUploads => "too_many_uploads",
            Self::TooManyAnswers => "too_many_answers",
            Self::Unauthorized => "unauthorized",
            Self::WrongScope(_) => "forbidden",
            Self::KeyInAddress => "key_in_address",
            Self::Document(DocumentError::TooManyPages { .. }) => "too_many_pages",
            Self::Document(DocumentError::NoSuchPage { .. }) => "invalid_request",
            Self::Document(DocumentError::NoWorker) => "internal",
            Self::Image(_) | Self::Document(_) | Self::DecodeMemory { .. } => "invalid_image",
            Self::Request(error) if matches!(error.code, Some("invalid_image" | "invalid_file")) => {
                "invalid_image"
            }
            Self::Request(error) if error.code == Some("too_many_pages") => "too_many_pages",
            Self::Request(error) if error.status == StatusCode::PAYLOAD_TOO_LARGE => "upload_too_large",
            Self::Request(_)
            | Self::NoFile
            | Self::Prompt(_)
            | Self::Field { .. }
            | Self::Repeated(_)
            | Self::Malformed
            | Self::TooManyParts { .. } => "invalid_request",
            Self::UploadTooLarge { .. } | Self::FieldTooLarge { .. } => "upload_too_large",
            Self::BodyDeadline { .. } | Self::BodyRate { .. } => "upload_too_slow",
            Self::HeaderTooLarge => "header_too_large",
            Self::SlowReader { .. } => "reader_too_slow",
            Self::GenerationDeadline { .. } => "generation_deadline",
            Self::AuditLog => "audit_log",
            Self::Internal => "internal",
        }
    }
}

impl From<DocumentError> for ApiError {
    fn from(error: DocumentError) -> Self {
        match error {
            DocumentError::Image(error) => Self::Image(error),
            error => Self::Document(error),
        }
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let detail = error.to_string();
        match error {
            EngineError::Read(crate::Error::Image(error)) => Self::Image(error),
            EngineError::Read(crate::Error::Document(error)) => error.into(),
            EngineError::Read(crate::Error::Prompt(error)) => Self::Prompt(error),
            EngineError::Read(crate::Error::Option { option, reason }) => Self::Field {
                field: option,
                reason,
            },
            EngineError::Read(error) => {
                tracing::error!(%error, "reading failed");
                Self::Internal
            }
            // The panic hook has logged the location.
            EngineError::Panicked => Self::Internal,
            EngineError::NotReady => Self::unavailable("not_ready", detail, 5),
            EngineError::Stopping => Self::unavailable("draining", detail, 5),
            EngineError::ClientLimit {
                retry_after_seconds, ..
            } => Self::KeyLimit {
                detail,
                retry_after_seconds,
            },
            EngineError::Full { retry_after_seconds } => {
                Self::unavailable("queue_full", detail, retry_after_seconds)
            }
            EngineError::QueueDeadline { retry_after_seconds } => {
                Self::unavailable("queue_deadline", detail, retry_after_seconds)
            }
        }
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        match self {
            Self::Request(error) => error.status,
            Self::Document(DocumentError::TooManyPages { .. }) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Document(DocumentError::NoSuchPage { .. }) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Document(DocumentError::NoWorker) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Image(_)
            | Self::Document(_)
            | Self::DecodeMemory { .. }
            | Self::KeyInAddress
            | Self::Repeated(_)
            | Self::Malformed
            | Self::TooManyParts { .. } => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::WrongScope(_) => StatusCode::FORBIDDEN,
            Self::KeyLimit { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::BodyDeadline { .. } | Self::BodyRate { .. } | Self::SlowReader { .. } => {
                StatusCode::REQUEST_TIMEOUT
            }
            Self::UploadTooLarge { .. } | Self::FieldTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::NoFile | Self::Prompt(_) | Self::Field { .. } => StatusCode::UNPROCESSABLE_ENTITY,
            Self::HeaderTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::TooManyConnections
            | Self::TooManyAnswers
            | Self::TooManyUploads
            | Self::AuditLog
            | Self::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::GenerationDeadline { .. } => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status_code());
        let retry_after_seconds = match self {
            Self::TooManyConnections | Self::TooManyAnswers | Self::TooManyUploads => Some(1),
            Self::AuditLog => Some(60),
            Self::Unavailable {
                retry_after_seconds, ..
            }
            | Self::KeyLimit {
                retry_after_seconds, ..
            } => Some(*retry_after_seconds),
            _ => None,
        };
        if matches!(self, Self::Unauthorized) {
            response.insert_header((header::WWW_AUTHENTICATE, "Bearer"));
        }
        if let Some(seconds) = retry_after_seconds {
            response.insert_header((header::RETRY_AFTER, seconds));
        }
        response.json(ErrorBody {
            detail: self.to_string(),
            timestamp: timestamp(),
        })
    }
}

/// Body of an error response made by the framework rather than by a handler.
pub(super) fn framework_error(status: StatusCode) -> ErrorBody {
    let detail = match status {
        StatusCode::NOT_FOUND => "no such route; /docs of the API lists them",
        StatusCode::METHOD_NOT_ALLOWED => {
            "this route does not take this method; /docs of the API lists the methods"
        }
        other => other.canonical_reason().unwrap_or("the request was refused"),
    };
    ErrorBody {
        detail: detail.into(),
        timestamp: timestamp(),
    }
}

/// One word for the metrics, of [`REASONS`], for a request that the HTTP parser rejected with `status`.
pub(super) fn parser_reason(status: StatusCode) -> &'static str {
    match status {
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => "header_too_large",
        StatusCode::REQUEST_TIMEOUT => "header_too_slow",
        _ => "invalid_http",
    }
}

/// Complete response, as bytes, to a request for `path`, if that is known, that the HTTP parser rejected.
pub(super) fn parser_error(status: StatusCode, path: Option<&str>) -> Vec<u8> {
    let detail = match status {
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => ApiError::HeaderTooLarge.to_string(),
        StatusCode::REQUEST_TIMEOUT => {
            format!(
                "the request's header did not arrive within {} s",
                HEAD_TIMEOUT.as_secs()
            )
        }
        StatusCode::BAD_REQUEST => "the request is not valid HTTP".to_owned(),
        other => framework_error(other).detail,
    };
    raw_error(status, detail, path)
}

/// Complete response, as bytes, to a request for `path`, if that is known, in plain HTTP on a port that speaks TLS.
pub(super) fn plain_http_error(path: Option<&str>) -> Vec<u8> {
    let detail = "this port speaks TLS: the address begins with https://";
    raw_error(StatusCode::BAD_REQUEST, detail.to_owned(), path)
}

fn raw_error(status: StatusCode, detail: String, path: Option<&str>) -> Vec<u8> {
    // Strings always serialize.
    let body = match path {
        Some(path) if openai::applies_to(path) => {
            serde_json::to_string(&OpenAiError::new(status, detail, None, None))
        }
        _ => serde_json::to_string(&ErrorBody {
            detail,
            timestamp: timestamp(),
        }),
    };
    let body = body.unwrap_or_default();
    let mut answer = format!("HTTP/1.1 {status}\r\n");
    for (name, value) in SAFE_HEADERS {
        answer.push_str(&format!("{name}: {value}\r\n"));
    }
    let date = chrono::Utc::now().format("%a, %d %b %Y %H:%M:%S GMT");
    answer.push_str(&format!(
        "content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\ndate: {date}\r\n\r\n{body}",
        body.len()
    ));
    answer.into_bytes()
}
