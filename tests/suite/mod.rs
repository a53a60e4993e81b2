//! One module per room of the library, named as the room, or one per program.

mod allocation;
mod bad_input;
mod batch;
mod bench;
mod benchmarks;
mod blackwell;
mod cli;
mod data;
mod distributed;
mod docs;
mod doctor;
mod documents;
mod engine;
mod evaluation;
mod generation;
mod gpu;
mod hub;
mod layers;
mod linking;
mod lora;
mod offline;
mod pipeline;
mod processing;
mod program;
mod quant;
mod quantize;
mod qwen2_5_vl;
mod records;
mod rendering;
mod report;
mod server;
mod test_documents;
mod together;
mod trace;
mod training;
mod validate_environment;

/// The folder `tests/fixtures`.
fn fixtures() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}
