//! Retries: exponential backoff with jitter, `Retry-After`, and a short deadline until the hub has answered once.

use std::time::Duration;

use chrono::Utc;
use tokio::time::Instant;

use super::failure::{Failure, Wait};
use super::{Hub, repository::Subject};
use crate::error::HubError;
use crate::{Result, console};

const MAX_DELAY: Duration = Duration::from_secs(60);
/// A longer delay is shown to the user.
const SHOWN_DELAY: Duration = Duration::from_secs(2);
/// A longer requested wait ends the run; the hub counts requests in windows of 300 s.
const MAX_WAIT: Duration = Duration::from_secs(310);
/// Deadline for a hub that has not answered yet: there may be no network.
const FIRST_CONTACT: Duration = Duration::from_millis(3_500);

/// Retry state of one operation: attempts without progress, and the delay before the next one.
#[derive(Debug)]
pub(super) struct Backoff<'a> {
    hub: &'a Hub,
    attempts: u32,
    start: Instant,
}

impl<'a> Backoff<'a> {
    pub(super) fn new(hub: &'a Hub) -> Self {
        Self {
            hub,
            attempts: 0,
            start: Instant::now(),
        }
    }

    /// Resets the count after progress.
    pub(super) fn reset(&mut self) {
        self.attempts = 0;
    }

    /// Waits before the next attempt.
    ///
    /// # Errors
    /// The final error, if `failure` is fatal, attempts are exhausted, or the requested wait is too long.
    pub(super) async fn wait(&mut self, subject: Subject<'_>, failure: Failure) -> Result<()> {
        let (reason, wait) = match failure {
            Failure::Fatal(error) => return Err(error),
            Failure::NoNetwork(reason) => return self.wait_for_network(reason).await,
            Failure::Corrupt(reason) => (reason, None),
            Failure::Transient { reason, wait } => (reason, wait),
        };
        self.attempts += 1;
        if self.attempts > self.hub.settings.retries {
            return Err(HubError::Unreachable {
                what: subject.name(),
                reason,
                attempts: self.attempts,
            }
            .into());
        }
        if let Some(Wait { status, time, .. }) = wait.filter(|wait| wait.time > MAX_WAIT) {
            return Err(HubError::RetryAfter {
                what: subject.name(),
                status: status.as_u16(),
                wait: time,
            }
            .into());
        }
        let requested = wait.map_or(Duration::ZERO, |wait| wait.time);
        let delay = self.next_delay().max(requested);
        tracing::debug!(
            seconds = delay.as_secs_f64(),
            attempt = self.attempts,
            "next attempt"
        );
        let for_all = wait.is_some_and(|wait| wait.for_all);
        if for_all && !self.hub.gate.close(delay) {
            // Another task shows it.
            self.hub.gate.pass().await;
        } else if delay >= SHOWN_DELAY {
            let name = if for_all {
                self.hub.endpoint().to_owned()
            } else {
                subject.name()
            };
            count_down(&format!("{name}: {reason}"), delay).await;
        } else {
            tokio::time::sleep(delay).await;
        }
        Ok(())
    }

    fn next_delay(&self) -> Duration {
        let doubled = self.hub.settings.first_delay * 2_u32.pow(self.attempts.saturating_sub(1).min(10));
        let jitter = f64::from(Utc::now().timestamp_subsec_micros() % 1000) / 1000.0;
        doubled.min(MAX_DELAY).mul_f64(0.75 + jitter / 2.0)
    }

    /// Gives up early, since a machine without a network should say so soon.
    async fn wait_for_network(&mut self, reason: String) -> Result<()> {
        self.attempts += 1;
        let delay = self.next_delay();
        if self.attempts > self.hub.settings.retries || self.start.elapsed() + delay > FIRST_CONTACT {
            return Err(self.hub.give_up(reason).into());
        }
        tokio::time::sleep(delay).await;
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
