//! Inference: a loaded model folder ([`Reader`]), and the thread with a queue that owns it ([`Engine`]).

mod folder_check;
mod monitor;
mod output_stream;
mod queue;
mod reader;
mod request;
mod thread;
mod warnings;

pub use self::folder_check::FolderCheck;
pub use self::monitor::Monitor;
pub use self::queue::Client;
pub use self::reader::{LoadOptions, MAX_PROMPT_CHARACTERS, Reader, UNSAVED_ADAPTER, page_bounds};
pub use self::request::{
    CacheUse, GeneratedToken, ImageSize, ModelInfo, OnStep, Picture, ReadRequest, Reading, Step,
    TokenLogprob, Variant,
};
pub use self::thread::{
    Answer, Backend, Engine, EngineError, EngineOptions, EngineState, Load, Observer, QueueSlot, Ticket,
};
pub use self::warnings::folder_warnings;
