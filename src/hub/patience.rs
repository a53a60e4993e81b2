//! Which failures are worth another attempt, and how long to wait before it.

use std::time::Duration;

use chrono::{DateTime, Utc};
use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};

use super::client::text_of;
use super::repository::Subject;
use super::{HubError, HubSettings};
use crate::Result;
use crate::telemetry::{self, Level};

const MAX_PAUSE: Duration = Duration::from_secs(60);
/// A pause that a person would wonder about.
const NOTICEABLE: Duration = Duration::from_secs(2);
/// A `Retry-After` longer than this ends the run.
const MAX_WAIT: Duration = Duration::from_secs(300);

/// Why an attempt failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// Another attempt may help.
    Transient {
        reason: String,
        wait: Option<(StatusCode, Duration)>,
    },
    /// The bytes are not what the hub announced: start the file again.
    Corrupt(String),
    /// Nothing helps.
    Fatal(crate::Error),
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

/// How often and how long to wait: doubling pauses with jitter, `Retry-After` where the hub gives one.
#[derive(Debug)]
pub(super) struct Patience<'a> {
    settings: &'a HubSettings,
    failures: u32,
}

impl<'a> Patience<'a> {
    pub(super) fn new(settings: &'a HubSettings) -> Self {
        Self {
            settings,
            failures: 0,
        }
    }

    /// Something new came: the count starts again.
    pub(super) fn renew(&mut self) {
        self.failures = 0;
    }

    /// Waits before the next attempt; the error where there is to be none.
    pub(super) async fn pause(&mut self, subject: Subject<'_>, failure: Failure) -> Result<()> {
        let (reason, wait) = match failure {
            Failure::Fatal(error) => return Err(error),
            Failure::Corrupt(reason) => (reason, None),
            Failure::Transient { reason, wait } => (reason, wait),
        };
        self.failures += 1;
        if self.failures > self.settings.retries {
            return Err(HubError::Unreachable {
                what: subject.name(),
                reason,
                attempts: self.failures,
            }
            .into());
        }
        if let Some((status, wait)) = wait
            && wait > MAX_WAIT
        {
            return Err(HubError::Wait {
                what: subject.name(),
                status: status.as_u16(),
                wait,
            }
            .into());
        }
        let doubled = self.settings.first_pause * 2_u32.pow((self.failures - 1).min(10));
        let jitter = f64::from(Utc::now().timestamp_subsec_micros() % 1000) / 1000.0;
        let pause = doubled.min(MAX_PAUSE).mul_f64(0.75 + jitter / 2.0);
        let pause = pause.max(wait.map_or(Duration::ZERO, |(_, wait)| wait));
        tracing::debug!(
            seconds = pause.as_secs_f64(),
            attempt = self.failures,
            "next attempt"
        );
        if pause >= NOTICEABLE {
            let (name, seconds) = (subject.name(), pause.as_secs());
            telemetry::say(
                Level::WARN,
                &format!("{name}: {reason}; next attempt in {seconds} s"),
            );
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// `Retry-After` in seconds or as a date.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = text_of(headers, &RETRY_AFTER)?;
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = DateTime::parse_from_rfc2822(text.trim()).ok()?;
    Some(
        (date.with_timezone(&Utc) - Utc::now())
            .to_std()
            .unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let headers = |text: &str| HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
        assert_eq!(retry_after(&headers("7")), Some(Duration::from_secs(7)));
        assert_eq!(
            retry_after(&headers("Sun, 06 Nov 1994 08:49:37 GMT")),
            Some(Duration::ZERO)
        );
        assert_eq!(retry_after(&headers("soon")), None);
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }
}
