//! Rate-limited log lines.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Limits a log line that input from outside can trigger to one in ten seconds.
#[derive(Debug)]
pub(crate) struct RateLimit(Mutex<State>);

#[derive(Debug)]
struct State {
    last: Option<Instant>,
    occurrences: u64,
}

impl RateLimit {
    const INTERVAL: Duration = Duration::from_secs(10);

    pub(crate) const fn new() -> Self {
        Self(Mutex::new(State {
            last: None,
            occurrences: 0,
        }))
    }

    /// Counts an occurrence. If a line is due, returns the number of occurrences since the last one.
    pub(crate) fn due(&self) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.occurrences += 1;
        if state.last.is_some_and(|last| last.elapsed() < Self::INTERVAL) {
            return None;
        }
        state.last = Some(Instant::now());
        Some(std::mem::take(&mut state.occurrences))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_is_due_until_the_interval_ends() {
        let limit = RateLimit::new();
        assert_eq!([limit.due(), limit.due(), limit.due()], [Some(1), None, None]);
        limit.0.lock().expect("a state").last = None;
        assert_eq!(limit.due(), Some(3));
    }
}
