//! A stub that tells what it was asked, and helpers for requests and errors.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use medical_vision::engine::{
    Answerer, CacheUse, Engine, GeneratedToken, ImageSize, ModelInfo, OnStep, OneByOne, ReadRequest, Reading,
    Step, TokenLogprob, Variant,
};
use medical_vision::error::PromptError;
use medical_vision::generation::FinishReason;
use medical_vision::processing::{Content, PixelBounds};
use medical_vision::server::ServerOptions;
use medical_vision::{Error, Result};
use reqwest::blocking::Response;
use serde_json::{Value, json};

use super::super::support::{Counts, TestServer, eventually, png};

const TOKEN: Duration = Duration::from_millis(5);
/// The context of the model that it stands for.
pub const CONTEXT: usize = 4096;

pub const BOUNDS: PixelBounds = PixelBounds {
    factor: 28,
    min_pixels: 3136,
    max_pixels: 1_003_520,
    max_enlargement: None,
};

/// Stands for the model. The last text says what it does: `sleep MILLISECONDS`, `panic`, `error`, `overflow`, `end REASON`, `say TEXT`;
/// anything else is answered with the request as JSON.
struct Stub {
    variants: Vec<Variant>,
    counts: Arc<Counts>,
}

/// A server around the stub, whose variants are the adapter `notes` (the default), the base `stub` and the adapter `labs`.
pub fn start(options: ServerOptions) -> TestServer {
    let counts = Arc::new(Counts::default());
    let variant = |adapter: Option<&str>| Variant {
        info: ModelInfo {
            model_name: "stub".into(),
            precision: "FP32".into(),
            lora_adapter: adapter.map(str::to_owned),
            device: "cpu".into(),
        },
        bounds: Some(BOUNDS),
    };
    let stub = OneByOne(Stub {
        variants: vec![variant(Some("notes")), variant(None), variant(Some("labs"))],
        counts: counts.clone(),
    });
    let engine = Engine::start(move || Ok(stub), options.engine()).expect("a thread");
    let server = TestServer::around(options, engine, counts);
    eventually("the stub is loaded", || server.health()["model_loaded"] == true);
    server
}

impl Answerer for Stub {
    fn variants(&self) -> &[Variant] {
        &self.variants
    }

    fn read(&self, request: &ReadRequest, on_step: &mut OnStep<'_>) -> Result<Reading> {
        self.counts.started.fetch_add(1, Ordering::SeqCst);
        let images: Vec<ImageSize> = request.images.iter().map(size).collect();
        let last = request.messages.last().expect("a message");
        let prompt = last.content.iter().rev().find_map(|part| match part {
            Content::Text(text) => Some(text.as_str()),
            Content::Image => None,
        });
        let prompt = prompt.unwrap_or_default();
        let mut finish_reason = FinishReason::Stop;
        let mut text = String::new();
        match prompt.split_once(' ').unwrap_or((prompt, "")) {
            ("panic", _) => panic!("CANARY-PANIC"),
            ("error", _) => return Err(Error::NonFinite("CANARY-ERROR".into())),
            ("overflow", _) => {
                return Err(PromptError::ContextOverflow {
                    is_exact: true,
                    needed: 5000 + 1024,
                    prompt_tokens: 5000,
                    new_tokens: 1024,
                    context: CONTEXT,
                }
                .into());
            }
            ("sleep", milliseconds) => {
                let steps = milliseconds.parse::<u64>().expect("a number") / 5;
                for _ in 0..steps {
                    std::thread::sleep(TOKEN);
                    if self.say("token ", request, &mut text, on_step).is_break() {
                        self.counts.cancelled.fetch_add(1, Ordering::SeqCst);
                        finish_reason = FinishReason::Cancelled;
                        break;
                    }
                }
            }
            ("end", reason) => finish_reason = serde_json::from_value(json!(reason)).expect("a reason"),
            ("say", said) => {
                for character in said.chars() {
                    let _ = self.say(&character.to_string(), request, &mut text, on_step);
                }
            }
            _ => {
                let _ = self.say(&asked(request).to_string(), request, &mut text, on_step);
            }
        }
        self.counts.finished.fetch_add(1, Ordering::SeqCst);
        let logprobs = match request.logprobs {
            Some(top) => text.chars().map(|c| token(&c.to_string(), top)).collect(),
            None => Vec::new(),
        };
        Ok(Reading {
            text,
            logprobs,
            images,
            prompt_tokens: 100,
            completion_tokens: 4,
            finish_reason,
            time_to_first_token_seconds: 0.001,
            latency_seconds: 0.002,
            ..Reading::default()
        })
    }
}

impl Stub {
    fn say(
        &self,
        piece: &str,
        request: &ReadRequest,
        text: &mut String,
        on_step: &mut OnStep<'_>,
    ) -> ControlFlow<()> {
        text.push_str(piece);
        let tokens: Vec<_> = request
            .logprobs
            .map(|top| token(piece, top))
            .into_iter()
            .collect();
        on_step(Step {
            text: piece,
            tokens: &tokens,
            generated: Some(CacheUse {
                tokens: 101,
                capacity: CONTEXT,
            }),
        })
    }
}

fn token(text: &str, top: usize) -> GeneratedToken {
    let with = |logprob: f32| TokenLogprob {
        id: 7,
        bytes: text.as_bytes().to_vec(),
        logprob,
    };
    GeneratedToken {
        token: with(-0.5),
        top: (0..top)
            .map(|rank| with(if rank == 0 { -0.5 } else { f32::NEG_INFINITY }))
            .collect(),
    }
}

fn size(picture: &medical_vision::engine::Picture) -> ImageSize {
    let (height, width) = picture.page.original_size();
    let bounds = picture.bounds.unwrap_or(BOUNDS);
    let (resized_height, resized_width) = bounds.scaled(height, width).expect("a size");
    ImageSize {
        width,
        height,
        resized_width,
        resized_height,
        tokens: (resized_width / 28 * (resized_height / 28)) as usize,
    }
}

/// The request as JSON.
fn asked(request: &ReadRequest) -> Value {
    let messages = request.messages.iter().map(|message| {
        let parts = message.content.iter().map(|part| match part {
            Content::Text(text) => json!(text),
            Content::Image => Value::Null,
        });
        json!([
            format!("{:?}", message.role).to_lowercase(),
            parts.collect::<Vec<_>>()
        ])
    });
    let set = &request.overrides;
    json!({
        "messages": messages.collect::<Vec<_>>(),
        "max_new_tokens": set.max_new_tokens,
        "temperature": set.temperature,
        "top_p": set.top_p,
        "top_k": set.top_k,
        "repetition_penalty": set.repetition_penalty,
        "seed": set.seed,
        "stop": set.stop,
        "variant": request.variant,
        "logprobs": request.logprobs,
        "fit_context": request.fit_context,
    })
}

/// A request with one message, and `more`.
pub fn request(text: &str, more: Value) -> Value {
    let mut body = json!({"model": "default", "messages": [{"role": "user", "content": text}]});
    let more = more.as_object().expect("an object").clone();
    body.as_object_mut().expect("an object").extend(more);
    body
}

/// A request whose one message has `parts`.
pub fn with_parts(parts: Value) -> Value {
    json!({"model": "default", "messages": [{"role": "user", "content": parts}]})
}

/// The part of a picture.
pub fn picture(url: &str) -> Value {
    json!({"type": "image_url", "image_url": {"url": url}})
}

pub fn data_uri(media_type: &str, bytes: &[u8]) -> String {
    format!("data:{media_type};base64,{}", STANDARD.encode(bytes))
}

/// A small PNG as a data URI.
pub fn page_uri() -> String {
    data_uri("image/png", &png(56, 84))
}

pub fn post_text(server: &TestServer, body: impl Into<reqwest::blocking::Body>) -> Response {
    let request = server.client.post(server.url("/v1/chat/completions"));
    let request = request.header("content-type", "application/json").body(body);
    request.send().expect("an answer")
}

pub fn post(server: &TestServer, body: &Value) -> Response {
    post_text(server, body.to_string())
}

/// The whole answer.
pub fn completion(server: &TestServer, body: &Value) -> Value {
    let response = post(server, body);
    let status = response.status();
    let text = response.text().expect("a text");
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).expect("JSON")
}

/// What the stub was asked.
pub fn understood(server: &TestServer, body: &Value) -> Value {
    let answer = completion(server, body);
    let content = answer["choices"][0]["message"]["content"]
        .as_str()
        .expect("a text");
    serde_json::from_str(content).expect("JSON")
}

/// Asserts an error's status and form; returns it.
pub fn assert_refused(response: Response, status: u16) -> Value {
    let answered = response.status();
    let text = response.text().expect("a text");
    assert_eq!(answered, status, "{text}");
    let body: Value = serde_json::from_str(&text).expect("errors are JSON");
    let keys = |value: &Value| {
        let keys = value.as_object().expect("an object").keys();
        keys.cloned().collect::<Vec<_>>()
    };
    assert_eq!(keys(&body), ["error"], "{text}");
    assert_eq!(
        keys(&body["error"]),
        ["code", "message", "param", "type"],
        "{text}"
    );
    let kind = if status < 500 {
        "invalid_request_error"
    } else {
        "server_error"
    };
    assert_eq!(body["error"]["type"], kind, "{text}");
    assert!(!body["error"]["message"].as_str().expect("a text").is_empty());
    body["error"].clone()
}

/// Asserts that `body` is refused because of `param`; returns the message.
pub fn refusal(server: &TestServer, body: &Value, code: &str, param: &str) -> String {
    let error = assert_refused(post(server, body), 400);
    assert_eq!(
        (&error["code"], &error["param"]),
        (&json!(code), &json!(param)),
        "{error}"
    );
    error["message"].as_str().expect("a text").to_owned()
}
