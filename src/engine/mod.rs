//! A loaded model folder ([`Reader`]) and the one thread that owns it ([`Engine`]).

mod answer;
mod check;
mod reader;
mod thread;
mod warnings;

pub use self::check::FolderCheck;
pub use self::reader::{
    LoadOptions, MAX_PROMPT_CHARACTERS, ModelInfo, Precision, ReadRequest, Reader, Reading, page_bounds,
};
pub use self::thread::{Answer, Backend, Engine, EngineError, EngineOptions, EngineState, Place, Ticket};
pub use self::warnings::folder_warnings;
