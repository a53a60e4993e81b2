//! What every handler shares.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::Semaphore;

use super::options::{MAX_DECODES, ServerOptions};
use super::types::GpuFigures;
use crate::engine::Engine;

/// Uploads take memory in steps of this many bytes.
pub(super) const UPLOAD_STEP_BYTES: usize = 64 * 1024;
/// Large answers take memory in steps of this many bytes.
pub(super) const ANSWER_STEP_BYTES: usize = 64 * 1024;
/// Bytes of large answers held in memory at the same time, until their readers have taken them.
const ANSWER_MEMORY_BYTES: usize = 128 * 1024 * 1024;

/// What every handler shares.
pub struct ServerState {
    /// The model's thread.
    pub engine: Arc<Engine>,
    /// Flags and limits.
    pub options: ServerOptions,
    /// Folder that `/benchmark` reads.
    pub benchmarks: PathBuf,
    /// What `/health` says about the accelerator; must not block.
    pub gpu: Box<dyn Fn() -> GpuFigures + Send + Sync>,
    /// One permit a decoding.
    pub(super) decodes: Arc<Semaphore>,
    /// One permit a KiB of decoders' memory and of decoded pages that wait.
    pub(super) decoded: Arc<Semaphore>,
    /// One permit a step of upload memory.
    pub(super) upload_steps: Arc<Semaphore>,
    /// The permit to go on when there is no upload memory left: uploads that are half there would wait for each other.
    pub(super) last_upload: Arc<Semaphore>,
    /// One permit a step of memory for large answers.
    pub(super) answer_steps: Arc<Semaphore>,
    /// The permit to read the benchmark records.
    pub(super) benchmark_turn: Arc<Semaphore>,
}

impl ServerState {
    /// State for a server on a CPU that serves the records in `benchmarks`.
    pub fn new(engine: Arc<Engine>, options: ServerOptions, benchmarks: PathBuf) -> Self {
        let steps = options.upload_memory_bytes() / UPLOAD_STEP_BYTES as u64;
        Self {
            engine,
            benchmarks,
            gpu: Box::new(GpuFigures::default),
            decodes: Arc::new(Semaphore::new(MAX_DECODES)),
            decoded: Arc::new(Semaphore::new(options.decoded_kib() as usize)),
            upload_steps: Arc::new(Semaphore::new(
                usize::try_from(steps)
                    .unwrap_or(usize::MAX)
                    .min(Semaphore::MAX_PERMITS),
            )),
            last_upload: Arc::new(Semaphore::new(1)),
            answer_steps: Arc::new(Semaphore::new(ANSWER_MEMORY_BYTES / ANSWER_STEP_BYTES)),
            benchmark_turn: Arc::new(Semaphore::new(1)),
            options,
        }
    }

    /// The same state with another answer about the accelerator.
    pub fn with_gpu(mut self, gpu: impl Fn() -> GpuFigures + Send + Sync + 'static) -> Self {
        self.gpu = Box::new(gpu);
        self
    }
}
