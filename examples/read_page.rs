//! Reads the text of a page with the embedded model.
//!
//!     cargo run --release --example read_page [PAGE]
//!
//! PAGE is a PNG, JPEG, TIFF, WebP, BMP or GIF; the default is the sample page of this repository.

use std::ops::ControlFlow;
use std::path::Path;

use anyhow::Context;
use medical_vision::engine::{LoadOptions, ReadRequest, Reader};
use medical_vision::processing::{DecodeLimits, decode};
use medical_vision::prompts::EXTRACTION_PROMPT;

/// Any Qwen2.5-VL folder as transformers saves it works here: F32, F16, BF16, NF4 or AWQ.
const MODEL: &str = "models/qwen25-vl-nano";
const SAMPLE: &str = "datasets/sample/discharge_note.png";

fn main() -> anyhow::Result<()> {
    let path = std::env::args().nth(1).unwrap_or_else(|| SAMPLE.to_owned());

    // The file type is detected from the content. The limits bound what a hostile file can claim memory for.
    let bytes = std::fs::read(&path).with_context(|| path.clone())?;
    let page = decode(&bytes, &DecodeLimits::default()).with_context(|| path.clone())?;

    // The defaults load on the CPU in f32. A GPU: `device: tch::Device::Cuda(0)`; a LoRA adapter: `adapter: Some(folder)`.
    let reader = Reader::load(Path::new(MODEL), &LoadOptions::default())?;

    // A request is a conversation with images; `page` makes the common one: one image, one instruction.
    let request = ReadRequest::page(EXTRACTION_PROMPT, page);

    // The callback sees the text while it is generated (see `stream_answer.rs`). Here only the result matters.
    let reading = reader.read(&request, &mut |_| ControlFlow::Continue(()))?;

    println!("{}", reading.text);
    eprintln!(
        "{} prompt tokens, {} generated in {:.2} s, finished by {:?}",
        reading.prompt_tokens, reading.completion_tokens, reading.latency_seconds, reading.finish_reason
    );
    Ok(())
}
