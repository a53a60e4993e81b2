//! Qwen2.5-VL on libtorch, for medical documents.
//!
//! The modules stand in layers; each imports only those before it (`tests/suite/layers.rs` checks it):
//!
//! | layer | modules |
//! |---|---|
//! | foundation | [`error`], [`version`], [`prompts`], [`random`]: seeded RNGs, [`fs`]: atomic files, [`console`]: messages, progress, signals, [`project`]: the layout on disk |
//! | torch and hardware | [`torch`]: C++ that tch does not bind, [`device`], [`blackwell_compat`], [`distributed`]: process groups, [`kernels`]: CPU and CUDA |
//! | formats | [`checkpoint`]: safetensors folders, [`processing`]: images to patches, text to tokens, [`documents`]: PDF and other files to pages, [`lora`]: PEFT adapters, [`quant`]: NF4, FP4 and AWQ weights, [`records`]: JSON records |
//! | model | [`qwen2_5_vl`], [`generation`]: sampling and stopping, [`engine`]: [`engine::Reader`] loads a folder, [`engine::Engine`] queues requests |
//! | data and measuring | [`hub`], [`rendering`], [`test_documents`]: fixed test sets, [`synthetic`]: generated documents, [`data`], [`evaluation`], [`benchmark`] |
//! | work | [`quantize`], [`training`], [`doctor`], [`pipeline`], [`server`]: the REST API, [`report`] |
//! | face | [`cli`]: every program's command line |
//!
//! Reading one page:
//!
//! ```no_run
//! use medical_vision::engine::{LoadOptions, ReadRequest, Reader};
//! use medical_vision::processing::{DecodeLimits, decode};
//! use medical_vision::prompts::EXTRACTION_PROMPT;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let reader = Reader::load("models/qwen25-vl-nano".as_ref(), &LoadOptions::default())?;
//! let page = decode(&std::fs::read("page.png")?, &DecodeLimits::default())?;
//! let reading = reader.read(&ReadRequest::page(EXTRACTION_PROMPT, page), &mut |_| std::ops::ControlFlow::Continue(()))?;
//! println!("{}", reading.text);
//! # Ok(())
//! # }
//! ```
//!
//! `examples/` has four small programs on the embedded model; `docs/ARCHITECTURE.md` the walks through the code and the glossary.

// Without the pipeline some helpers of lower rooms have no caller.
#![cfg_attr(not(feature = "pipeline"), allow(dead_code, unused_imports))]

#[cfg(feature = "pipeline")]
pub mod benchmark;
pub mod blackwell_compat;
pub mod checkpoint;
pub mod cli;
pub mod console;
#[cfg(feature = "pipeline")]
pub mod data;
pub mod device;
#[cfg(feature = "pipeline")]
pub mod distributed;
pub mod doctor;
pub mod documents;
pub mod engine;
pub mod error;
#[cfg(feature = "pipeline")]
pub mod evaluation;
pub mod fs;
pub mod generation;
#[cfg(feature = "pipeline")]
pub mod hub;
pub mod kernels;
pub mod lora;
#[cfg(feature = "pipeline")]
pub mod offline;
#[cfg(feature = "pipeline")]
pub mod pipeline;
pub mod processing;
pub mod project;
pub mod prompts;
pub mod quant;
#[cfg(feature = "pipeline")]
pub mod quantize;
pub mod qwen2_5_vl;
pub mod random;
pub mod records;
#[cfg(feature = "pipeline")]
pub mod rendering;
#[cfg(feature = "pipeline")]
pub mod report;
#[cfg(feature = "pipeline")]
pub mod server;
#[cfg(feature = "pipeline")]
pub mod synthetic;
#[cfg(feature = "pipeline")]
pub mod test_documents;
pub mod torch;
#[cfg(feature = "pipeline")]
pub mod training;
pub mod version;

pub use error::{Error, Result};
