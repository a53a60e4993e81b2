//! Why an attempt failed, and whether another one may help.

use std::time::Duration;

use reqwest::StatusCode;

use super::repository::Subject;
use crate::error::HubError;

/// Why an attempt failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// Another attempt may help.
    Transient { reason: String, wait: Option<Wait> },
    /// The bytes differ from what the hub announced: restart the file.
    Corrupt(String),
    /// Could not connect to a hub that has not answered yet.
    NoNetwork(String),
    /// Another attempt does not help.
    Fatal(crate::Error),
}

/// Requested wait of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wait {
    pub status: StatusCode,
    pub time: Duration,
    /// The limit counts all requests, so all transfers wait.
    pub for_all: bool,
}

impl Failure {
    pub(super) fn transient(reason: impl Into<String>) -> Self {
        Self::Transient {
            reason: reason.into(),
            wait: None,
        }
    }
}

impl From<HubError> for Failure {
    fn from(error: HubError) -> Self {
        Self::Fatal(error.into())
    }
}

impl From<crate::Error> for Failure {
    fn from(error: crate::Error) -> Self {
        Self::Fatal(error)
    }
}

pub(super) fn invalid_response(subject: Subject<'_>, reason: &str) -> HubError {
    HubError::InvalidResponse {
        what: subject.name(),
        reason: reason.to_owned(),
    }
}

/// Failure of a request before its response. `reached`: the hub has answered in this run.
pub(super) fn request_error(error: reqwest::Error, reached: bool) -> Failure {
    if error.is_connect() && !reached {
        let what = if error.is_timeout() {
            "connection timed out"
        } else {
            "could not connect"
        };
        return Failure::NoNetwork(with_cause(what, error));
    }
    let what = if error.is_timeout() {
        "no response in time"
    } else if error.is_connect() {
        "could not connect to the hub"
    } else {
        "the connection was closed before a response"
    };
    Failure::transient(with_cause(what, error))
}

/// Failure while a response's body is read.
pub(super) fn body_error(error: reqwest::Error) -> Failure {
    let what = if error.is_timeout() {
        "the connection stalled"
    } else {
        "the connection was interrupted"
    };
    Failure::transient(with_cause(what, error))
}

/// The message without the URL, which may contain a signature.
fn with_cause(what: &str, error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut cause: &dyn std::error::Error = &error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    format!("{what} ({cause})")
}
