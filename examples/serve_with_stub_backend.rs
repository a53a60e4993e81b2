//! The REST server with a stub instead of a model: starts at once, needs no weights, answers with fixed text.
//! For developing and testing clients.
//!
//!     cargo run --release --example serve_with_stub_backend [PORT]
//!     curl -F file=@datasets/sample/discharge_note.png http://127.0.0.1:8000/extract
//!
//! Routes, limits, queue, error bodies and shutdown are those of the `server` program. Ctrl-C stops it.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::web::Data;
use anyhow::Context;
use medical_vision::engine::{
    Answerer, CacheUse, Engine, ModelInfo, OnStep, OneByOne, ReadRequest, Reading, Step, Variant,
};
use medical_vision::generation::FinishReason;
use medical_vision::server::{self, ServerOptions, ServerState};

/// What the stub "reads" on every page, a word per token.
const ANSWER: &str = "Amoxicillin 500 mg capsules Take 1 capsule 3 times a day";
const TOKEN_TIME: Duration = Duration::from_millis(50);

struct Stub(Vec<Variant>);

impl Answerer for Stub {
    fn variants(&self) -> &[Variant] {
        &self.0
    }

    fn read(&self, _request: &ReadRequest, on_step: &mut OnStep<'_>) -> medical_vision::Result<Reading> {
        let start = Instant::now();
        let mut words = Vec::new();
        let mut finish_reason = FinishReason::Stop;
        for word in ANSWER.split(' ') {
            std::thread::sleep(TOKEN_TIME);
            words.push(word);
            // `Break` means that the client has disconnected or a deadline has passed.
            let step = Step {
                text: word,
                generated: Some(CacheUse {
                    tokens: words.len(),
                    capacity: ANSWER.len(),
                }),
                ..Step::NONE
            };
            if on_step(step).is_break() {
                finish_reason = FinishReason::Cancelled;
                break;
            }
        }
        Ok(Reading {
            text: words.join(" "),
            completion_tokens: words.len(),
            finish_reason,
            time_to_first_token_seconds: TOKEN_TIME.as_secs_f64(),
            latency_seconds: start.elapsed().as_secs_f64(),
            ..Reading::default()
        })
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let mut options = ServerOptions::default();
    if let Some(port) = std::env::args().nth(1) {
        options.port = port.parse().context("PORT is a number, 0 for any free port")?;
    }
    let stub = Stub(vec![Variant {
        info: ModelInfo {
            model_name: "stub".into(),
            precision: "FP32".into(),
            lora_adapter: None,
            device: "cpu".into(),
        },
        bounds: None,
    }]);
    actix_web::rt::System::new().block_on(async {
        let listeners = server::bind(&options)?;
        // The engine runs the closure on its own thread; a real one calls `Reader::load` here.
        let engine = Arc::new(Engine::start(move || Ok(OneByOne(stub)), options.engine())?);
        let state = ServerState::new(engine, options, "benchmarks".into());
        Ok(server::run(listeners, Data::new(state), |ready| eprintln!("{ready}")).await?)
    })
}
