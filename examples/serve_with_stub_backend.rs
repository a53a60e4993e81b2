//! The REST server with a stub instead of a model: starts at once, needs no weights, answers with fixed text.
//! For developing and testing clients.
//!
//!     cargo run --release --example serve_with_stub_backend [PORT]
//!     curl -F file=@datasets/sample/discharge_note.png http://127.0.0.1:8000/extract
//!
//! Routes, limits, queue, error bodies and shutdown are those of the `server` program. Ctrl-C stops it.

use std::ops::ControlFlow;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::web::Data;
use anyhow::Context;
use medical_vision::engine::{Backend, Engine, ModelInfo, ReadRequest, Reading};
use medical_vision::generation::FinishReason;
use medical_vision::server::{self, ServerOptions, ServerState};

/// What the stub "reads" on every page, a word per token.
const ANSWER: &str = "Amoxicillin 500 mg capsules Take 1 capsule 3 times a day";
const TOKEN_TIME: Duration = Duration::from_millis(50);

struct Stub(ModelInfo);

impl Backend for Stub {
    fn info(&self) -> &ModelInfo {
        &self.0
    }

    fn read(
        &mut self,
        _request: &ReadRequest,
        on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> medical_vision::Result<Reading> {
        let start = Instant::now();
        let mut words = Vec::new();
        let mut finish_reason = FinishReason::Stop;
        for word in ANSWER.split(' ') {
            std::thread::sleep(TOKEN_TIME);
            words.push(word);
            // `Break` means that the client has disconnected or a deadline has passed.
            if on_text(word).is_break() {
                finish_reason = FinishReason::Cancelled;
                break;
            }
        }
        Ok(Reading {
            text: words.join(" "),
            tokens: Vec::new(),
            prompt_tokens: 0,
            completion_tokens: words.len(),
            finish_reason,
            time_to_first_token_seconds: TOKEN_TIME.as_secs_f64(),
            latency_seconds: start.elapsed().as_secs_f64(),
        })
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let mut options = ServerOptions::default();
    if let Some(port) = std::env::args().nth(1) {
        options.port = port.parse().context("PORT is a number, 0 for any free port")?;
    }
    let stub = Stub(ModelInfo {
        model_name: "stub".into(),
        precision: "FP32".into(),
        lora_adapter: None,
        device: "cpu".into(),
    });
    actix_web::rt::System::new().block_on(async {
        let listeners = server::bind(&options)?;
        // The engine runs the closure on its own thread; a real one calls `Reader::load` here.
        let engine = Arc::new(Engine::start(move || Ok(stub), options.engine())?);
        let state = ServerState::new(engine, options, "benchmarks".into());
        Ok(server::run(listeners, Data::new(state), |ready| eprintln!("{ready}")).await?)
    })
}
