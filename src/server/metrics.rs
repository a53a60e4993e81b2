//! `GET /metrics`: counters and histograms for Prometheus.
//!
//! The HTTP layer ([`HttpMetrics`]) and the engine ([`EngineMetrics`]) report what they do; what can be asked for at any time is set when the
//! metrics are read. No label holds a client's text: routes are patterns, everything else is one of a few words. `deploy/metrics.txt`
//! lists names and labels.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::http::StatusCode;
use actix_web::web::Data;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::prometheus_text::{CONTENT_TYPE, encode};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry};

use super::errors::{ApiError, REASONS, parser_reason};
use super::http::HttpMetrics;
use super::state::ServerState;
use crate::documents::DOCUMENT_KINDS;
use crate::engine::{CacheUse, EngineMetrics, Reading};
use crate::version::{commit, package_version};

/// The route of the metrics; [`crate::server::KeyScope::Metrics`] is for it.
pub(super) const ROUTE: &str = "/metrics";
/// The route of requests that match none.
const NO_ROUTE: &str = "other";
/// The kind of files that are no document.
const NO_KIND: &str = "other";

/// Upper bounds of buckets, seconds.
const QUEUE: [f64; 14] = [
    0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0,
];
const FIRST_TOKEN: [f64; 13] = [
    0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0,
];
const INTER_TOKEN: [f64; 13] = [
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5,
];
const READING: [f64; 13] = [
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0,
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Page {
    kind: &'static str,
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// All metrics of a server.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    requests: Family<Answered, Counter>,
    rejected: Family<Reason, Counter>,
    running: Gauge,
    waiting: Gauge,
    queue_seconds: Histogram,
    first_token_seconds: Histogram,
    inter_token_seconds: Histogram,
    reading_seconds: Histogram,
    image_tokens: Counter,
    text_tokens: Counter,
    generated_tokens: Counter,
    pages: Family<Page, Counter>,
    gpu_memory: Family<Kind, Gauge>,
    cache_use: Gauge<f64, AtomicU64>,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let mut registry = Registry::with_prefix("medvision");
        let build = Info::new([("version", package_version()), ("commit", commit())]);
        registry.register("build", "Version and commit of the server", build);
        let mut add = Adder(&mut registry);
        let tokens: Family<Kind, Counter> = add.metric(
            "tokens",
            "Tokens of pages, of prompts, and generated",
            Family::default(),
        );
        let of_kind = |kind| tokens.get_or_create_owned(&Kind { kind });
        let metrics = Self {
            requests: add.metric(
                "requests",
                "Answered requests; status 499: the client left",
                Family::default(),
            ),
            rejected: add.metric(
                "rejected",
                "Requests that were refused or failed",
                Family::default(),
            ),
            running: add.metric("requests_running", "Requests whose turn it is", Gauge::default()),
            waiting: add.metric("requests_waiting", "Requests in the queue", Gauge::default()),
            queue_seconds: add.histogram("queue", "From a request's first byte to its turn", QUEUE),
            first_token_seconds: add.histogram(
                "first_token",
                "From a request's turn to its first token",
                FIRST_TOKEN,
            ),
            inter_token_seconds: add.histogram("inter_token", "Between two tokens of a reading", INTER_TOKEN),
            reading_seconds: add.histogram("reading", "From a request's turn to its end", READING),
            image_tokens: of_kind("image"),
            text_tokens: of_kind("text"),
            generated_tokens: of_kind("generated"),
            pages: add.metric("pages", "Pages by file type, decoded or not", Family::default()),
            gpu_memory: add.metric("gpu_memory_bytes", "Memory of the GPU", Family::default()),
            cache_use: add.metric(
                "kv_cache_usage_ratio",
                "Share of the running requests' key-value caches in use",
                Gauge::default(),
            ),
            registry,
        };
        // A rate begins at 0, not at the first event.
        for reason in REASONS {
            metrics.rejected.get_or_create(&Reason { reason }).inc_by(0);
        }
        for kind in DOCUMENT_KINDS.into_iter().chain([NO_KIND]) {
            for status in ["read", "failed"] {
                metrics.pages.get_or_create(&Page { kind, status }).inc_by(0);
            }
        }
        metrics
    }

    /// A request was refused or failed, whole or in its stream.
    pub(super) fn rejected(&self, error: &ApiError) {
        self.count_reason(error.reason());
    }

    fn count_reason(&self, reason: &'static str) {
        self.rejected.get_or_create(&Reason { reason }).inc();
    }

    /// A page of a file of `kind`, if it is a document, was decoded, or not.
    pub(super) fn page(&self, kind: Option<&'static str>, decoded: bool) {
        let kind = kind.unwrap_or(NO_KIND);
        let status = if decoded { "read" } else { "failed" };
        self.pages.get_or_create(&Page { kind, status }).inc();
    }
}

/// Registers metrics.
struct Adder<'r>(&'r mut Registry);

impl Adder<'_> {
    fn metric<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.0.register(name, help, metric.clone());
        metric
    }

    fn histogram<const N: usize>(&mut self, name: &str, help: &str, buckets: [f64; N]) -> Histogram {
        self.metric(&format!("{name}_seconds"), help, Histogram::new(buckets))
    }
}

impl HttpMetrics for Metrics {
    fn answered(&self, route: Option<&str>, status: u16) {
        let route = route.unwrap_or(NO_ROUTE).to_owned();
        self.requests.get_or_create(&Answered { route, status }).inc();
    }

    fn rejected(&self, error: &ApiError) {
        Metrics::rejected(self, error);
    }

    fn refused(&self, status: StatusCode) {
        self.answered(None, status.as_u16());
        self.count_reason(parser_reason(status));
    }
}

impl EngineMetrics for Metrics {
    fn begun(&self, waited: Duration) {
        self.queue_seconds.observe(waited.as_secs_f64());
    }

    fn token(&self, since_turn: Duration, since_previous: Option<Duration>) {
        match since_previous {
            None => self.first_token_seconds.observe(since_turn.as_secs_f64()),
            Some(time) => self.inter_token_seconds.observe(time.as_secs_f64()),
        }
        self.generated_tokens.inc();
    }

    fn cache(&self, all: CacheUse) {
        self.cache_use.set(all.tokens as f64 / all.capacity.max(1) as f64);
    }

    fn ended(&self, since_turn: Duration, reading: Option<&Reading>) {
        self.reading_seconds.observe(since_turn.as_secs_f64());
        if let Some(reading) = reading {
            let image: usize = reading.images.iter().map(|image| image.tokens).sum();
            self.image_tokens.inc_by(image as u64);
            self.text_tokens
                .inc_by(reading.prompt_tokens.saturating_sub(image) as u64);
        }
    }
}

/// Counters and histograms in Prometheus's text format.
#[utoipa::path(
    get,
    path = "/metrics",
    responses((status = 200, description = "Prometheus's text format, version 0.0.4; the metrics are in docs/DEPLOYMENT.md", body = String, content_type = "text/plain"))
)]
pub(super) async fn metrics(state: Data<ServerState>) -> Result<HttpResponse, ApiError> {
    let metrics = &state.metrics;
    let load = state.engine.load();
    let count = |requests| i64::try_from(requests).unwrap_or(i64::MAX);
    metrics.running.set(count(load.running));
    metrics.waiting.set(count(load.waiting));
    let gpu = (state.gpu)();
    if gpu.available {
        let bytes = |mib: f64| (mib * f64::from(1 << 20)).round() as i64;
        for (kind, mib) in [("used", gpu.used_mb), ("total", gpu.total_mb)] {
            metrics.gpu_memory.get_or_create(&Kind { kind }).set(bytes(mib));
        }
    }
    let mut text = String::new();
    encode(&mut text, &metrics.registry).map_err(|_| ApiError::Internal)?;
    Ok(HttpResponse::Ok().content_type(CONTENT_TYPE).body(text))
}
