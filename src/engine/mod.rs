//! A loaded model folder ([`Reader`]) and the one thread that owns it ([`Engine`]).

mod answer;
mod prompt;
mod reader;
mod thread;
mod warnings;

pub use self::prompt::EXTRACTION_PROMPT;
pub use self::reader::{
    LoadOptions, MAX_PROMPT_CHARACTERS, ModelInfo, Precision, ReadRequest, Reader, Reading,
};
pub use self::thread::{Answer, Backend, Engine, EngineError, EngineOptions, EngineState, Place, Ticket};
pub use self::warnings::folder_warnings;
