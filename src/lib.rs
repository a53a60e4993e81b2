//! Qwen2.5-VL on libtorch, for medical documents.
//!
//! The rooms, in the order data flows:
//!
//! - [`processing`]: image bytes → RGB → patches; messages → chat template → token ids; ids → text.
//! - [`checkpoint`]: Hugging Face model folders: `config.json` and memory-mapped, sharded safetensors.
//! - [`qwen2_5_vl`]: the model and nothing else: vision tower, language model, rotary positions, KV cache.
//! - [`adapters`]: LoRA adapters in PEFT's folders.
//! - [`quant`]: weights in four bits: bitsandbytes' NF4 and FP4.
//! - [`kernels`]: what makes the model fast where libtorch's own operations do not.
//! - [`autograd`]: gradients of what libtorch does not know how to differentiate.
//! - [`generation`]: from logits to an answer: sampling, stop rules, the guard against endless repetition.
//! - [`engine`]: a loaded model folder ([`engine::Reader`]) and the one thread that owns it ([`engine::Engine`]).
//! - [`training`]: a prepared split and a base → an adapter: batches, optimizer, checkpoints, logs.
//! - [`hub`]: models and datasets from a Hugging Face hub, resumed and checked.
//! - [`data`]: published datasets → raw records → pages and their texts.
//! - [`server`]: the REST API over the engine; it knows nothing of tensors.
//! - [`rendering`]: text → page images, in the typeface that comes with the program.
//! - [`documents`]: a generator of clinical documents: pages of any look with exact answers to questions about them.
//! - [`evaluation`]: documents whose content is known, and how an answer about one is scored.
//! - [`benchmark`]: one model reading the test documents, measured.
//! - [`records`]: the JSON records that the pipeline's binaries leave, by the contract with the original.
//! - [`report`]: all records in one: JSON, Markdown, HTML and plots.
//! - [`pipeline`]: all phases in order, each by its own program.
//! - [`environment`]: what the machine and the software on it are, as a record; [`blackwell_compat`]: what one GPU needs.
//! - [`commands`]: the subcommands of `medvision`; [`doctor`]: what is wrong with an installation.
//! - [`cli`], [`paths`], [`device`], [`telemetry`], [`error`]: what every binary shares.
//!
//! Data flows one way: bytes → processing → model → engine → server and command line.

pub mod benchmark;
pub mod blackwell_compat;
pub mod checkpoint;
pub mod cli;
pub mod console;
pub mod data;
pub mod device;
pub mod distributed;
pub mod doctor;
pub mod documents;
pub mod engine;
pub mod error;
pub mod evaluation;
pub mod fs;
pub mod generation;
pub mod hub;
pub mod kernels;
pub mod lora;
pub mod pipeline;
pub mod processing;
pub mod project;
pub mod prompts;
pub mod quant;
pub mod quantize;
pub mod qwen2_5_vl;
pub mod records;
pub mod rendering;
pub mod report;
pub mod server;
pub mod synthetic;
pub mod torch;
pub mod training;
pub mod version;

pub use error::{Error, Result};
