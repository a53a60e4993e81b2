//! Which failures are worth another attempt, and how long to wait before it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use reqwest::StatusCode;
use reqwest::header::{HeaderMap, HeaderName, RETRY_AFTER};
use tokio::time::Instant;

use super::{Hub, client::text_of, repository::Subject};
use crate::error::HubError;
use crate::{Result, console};

const MAX_PAUSE: Duration = Duration::from_secs(60);
/// A pause that a person would wonder about.
const NOTICEABLE: Duration = Duration::from_secs(2);
/// A wait longer than this ends the run; the hub counts requests in windows of 300 s.
const MAX_WAIT: Duration = Duration::from_secs(310);
/// For so long a hub that never answered is asked again: there may be no network at all.
const FIRST_CONTACT: Duration = Duration::from_millis(3_500);

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Why an attempt failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// Another attempt may help.
    Transient { reason: String, wait: Option<Wait> },
    /// The bytes are not what the hub announced: start the file again.
    Corrupt(String),
    /// No connection to a hub that has not answered yet.
    NoNetwork(String),
    /// Nothing helps.
    Fatal(crate::Error),
}

/// How long the other side asks to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wait {
    pub status: StatusCode,
    pub time: Duration,
    /// The hub counts all requests together: no other one is worth sending before.
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

/// How often and how long to wait: doubling pauses with jitter, what the hub asks for where it does.
#[derive(Debug)]
pub(super) struct Patience<'a> {
    hub: &'a Hub,
    failures: u32,
    since: Instant,
}

impl<'a> Patience<'a> {
    pub(super) fn new(hub: &'a Hub) -> Self {
        Self {
            hub,
            failures: 0,
            since: Instant::now(),
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
            Failure::NoNetwork(reason) => return self.pause_for_network(reason).await,
            Failure::Corrupt(reason) => (reason, None),
            Failure::Transient { reason, wait } => (reason, wait),
        };
        self.failures += 1;
        if self.failures > self.hub.settings.retries {
            return Err(HubError::Unreachable {
                what: subject.name(),
                reason,
                attempts: self.failures,
            }
            .into());
        }
        if let Some(Wait { status, time, .. }) = wait.filter(|wait| wait.time > MAX_WAIT) {
            return Err(HubError::Wait {
                what: subject.name(),
                status: status.as_u16(),
                wait: time,
            }
            .into());
        }
        let asked = wait.map_or(Duration::ZERO, |wait| wait.time);
        let pause = self.next_pause().max(asked);
        tracing::debug!(
            seconds = pause.as_secs_f64(),
            attempt = self.failures,
            "next attempt"
        );
        let for_all = wait.is_some_and(|wait| wait.for_all);
        if for_all && !self.hub.gate.close(pause) {
            // Another task says it.
            self.hub.gate.pass().await;
        } else if pause >= NOTICEABLE {
            let name = if for_all {
                self.hub.endpoint().to_owned()
            } else {
                subject.name()
            };
            count_down(&format!("{name}: {reason}"), pause).await;
        } else {
            tokio::time::sleep(pause).await;
        }
        Ok(())
    }

    fn next_pause(&self) -> Duration {
        let doubled = self.hub.settings.first_pause * 2_u32.pow(self.failures.saturating_sub(1).min(10));
        let jitter = f64::from(Utc::now().timestamp_subsec_micros() % 1000) / 1000.0;
        doubled.min(MAX_PAUSE).mul_f64(0.75 + jitter / 2.0)
    }

    /// Who has no network wants to know it, not to wait.
    async fn pause_for_network(&mut self, reason: String) -> Result<()> {
        self.failures += 1;
        let pause = self.next_pause();
        if self.failures > self.hub.settings.retries || self.since.elapsed() + pause > FIRST_CONTACT {
            return Err(self.hub.give_up(reason).into());
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

async fn count_down(message: &str, wait: Duration) {
    let end = Instant::now() + wait;
    let countdown = console::countdown(message, wait);
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        countdown.show(left);
        tokio::time::sleep(left.min(Duration::from_secs(1))).await;
    }
}

/// Closed while the hub takes no requests: one task finds that out for all.
#[derive(Debug, Default)]
pub(super) struct Gate(Mutex<Option<Instant>>);

impl Gate {
    /// Closes for `wait`; false where it was closed about as long before.
    fn close(&self, wait: Duration) -> bool {
        let mut until = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (now, wanted) = (Instant::now(), Instant::now() + wait);
        let known = until.is_some_and(|until| until > now && until + NOTICEABLE >= wanted);
        *until = Some(until.map_or(wanted, |until| until.max(wanted)));
        !known
    }

    /// Waits until it is open.
    pub(super) async fn pass(&self) {
        loop {
            let until = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match until.filter(|until| *until > Instant::now()) {
                Some(until) => tokio::time::sleep_until(until).await,
                None => return,
            }
        }
    }
}

/// What an answer asks for and why: the hub's own `RateLimit`, else `Retry-After`.
pub(super) fn asked_wait(status: StatusCode, headers: &HeaderMap) -> (String, Option<Wait>) {
    let reason = format!("the hub answered HTTP {}", status.as_u16());
    if status == StatusCode::TOO_MANY_REQUESTS
        && let Some(limit) = RateLimit::read(headers)
    {
        let wait = Wait {
            status,
            time: limit.reset + Duration::from_secs(1),
            for_all: true,
        };
        return (format!("{reason}: {limit}"), Some(wait));
    }
    let wait = retry_after(headers).map(|time| Wait {
        status,
        time,
        for_all: status == StatusCode::TOO_MANY_REQUESTS,
    });
    (reason, wait)
}

/// A limit that is used up: `RateLimit: "resolvers";r=0;t=45`, and what `RateLimit-Policy` says of it.
#[derive(Debug, PartialEq, Eq)]
struct RateLimit {
    /// What is counted.
    name: String,
    /// Until requests are taken again.
    reset: Duration,
    /// Requests in a window, and its length in seconds.
    policy: Option<(u64, u64)>,
}

impl RateLimit {
    fn read(headers: &HeaderMap) -> Option<Self> {
        let text = text_of(headers, &RATE_LIMIT)?;
        let used_up = |item: &str| {
            let (name, reset) = (quoted(item)?, parameter(item, "t")?);
            (parameter(item, "r")? == 0).then(|| (name.to_owned(), reset))
        };
        // Several limits may be named; the last to open counts.
        let (name, reset) = text
            .split(',')
            .filter_map(used_up)
            .max_by_key(|(_, reset)| *reset)?;
        let policy = text_of(headers, &RATE_LIMIT_POLICY).unwrap_or_default();
        let mark = format!("\"{name}\"");
        let policy = policy
            .split(',')
            .find(|item| item.contains(&mark))
            .and_then(|item| Some((parameter(item, "q")?, parameter(item, "w")?)));
        Some(Self {
            name,
            reset: Duration::from_secs(reset),
            policy,
        })
    }
}

impl std::fmt::Display for RateLimit {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name: String = self
            .name
            .chars()
            .filter(char::is_ascii_graphic)
            .take(40)
            .collect();
        match self.policy {
            Some((requests, seconds)) => write!(
                formatter,
                "its limit of {requests} requests ({name}) in {seconds} s is used up"
            ),
            None => write!(formatter, "its limit of requests ({name}) is used up"),
        }
    }
}

/// The first text in quotation marks.
fn quoted(item: &str) -> Option<&str> {
    item.split('"').nth(1)
}

/// The whole number of `;NAME=NUMBER`.
fn parameter(item: &str, name: &str) -> Option<u64> {
    item.split(';').skip(1).find_map(|part| {
        let (key, value) = part.split_once('=')?;
        (key.trim() == name).then(|| value.trim().parse().ok())?
    })
}

/// `Retry-After` in seconds or as a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = text_of(headers, &RETRY_AFTER)?;
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = DateTime::parse_from_rfc2822(text.trim()).ok()?;
    let left = (date.with_timezone(&Utc) - Utc::now())
        .to_std()
        .unwrap_or_default();
    // A date has whole seconds.
    Some(if left.is_zero() {
        left
    } else {
        left + Duration::from_secs(1)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(all: &[(HeaderName, &str)]) -> HeaderMap {
        all.iter()
            .map(|(name, text)| (name.clone(), text.parse().unwrap()))
            .collect()
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let read = |text: &str| retry_after(&headers(&[(RETRY_AFTER, text)]));
        assert_eq!(read("7"), Some(Duration::from_secs(7)));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        let soon = (Utc::now() + chrono::TimeDelta::seconds(100)).to_rfc2822();
        let soon = read(&soon).unwrap().as_secs();
        assert!((90..=101).contains(&soon), "{soon}");
        assert_eq!(read("soon"), None);
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }

    #[test]
    fn the_hubs_own_limit_is_waited_for_and_a_second_more() {
        let asked = |status, all: &[(HeaderName, &str)]| asked_wait(status, &headers(all));
        let many = StatusCode::TOO_MANY_REQUESTS;
        let policy = "\"fixed window\";\"resolvers\";q=3000;w=300";
        let (reason, wait) = asked(
            many,
            &[
                (RATE_LIMIT, "\"resolvers\";r=0;t=45"),
                (RATE_LIMIT_POLICY, policy),
            ],
        );
        let expected = Wait {
            status: many,
            time: Duration::from_secs(46),
            for_all: true,
        };
        assert_eq!(wait, Some(expected));
        assert!(reason.contains("3000 requests (resolvers) in 300 s"), "{reason}");
        let seconds =
            |status, all: &[(HeaderName, &str)]| asked(status, all).1.map(|wait| wait.time.as_secs());
        assert_eq!(seconds(many, &[(RATE_LIMIT, "\"api\"; r=0; t=0")]), Some(1));
        assert_eq!(
            seconds(many, &[(RATE_LIMIT, "\"api\";r=0;t=5, \"pages\";r=0;t=300")]),
            Some(301)
        );
        // A limit that is not used up is not the reason.
        let both = [(RATE_LIMIT, "\"api\";r=9;t=45"), (RETRY_AFTER, "7")];
        assert_eq!(seconds(many, &both), Some(7));
        assert_eq!(seconds(many, &[(RATE_LIMIT, "\"api\";r=9;t=45")]), None);
        // The header comes with every answer.
        assert_eq!(
            seconds(StatusCode::BAD_GATEWAY, &[(RATE_LIMIT, "\"api\";r=0;t=45")]),
            None
        );
        assert_eq!(
            seconds(StatusCode::SERVICE_UNAVAILABLE, &[(RETRY_AFTER, "3")]),
            Some(3)
        );
    }

    proptest! {
        #[test]
        fn any_limit_is_read_or_left(text in "[\"a-z;=rt0-9, ]{0,40}") {
            let _ = asked_wait(StatusCode::TOO_MANY_REQUESTS, &headers(&[(RATE_LIMIT, &text), (RATE_LIMIT_POLICY, &text)]));
        }
    }

    #[test]
    fn one_task_closes_the_gate_for_all() {
        let gate = Gate::default();
        assert!(gate.close(Duration::from_secs(60)));
        assert!(!gate.close(Duration::from_secs(59)) && !gate.close(Duration::from_secs(61)));
        assert!(gate.close(Duration::from_secs(120)));
    }
}
