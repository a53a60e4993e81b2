//! What the engine tells of its work: figures for a [`EngineMetrics`], and a line in the log.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{CacheUse, Reading};

/// Is told what the engine does, on the engine's thread, which it must not block. Readings whose client has left count, too.
pub trait EngineMetrics: Send + Sync {
    /// A request has its turn, `waited` after its first byte.
    fn begun(&self, waited: Duration);

    /// A token was generated; `since_previous` is `None` for the first one of a reading.
    fn token(&self, since_turn: Duration, since_previous: Option<Duration>);

    /// How full the key-value caches of all running requests are together, after each token and end.
    fn cache(&self, all: CacheUse);

    /// A reading has ended, `since_turn` after [`Self::begun`]; `None`: it failed.
    fn ended(&self, since_turn: Duration, reading: Option<&Reading>);
}

/// Times of one reading, for the metrics, if there is one.
pub(super) struct Watch {
    metrics: Option<Arc<dyn EngineMetrics>>,
    turn: Instant,
    previous: Option<Instant>,
}

impl Watch {
    /// Begins at `turn` the reading of a request that began `arrival`.
    pub(super) fn begin(metrics: Option<Arc<dyn EngineMetrics>>, arrival: Instant, turn: Instant) -> Self {
        if let Some(metrics) = &metrics {
            metrics.begun(turn.saturating_duration_since(arrival));
        }
        Self {
            metrics,
            turn,
            previous: None,
        }
    }

    /// A token was generated at `now`; `all`: caches of all that run.
    pub(super) fn token(&mut self, now: Instant, all: CacheUse) {
        if let Some(metrics) = &self.metrics {
            metrics.cache(all);
            let since = |earlier| now.saturating_duration_since(earlier);
            metrics.token(since(self.turn), self.previous.map(since));
            self.previous = Some(now);
        }
    }

    /// The reading has ended.
    pub(super) fn end(self, reading: Option<&Reading>, all: CacheUse) {
        if let Some(metrics) = self.metrics {
            metrics.cache(all);
            metrics.ended(self.turn.elapsed(), reading);
        }
    }
}

/// Logs token counts and times of a reading, without any content; `wasted_tokens` were generated after its client had left.
pub(super) fn log_figures(reading: &Reading, queue_seconds: f64, wasted_tokens: usize) {
    tracing::info!(
        prompt_tokens = reading.prompt_tokens,
        cached_tokens = reading.cached_tokens,
        completion_tokens = reading.completion_tokens,
        finish_reason = reading.finish_reason.name(),
        seconds = reading.latency_seconds,
        first_token_seconds = reading.time_to_first_token_seconds,
        queue_seconds,
        wasted_tokens,
        "page read",
    );
}
