//! Shared state of all handlers.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::Semaphore;

use super::access::Access;
use super::audit::AuditLog;
use super::http::Stopping;
use super::metrics::Metrics;
use super::options::{MAX_DECODES, ServerOptions};
use super::types::GpuFigures;
use crate::device::host_memory;
use crate::documents::Decoder;
use crate::engine::Engine;

/// Granularity of the upload memory budget.
pub(super) const UPLOAD_PERMIT_BYTES: usize = 64 * 1024;
/// Granularity of the memory budget for large responses.
pub(super) const RESPONSE_PERMIT_BYTES: usize = 64 * 1024;
/// Memory budget for large responses that are being sent.
const RESPONSE_MEMORY_BYTES: usize = 128 * 1024 * 1024;

/// Shared state of all handlers.
pub struct ServerState {
    /// The engine.
    pub engine: Arc<Engine>,
    /// Flags and limits.
    pub options: ServerOptions,
    /// Folder of the records for `/benchmark`.
    pub benchmarks: PathBuf,
    /// GPU figures for `/health`; must not block.
    pub gpu: Box<dyn Fn() -> GpuFigures + Send + Sync>,
    /// Who may call the API.
    pub access: Access,
    /// The audit log, if one is kept.
    pub(super) audit: Option<Arc<AuditLog>>,
    /// What `/metrics` shows.
    pub(super) metrics: Arc<Metrics>,
    /// Whether the server is about to stop: readiness is over.
    pub(super) stopping: Stopping,
    /// Memory of the machine, bytes; `None` if unknown.
    pub(super) machine_memory: Option<u64>,
    /// Where PDF is decoded.
    pub(super) decoder: Decoder,
    /// One permit per concurrent decoding.
    pub(super) decode_permits: Arc<Semaphore>,
    /// One permit per KiB for decoding and for decoded pages in the queue.
    pub(super) image_memory: Arc<Semaphore>,
    /// One permit per [`UPLOAD_PERMIT_BYTES`] of upload memory.
    pub(super) upload_permits: Arc<Semaphore>,
    /// Permit for one upload to exceed the budget; otherwise partial uploads could deadlock.
    pub(super) oversize_upload: Arc<Semaphore>,
    /// One permit per [`RESPONSE_PERMIT_BYTES`] of memory for large responses.
    pub(super) response_permits: Arc<Semaphore>,
    /// Permit to decode the pictures of a request with several.
    pub(super) several_pictures: Semaphore,
    /// Start, Unix seconds.
    pub(super) started: i64,
    /// Permit to read the benchmark records.
    pub(super) benchmark_permit: Arc<Semaphore>,
}

impl ServerState {
    /// State of a CPU server that serves the records in `benchmarks`. `engine` reports to its metrics from now on.
    pub fn new(engine: Arc<Engine>, options: ServerOptions, benchmarks: PathBuf) -> Self {
        let metrics = Arc::new(Metrics::new());
        engine.report_to(metrics.clone());
        let permits = options.upload_memory_bytes() / UPLOAD_PERMIT_BYTES as u64;
        Self {
            engine,
            benchmarks,
            gpu: Box::new(GpuFigures::default),
            access: Access::default(),
            audit: None,
            metrics,
            stopping: Stopping::default(),
            machine_memory: host_memory().map(|memory| memory.total_bytes),
            decoder: Decoder::in_process(),
            decode_permits: Arc::new(Semaphore::new(MAX_DECODES)),
            image_memory: Arc::new(Semaphore::new(options.decoded_kib() as usize)),
            upload_permits: Arc::new(Semaphore::new(
                usize::try_from(permits)
                    .unwrap_or(usize::MAX)
                    .min(Semaphore::MAX_PERMITS),
            )),
            oversize_upload: Arc::new(Semaphore::new(1)),
            response_permits: Arc::new(Semaphore::new(RESPONSE_MEMORY_BYTES / RESPONSE_PERMIT_BYTES)),
            several_pictures: Semaphore::new(1),
            started: chrono::Utc::now().timestamp(),
            benchmark_permit: Arc::new(Semaphore::new(1)),
            options,
        }
    }

    /// Whether the server is about to stop.
    pub fn is_draining(&self) -> bool {
        self.stopping.is_set() || self.engine.is_closed()
    }

    /// Sets who may call the API; default: everybody.
    pub fn with_access(mut self, access: Access) -> Self {
        self.access = access;
        self
    }

    /// Sets the audit log; default: none.
    pub fn with_audit(mut self, log: Option<Arc<AuditLog>>) -> Self {
        self.audit = log;
        self
    }

    /// Sets where PDF is decoded; default: in this process, without a limit of memory.
    pub fn with_decoder(mut self, decoder: Decoder) -> Self {
        self.decoder = decoder;
        self
    }

    /// Sets the source of GPU figures.
    pub fn with_gpu(mut self, gpu: impl Fn() -> GpuFigures + Send + Sync + 'static) -> Self {
        self.gpu = Box::new(gpu);
        self
    }
}
