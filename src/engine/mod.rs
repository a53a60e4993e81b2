//! Inference: a loaded model folder ([`Reader`]), and the thread with a queue that owns it ([`Engine`]).

mod backend;
mod batch;
mod engine_metrics;
mod folder_check;
mod kv_budget;
mod output_stream;
mod prefix_cache;
mod queue;
mod reader;
mod request;
mod sequence;
mod thread;
mod warnings;

pub use self::backend::{Answerer, Backend, OneByOne};
pub use self::batch::PREFILL_SLICE;
pub use self::engine_metrics::EngineMetrics;
pub use self::folder_check::FolderCheck;
pub use self::kv_budget::{kv_budget_bytes, kv_bytes_per_token};
pub use self::queue::Client;
pub use self::reader::{LoadOptions, MAX_PROMPT_CHARACTERS, Reader, UNSAVED_ADAPTER, page_bounds};
pub use self::request::{
    CacheUse, GeneratedToken, ImageSize, ModelInfo, OnStep, Picture, ReadRequest, Reading, Step,
    TokenLogprob, Variant,
};
pub use self::thread::{
    Answer, Engine, EngineError, EngineOptions, EngineState, Load, QueueSlot, StepHandler, Ticket,
};
pub use self::warnings::folder_warnings;
