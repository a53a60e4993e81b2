//! Quantizes the embedded model to NF4 in a temporary folder and compares it with the original: size, text, logits.
//!
//!     cargo run --release --example quantize_and_compare

use std::ops::ControlFlow;
use std::path::Path;

use medical_vision::data::calibration_pages;
use medical_vision::engine::{LoadOptions, ReadRequest, Reader};
use medical_vision::processing::{DecodeLimits, RgbPage, decode};
use medical_vision::project::Project;
use medical_vision::prompts::EXTRACTION_PROMPT;
use medical_vision::quantize::nf4::{Nf4Options, quantize_folder};
use medical_vision::quantize::{Watch, measure};
use tch::Device;

const MODEL: &str = "models/qwen25-vl-nano";
const PAGE: &str = "tests/fixtures/pages/small_strip_rx.png";

fn main() -> anyhow::Result<()> {
    let base = Path::new(MODEL);
    let folder = tempfile::tempdir()?;
    let quantized = folder.path().join("nano-nf4");

    // Writes a complete model folder in bitsandbytes' layout; transformers loads it, too.
    quantize_folder(base, &quantized, &Nf4Options::default(), Watch::none())?;
    println!("size: {} KiB, NF4 {} KiB", kib(base)?, kib(&quantized)?);

    // The same page, read by both.
    let page = decode(&std::fs::read(PAGE)?, &DecodeLimits::default())?;
    let (original, in_four_bits) = (read(base, &page)?, read(&quantized, &page)?);
    println!("text:\n{original}\ntext, NF4:\n{in_four_bits}");

    // Both get calibration pages with their text and predict each next token. `hidden` keeps the original's last hidden
    // states, from which the second call computes the original's logits.
    let pages = calibration_pages(&Project::open(None)?, 2)?.pages;
    let before = measure(base, &pages, Device::Cpu, None)?;
    let after = measure(&quantized, &pages, Device::Cpu, Some(&before.hidden))?;
    println!(
        "top-1 token accuracy: {:.2} %, NF4 {:.2} %",
        before.accuracy.token_accuracy_pct, after.accuracy.token_accuracy_pct
    );
    if let Some(outputs) = after.accuracy.outputs {
        println!(
            "logits: mean cosine similarity {:.6}, largest difference {:.3}",
            outputs.output_cosine, outputs.output_max_abs
        );
    }
    Ok(())
}

fn read(model: &Path, page: &RgbPage) -> anyhow::Result<String> {
    let reader = Reader::load(model, &LoadOptions::default())?;
    let request = ReadRequest::page(EXTRACTION_PROMPT, page.clone());
    let reading = reader.read(&request, &mut |_| ControlFlow::Continue(()))?;
    Ok(reading.text)
}

/// Size of a folder's weights.
fn kib(folder: &Path) -> std::io::Result<u64> {
    let weights = std::fs::metadata(folder.join("model.safetensors"))?;
    Ok(weights.len() / 1024)
}
