//! From logits to an answer: options, sampling, stop strings, the guard against repetition.

mod options;
mod repetition;
mod sampling;
mod stop;

use std::path::Path;

use medical_vision::generation::GenerationOptions;

/// The embedded model's options: greedy, everything else off.
fn options() -> GenerationOptions {
    GenerationOptions::from_dir(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/qwen25-vl-nano")).unwrap()
}
