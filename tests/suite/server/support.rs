//! A stub for the model, a server around it, and small helpers.

use std::io::{Cursor, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use actix_web::dev::ServerHandle;
use actix_web::web::Data;
use medical_vision::Result;
use medical_vision::engine::{
    Answerer, CacheUse, Engine, EngineOptions, GeneratedToken, ImageSize, ModelInfo, OnStep, OneByOne,
    Picture, ReadRequest, Reading, Step, TokenLogprob, Variant,
};
use medical_vision::generation::FinishReason;
use medical_vision::processing::{Content, PixelBounds};
use medical_vision::server::{self, ServerOptions, ServerState};
use reqwest::blocking::multipart::{Form, Part};
use reqwest::blocking::{Client, Response};

use super::certificates;

/// How long something that must happen may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);
const TOKEN: Duration = Duration::from_millis(5);
/// The stub's cache, at every token.
const TOKEN_USE: CacheUse = CacheUse {
    tokens: 101,
    capacity: 404,
};

/// What the stub has done.
#[derive(Default)]
pub struct Counts {
    pub started: AtomicUsize,
    pub finished: AtomicUsize,
    pub cancelled: AtomicUsize,
    /// Tokens of `sleep`.
    pub steps: AtomicUsize,
    /// Not done by the stub but awaited: each ends one `WAIT`.
    pub signals: AtomicUsize,
}

/// Stands in for the model. The prompt says what it does: `sleep MILLISECONDS` (in tokens of 5 ms), `panic`, `error`, `flood`
/// (text without an end), `pour MEBIBYTES` of text, `say TEXT`. `say` and `pour` take pieces separated by `|`, each a token;
/// `WAIT` is none but waits for a signal, `PANIC` panics, `ERROR` fails. Anything else is answered at once with
/// `PROMPT|WIDTHxHEIGHT|MAX_NEW_TOKENS|TEMPERATURE|SEED`.
pub struct StubAnswerer {
    variants: Vec<Variant>,
    counts: Arc<Counts>,
}

/// The stub as a backend.
pub type Stub = OneByOne<StubAnswerer>;

impl StubAnswerer {
    pub fn backend(counts: Arc<Counts>) -> Stub {
        let info = ModelInfo {
            model_name: "stub".into(),
            precision: "FP32".into(),
            lora_adapter: None,
            device: "cpu".into(),
        };
        let ward = Variant {
            info: ModelInfo {
                lora_adapter: Some("ward".into()),
                ..info.clone()
            },
            bounds: Some(PixelBounds {
                factor: 28,
                min_pixels: 3136,
                max_pixels: 1_003_520,
                max_enlargement: None,
            }),
        };
        let variants = vec![Variant { info, bounds: None }, ward];
        OneByOne(Self { variants, counts })
    }

    /// Sizes of `picture` as a model with bounds sees it.
    fn size(&self, picture: &Picture, variant: usize) -> ImageSize {
        let page = &picture.page;
        let (height, width) = page.original_size();
        let bounds = picture.bounds.or(self.variants[variant].bounds);
        let resized = bounds.map_or(Ok((height, width)), |bounds| bounds.scaled(height, width));
        let (resized_height, resized_width) = resized.expect("a size");
        ImageSize {
            width,
            height,
            resized_width,
            resized_height,
            tokens: (resized_width * resized_height / (28 * 28)) as usize,
        }
    }

    /// Generates `pieces`; false when it is cancelled.
    fn say(&self, pieces: &[String], request: &ReadRequest, on_step: &mut OnStep<'_>) -> Result<bool> {
        for piece in pieces {
            match piece.as_str() {
                "PANIC" => panic!("CANARY-PANIC"),
                "ERROR" => return Err(medical_vision::Error::NonFinite("CANARY-ERROR".into())),
                "WAIT" => {
                    let taken = |signals: usize| signals.checked_sub(1);
                    let signals = &self.counts.signals;
                    while signals
                        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, taken)
                        .is_err()
                    {
                        std::thread::sleep(TOKEN);
                        if on_step(Step::NONE).is_break() {
                            return Ok(false);
                        }
                    }
                }
                text => {
                    let tokens: Vec<_> = request.logprobs.map(|top| token(text, top)).into_iter().collect();
                    let tokens = &tokens;
                    let generated = Some(TOKEN_USE);
                    if on_step(Step {
                        text,
                        tokens,
                        generated,
                    })
                    .is_break()
                    {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }
}

/// A token with its alternatives.
fn token(text: &str, top: usize) -> GeneratedToken {
    let of = |text: &str, logprob| TokenLogprob {
        id: 1,
        bytes: text.into(),
        logprob,
    };
    GeneratedToken {
        token: of(text, -0.25),
        top: [of(text, -0.25), of("?", f32::NEG_INFINITY)]
            .into_iter()
            .take(top)
            .collect(),
    }
}

impl Answerer for StubAnswerer {
    fn variants(&self) -> &[Variant] {
        &self.variants
    }

    fn read(&self, request: &ReadRequest, on_step: &mut OnStep<'_>) -> Result<Reading> {
        self.counts.started.fetch_add(1, Ordering::SeqCst);
        let begin = Instant::now();
        let prompt = prompt_of(request);
        let picture = &request.images[0];
        let (page, set) = (&picture.page, &request.overrides);
        let mut pieces = Vec::new();
        let mut cancelled = false;
        match prompt.split_once(' ').unwrap_or((prompt, "")) {
            ("panic", _) => panic!("CANARY-PANIC {prompt}"),
            ("error", _) => return Err(medical_vision::Error::NonFinite("CANARY-ERROR".into())),
            ("sleep", milliseconds) => {
                let time = Duration::from_millis(milliseconds.parse().expect("a number"));
                while begin.elapsed() < time && !cancelled {
                    std::thread::sleep(TOKEN);
                    self.counts.steps.fetch_add(1, Ordering::SeqCst);
                    let step = Step {
                        text: "token",
                        tokens: &[],
                        generated: Some(TOKEN_USE),
                    };
                    cancelled = on_step(step).is_break();
                }
            }
            ("flood", _) => {
                let flood = ["x".repeat(16 << 10)];
                while self.say(&flood, request, on_step)? {}
                cancelled = true;
            }
            ("pour", amount) => {
                let (amount, then) = amount.split_once('|').unwrap_or((amount, ""));
                pieces = vec!["x".repeat(1 << 20); amount.parse().expect("a number")];
                pieces.push(then.to_owned());
            }
            ("say", text) => pieces.extend(text.split('|').map(str::to_owned)),
            _ => {}
        }
        if pieces.is_empty() {
            pieces.push(format!(
                "{prompt}|{}x{}|{:?}|{:?}|{:?}",
                page.width, page.height, set.max_new_tokens, set.temperature, set.seed
            ));
        }
        cancelled = cancelled || !self.say(&pieces, request, on_step)?;
        if cancelled {
            self.counts.cancelled.fetch_add(1, Ordering::SeqCst);
        }
        self.counts.finished.fetch_add(1, Ordering::SeqCst);
        pieces.retain(|piece| piece != "WAIT");
        let logprobs = request
            .logprobs
            .map(|top| pieces.iter().map(move |piece| token(piece, top)));
        Ok(Reading {
            text: pieces.concat(),
            tokens: vec![1, 2, 3],
            logprobs: logprobs.into_iter().flatten().collect(),
            images: vec![self.size(picture, request.variant)],
            prompt_tokens: 100,
            cached_tokens: 0,
            completion_tokens: 4,
            finish_reason: if cancelled {
                FinishReason::Cancelled
            } else {
                FinishReason::Stop
            },
            time_to_first_token_seconds: 0.001,
            latency_seconds: begin.elapsed().as_secs_f64(),
        })
    }
}

fn prompt_of(request: &ReadRequest) -> &str {
    let mut contents = request.messages.iter().flat_map(|message| &message.content);
    let text = contents.find_map(|content| match content {
        Content::Text(text) => Some(text.as_str()),
        _ => None,
    });
    text.expect("a prompt")
}

/// A server on a free port, with the stub behind it; ends when dropped.
pub struct TestServer {
    pub address: SocketAddr,
    /// Address of the demo page, if the options have a port for it.
    pub demo: Option<SocketAddr>,
    pub engine: Arc<Engine>,
    pub counts: Arc<Counts>,
    pub client: Client,
    pub root: tempfile::TempDir,
    scheme: &'static str,
    handle: ServerHandle,
    thread: Option<JoinHandle<()>>,
}

impl TestServer {
    pub fn start(options: ServerOptions) -> Self {
        Self::start_with(options, |state| state)
    }

    /// As [`Self::start`], after `change` of the state.
    pub fn start_with(options: ServerOptions, change: impl FnOnce(ServerState) -> ServerState) -> Self {
        let counts = Arc::new(Counts::default());
        let stub = StubAnswerer::backend(counts.clone());
        let engine = Engine::start(move || Ok(stub), options.engine()).expect("a thread");
        let server = Self::serve(options, engine, counts, change);
        eventually("the stub is loaded", || server.health()["model_loaded"] == true);
        server
    }

    /// A server around `engine`, which may be in any state.
    pub fn around(options: ServerOptions, engine: Engine, counts: Arc<Counts>) -> Self {
        Self::serve(options, engine, counts, |state| state)
    }

    fn serve(
        mut options: ServerOptions,
        engine: Engine,
        counts: Arc<Counts>,
        change: impl FnOnce(ServerState) -> ServerState,
    ) -> Self {
        options.port = 0;
        let engine = Arc::new(engine);
        let root = tempfile::tempdir().expect("a folder");
        let listeners = server::bind(&options).expect("a free port");
        let address = listeners.api.local_addr().expect("an address");
        let demo = listeners
            .demo
            .as_ref()
            .map(|demo| demo.local_addr().expect("an address"));
        // The server ends idle connections after 5 s, perhaps while a request is written to one.
        let client = Client::builder().pool_idle_timeout(Duration::from_secs(2));
        let mut client = client.timeout(PATIENCE * 2);
        if options.http.tls.is_some() {
            client = certificates::trusting(client, Some("client"));
        }
        let scheme = options.http.scheme();
        let state = change(ServerState::new(
            engine.clone(),
            options,
            root.path().join("benchmarks"),
        ));
        let (sender, receiver) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            actix_web::rt::System::new().block_on(async move {
                let server = server::listen(listeners, Data::new(state)).expect("a server");
                sender.send(server.handle()).expect("the test waits");
                server.await.expect("a server");
            });
        });
        let handle = receiver.recv_timeout(PATIENCE).expect("a server");
        Self {
            address,
            demo,
            engine,
            counts,
            client: client.build().expect("a client"),
            root,
            scheme,
            handle,
            thread: Some(thread),
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.address)
    }

    /// Drains as on SIGTERM, in the background.
    pub fn drain(&self) {
        drop(self.handle.stop(true));
    }

    pub fn benchmarks(&self) -> PathBuf {
        self.root.path().join("benchmarks")
    }

    pub fn get(&self, path: &str) -> Response {
        self.client.get(self.url(path)).send().expect("an answer")
    }

    pub fn health(&self) -> serde_json::Value {
        self.get("/health").json().expect("JSON")
    }

    pub fn post(&self, path: &str, form: Form) -> Response {
        let request = self.client.post(self.url(path)).multipart(form);
        request.send().expect("an answer")
    }

    /// `/analyze` of a small page.
    pub fn analyze(&self, prompt: &str) -> Response {
        self.post("/analyze", page_form().text("prompt", prompt.to_owned()))
    }

    /// Sends raw bytes and returns all that comes back until the server closes; `None` when it does not.
    pub fn raw(&self, bytes: &[u8]) -> Option<String> {
        let mut stream = self.connect();
        // The server may answer and close while we still write.
        let _ = stream.write_all(bytes);
        read_to_close(&mut stream)
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream
    }

    pub fn is_well(&self) {
        let answer = self.analyze("hello");
        assert_eq!(answer.status(), 200, "the server no longer serves");
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        drop(self.handle.stop(false));
        if let Some(thread) = self.thread.take() {
            let joined = thread.join();
            assert!(joined.is_ok() || std::thread::panicking(), "the server panicked");
        }
    }
}

/// Reads until the other side closes; `None` when it does not within [`PATIENCE`].
pub fn read_to_close(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => bytes.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(_) => return None,
        }
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// A small PNG.
pub fn png(width: u32, height: u32) -> Vec<u8> {
    let picture = image::RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, 128]));
    let mut bytes = Cursor::new(Vec::new());
    picture
        .write_to(&mut bytes, image::ImageFormat::Png)
        .expect("a PNG");
    bytes.into_inner()
}

pub fn file_form(bytes: Vec<u8>) -> Form {
    Form::new().part("file", Part::bytes(bytes).file_name("page.png"))
}

pub fn page_form() -> Form {
    file_form(png(56, 84))
}

/// A multipart request as raw bytes; `parts` are (header lines, content).
pub fn raw_post(path: &str, boundary: &str, parts: &[(&str, &[u8])]) -> Vec<u8> {
    let body = raw_body(boundary, parts);
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: multipart/form-data; boundary={boundary}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(&body);
    request
}

pub fn raw_body(boundary: &str, parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (lines, content) in parts {
        body.extend_from_slice(format!("--{boundary}\r\n{lines}\r\n\r\n").as_bytes());
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    body
}

pub const FILE_PART: &str = "Content-Disposition: form-data; name=\"file\"; filename=\"page.png\"";
pub const PROMPT_PART: &str = "Content-Disposition: form-data; name=\"prompt\"";

/// Status of a raw answer; 0 when the connection was closed without one.
pub fn status_of(answer: &str) -> u16 {
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.unwrap_or(0)
}

/// Tells that a test cannot run here, past the capture of its output; in CI that is a failure.
pub fn skipped(reason: &str) {
    assert!(std::env::var_os("CI").is_none(), "{reason}");
    let _ = writeln!(std::io::stderr(), "skipped: {reason}");
}

/// Waits for `condition`.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Asserts an error's status and form; returns its text.
pub fn assert_error(response: Response, status: u16) -> String {
    assert_eq!(response.status(), status);
    let body: serde_json::Value = response.json().expect("errors are JSON");
    let keys: Vec<&String> = body.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["detail", "timestamp"]);
    assert_utc(&body["timestamp"]);
    body["detail"].as_str().expect("a text").to_owned()
}

pub fn assert_utc(timestamp: &serde_json::Value) {
    let text = timestamp.as_str().expect("a text");
    let time = chrono::DateTime::parse_from_rfc3339(text).expect("RFC 3339");
    assert_eq!(time.offset().local_minus_utc(), 0);
    let age = chrono::Utc::now().signed_duration_since(time);
    assert!(age.num_seconds().abs() < 60, "{text} is not now");
}

pub fn engine_options() -> EngineOptions {
    ServerOptions::default().engine()
}
