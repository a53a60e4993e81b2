//! Rate limits: what a response asks the client to wait for, and the gate that holds all transfers back meanwhile.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use tokio::time::Instant;

use super::failure::Wait;
use super::headers::{RATE_LIMIT, RATE_LIMIT_POLICY, header_text};

/// Two waits that end within this time of each other are one.
const SAME_WAIT: Duration = Duration::from_secs(2);

/// Closed while the hub's rate limit is exhausted: one 429 pauses all transfers.
#[derive(Debug, Default)]
pub(super) struct Gate(Mutex<Option<Instant>>);

impl Gate {
    /// Closes for `wait`. Returns false if it was already closed for about as long.
    pub(super) fn close(&self, wait: Duration) -> bool {
        let mut until = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (now, wanted) = (Instant::now(), Instant::now() + wait);
        let known = until.is_some_and(|until| until > now && until + SAME_WAIT >= wanted);
        *until = Some(until.map_or(wanted, |until| until.max(wanted)));
        !known
    }

    /// Waits until the gate is open.
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

/// Returns the reason of a failed response and its requested wait: the hub's own `RateLimit`, else `Retry-After`.
pub(super) fn requested_wait(status: StatusCode, headers: &HeaderMap) -> (String, Option<Wait>) {
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

/// An exhausted limit: `RateLimit: "resolvers";r=0;t=45`, with its `RateLimit-Policy`.
#[derive(Debug, PartialEq, Eq)]
struct RateLimit {
    /// Name of the limit.
    name: String,
    /// Time until it resets.
    reset: Duration,
    /// Requests per window, and the window's length in seconds.
    policy: Option<(u64, u64)>,
}

impl RateLimit {
    fn read(headers: &HeaderMap) -> Option<Self> {
        let text = header_text(headers, &RATE_LIMIT)?;
        let exhausted = |item: &str| {
            let (name, reset) = (quoted(item)?, parameter(item, "t")?);
            (parameter(item, "r")? == 0).then(|| (name.to_owned(), reset))
        };
        // There may be several limits; the last to reset counts.
        let (name, reset) = text
            .split(',')
            .filter_map(exhausted)
            .max_by_key(|(_, reset)| *reset)?;
        let policy = header_text(headers, &RATE_LIMIT_POLICY).unwrap_or_default();
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
                "the rate limit of {requests} requests ({name}) per {seconds} s is exhausted"
            ),
            None => write!(formatter, "the rate limit ({name}) is exhausted"),
        }
    }
}

/// Returns the first quoted string.
fn quoted(item: &str) -> Option<&str> {
    item.split('"').nth(1)
}

/// Returns the integer of `;NAME=NUMBER`.
fn parameter(item: &str, name: &str) -> Option<u64> {
    item.split(';').skip(1).find_map(|part| {
        let (key, value) = part.split_once('=')?;
        (key.trim() == name).then(|| value.trim().parse().ok())?
    })
}

/// Parses `Retry-After`: seconds or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = header_text(headers, &RETRY_AFTER)?;
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = DateTime::parse_from_rfc2822(text.trim()).ok()?;
    let left = (date.with_timezone(&Utc) - Utc::now())
        .to_std()
        .unwrap_or_default();
    // Dates are in whole seconds.
    Some(if left.is_zero() {
        left
    } else {
        left + Duration::from_secs(1)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use reqwest::header::HeaderName;

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
    fn an_exhausted_limit_waits_until_its_reset_and_a_second_more() {
        let requested = |status, all: &[(HeaderName, &str)]| requested_wait(status, &headers(all));
        let many = StatusCode::TOO_MANY_REQUESTS;
        let policy = "\"fixed window\";\"resolvers\";q=3000;w=300";
        let (reason, wait) = requested(
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
        assert!(reason.contains("3000 requests (resolvers) per 300 s"), "{reason}");
        let seconds =
            |status, all: &[(HeaderName, &str)]| requested(status, all).1.map(|wait| wait.time.as_secs());
        assert_eq!(seconds(many, &[(RATE_LIMIT, "\"api\"; r=0; t=0")]), Some(1));
        assert_eq!(
            seconds(many, &[(RATE_LIMIT, "\"api\";r=0;t=5, \"pages\";r=0;t=300")]),
            Some(301)
        );
        // A limit that is not exhausted is not the reason.
        let both = [(RATE_LIMIT, "\"api\";r=9;t=45"), (RETRY_AFTER, "7")];
        assert_eq!(seconds(many, &both), Some(7));
        assert_eq!(seconds(many, &[(RATE_LIMIT, "\"api\";r=9;t=45")]), None);
        // Every response has the header.
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
        fn any_header_is_parsed_or_ignored(text in "[\"a-z;=rt0-9, ]{0,40}") {
            let _ = requested_wait(StatusCode::TOO_MANY_REQUESTS, &headers(&[(RATE_LIMIT, &text), (RATE_LIMIT_POLICY, &text)]));
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
