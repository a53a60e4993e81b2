//! Asks a question about a page and prints the answer while it is generated.
//!
//!     cargo run --release --example stream_answer [PROMPT]
//!
//! The embedded model with its adapter answers the ten medical prompts of `medical_vision::prompts`, no others.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

use medical_vision::engine::{LoadOptions, ReadRequest, Reader};
use medical_vision::generation::FinishReason;
use medical_vision::processing::{DecodeLimits, decode};

const MODEL: &str = "models/qwen25-vl-nano";
const ADAPTER: &str = "models/qwen25-vl-nano-medical-lora";
const PAGE: &str = "datasets/sample/discharge_note.png";
const PROMPT: &str = "List all medications on this page with their doses.";
/// The answer is cut off after this many bytes, to show how.
const MAX_BYTES: usize = 4096;

fn main() -> anyhow::Result<()> {
    let prompt = std::env::args().nth(1).unwrap_or_else(|| PROMPT.to_owned());
    let page = decode(&std::fs::read(PAGE)?, &DecodeLimits::default())?;

    // The adapter is a PEFT folder. It is applied beside the base weights, which stay as they are.
    let options = LoadOptions {
        adapter: Some(ADAPTER.into()),
        ..LoadOptions::default()
    };
    let reader = Reader::load(Path::new(MODEL), &options)?;

    let mut request = ReadRequest::page(prompt, page);
    // Everything that is not set here comes from the folder's generation_config.json.
    request.overrides.max_new_tokens = Some(200);

    // Called after each token with the text that has become final, and without text between the layers of the prefill.
    // An error of the terminal (a closed pipe) ends the answer, as does `Break` for any other reason.
    let mut printed = 0;
    let mut stdout = std::io::stdout().lock();
    let reading = reader.read(&request, &mut |step| {
        printed += step.text.len();
        let written = stdout
            .write_all(step.text.as_bytes())
            .and_then(|()| stdout.flush());
        match written {
            Ok(()) if printed < MAX_BYTES => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        }
    })?;
    writeln!(stdout)?;

    match reading.finish_reason {
        FinishReason::Stop => {}
        reason => eprintln!("the answer is incomplete: {reason:?}"),
    }
    if let Some(rate) = reading.tokens_per_second() {
        let first = reading.time_to_first_token_seconds;
        eprintln!("first token after {first:.2} s, then {rate:.0} tokens/s");
    }
    Ok(())
}
