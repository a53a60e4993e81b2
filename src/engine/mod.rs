//! A loaded model folder ([`Reader`]) and the one thread that owns it ([`Engine`]).

mod reader;

pub use self::reader::{LoadOptions, ModelInfo, Precision, ReadRequest, Reader, Reading};
