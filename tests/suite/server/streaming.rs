//! Streamed answers: order of events, what a client sees and when, clients that leave, faults after the first byte.

use std::io::{BufRead, BufReader, Read};
use std::sync::atomic::Ordering;

use medical_vision::server::{HttpOptions, ServerOptions};
use reqwest::blocking::multipart::Form;
use reqwest::blocking::{Client, Response};
use serde_json::{Value, json};

use super::support::{
    FILE_PART, PROMPT_PART, TestServer, assert_error, assert_utc, eventually, file_form, page_form, png,
    raw_post, status_of,
};

/// What a stream consists of.
#[derive(Debug, PartialEq)]
pub enum Item {
    Comment(String),
    Event(String, Value),
}

/// Reads a stream as a browser does.
pub struct EventReader<R> {
    lines: BufReader<R>,
}

impl<R: Read> EventReader<R> {
    pub fn new(stream: R) -> Self {
        let lines = BufReader::new(stream);
        Self { lines }
    }

    /// The next event or comment; `None` at the end.
    pub fn item(&mut self) -> Option<Item> {
        let (mut name, mut data) = (String::new(), Vec::new());
        loop {
            let mut line = String::new();
            if self.lines.read_line(&mut line).expect("a whole stream") == 0 {
                assert!(name.is_empty() && data.is_empty(), "an event without an end");
                return None;
            }
            let line = line.strip_suffix('\n').expect("a whole line");
            if line.is_empty() {
                if data.is_empty() {
                    continue;
                }
                let data = serde_json::from_str(&data.join("\n")).expect("JSON");
                return Some(Item::Event(name, data));
            }
            match line.split_once(": ").expect("a field") {
                ("", comment) => return Some(Item::Comment(comment.to_owned())),
                ("event", value) => name = value.to_owned(),
                ("data", value) => data.push(value.to_owned()),
                (other, _) => panic!("an unknown field: {other}"),
            }
        }
    }

    /// The next event, comments skipped.
    pub fn event(&mut self) -> Option<(String, Value)> {
        loop {
            match self.item()? {
                Item::Comment(_) => {}
                Item::Event(name, data) => return Some((name, data)),
            }
        }
    }

    pub fn expect(&mut self, name: &str) -> Value {
        let (found, data) = self.event().expect("an event");
        assert_eq!(found, name, "{data}");
        data
    }

    /// All events until the end.
    pub fn rest(&mut self) -> Vec<(String, Value)> {
        std::iter::from_fn(|| self.event()).collect()
    }
}

/// The stream in `response`.
pub fn events(response: Response) -> EventReader<Response> {
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    EventReader::new(response)
}

/// The joined text of all deltas.
pub fn joined(events: &[(String, Value)]) -> String {
    let deltas = events.iter().filter(|(name, _)| name == "delta");
    let texts = deltas.map(|(_, data)| data["text"].as_str().expect("a text"));
    texts.collect()
}

/// The UTF-8 text of `tokens`.
pub fn text_of(tokens: &Value) -> String {
    let tokens = tokens.as_array().expect("tokens").iter();
    let bytes = tokens.flat_map(|token| token["bytes"].as_array().expect("bytes"));
    let bytes = bytes.map(|byte| u8::try_from(byte.as_u64().expect("a number")).expect("a byte"));
    String::from_utf8(bytes.collect()).expect("UTF-8")
}

/// An answer without what differs from one reading to the next.
pub fn timeless(mut answer: Value) -> Value {
    for key in [
        "inference_latency_seconds",
        "time_to_first_token_seconds",
        "queue_seconds",
        "timestamp",
    ] {
        answer.as_object_mut().expect("an object").remove(key).expect(key);
    }
    for page in answer["pages"].as_array_mut().expect("pages") {
        page.as_object_mut()
            .expect("an object")
            .remove("seconds")
            .expect("seconds");
    }
    answer
}

fn form(prompt: &str) -> Form {
    page_form().text("prompt", prompt.to_owned())
}

fn stream(server: &TestServer, prompt: &str) -> EventReader<Response> {
    events(server.post("/analyze", form(prompt).text("stream", "true")))
}

fn go(server: &TestServer) {
    server.counts.signals.fetch_add(1, Ordering::SeqCst);
}

fn started(server: &TestServer, requests: usize) {
    eventually("it runs", || {
        server.counts.started.load(Ordering::SeqCst) == requests
    });
}

#[test]
fn a_stream_is_the_answer_in_pieces() {
    let server = TestServer::start(ServerOptions::default());
    for path in ["/analyze", "/extract"] {
        let with_logprobs = |stream: &str| {
            form("say Hgb |9.2 |g/dL, |Größe 1,7 m")
                .text("logprobs", "true")
                .text("stream", stream.to_owned())
        };
        let whole: Value = server.post(path, with_logprobs("false")).json().expect("JSON");
        let response = server.post(path, with_logprobs("true"));
        for (name, value) in [
            ("cache-control", "no-store"),
            ("x-accel-buffering", "no"),
            ("x-content-type-options", "nosniff"),
        ] {
            assert_eq!(response.headers()[name], value);
        }
        let mut events = events(response);
        assert_eq!(events.expect("queued"), json!({"before": 0}));
        let rest = events.rest();
        let (last, deltas) = rest.split_last().expect("events");
        assert!(deltas.iter().all(|(name, _)| name == "delta"), "{rest:?}");
        let (name, done) = last;
        assert_eq!(name, "done");
        assert_utc(&done["timestamp"]);
        assert_eq!(timeless(done.clone()), timeless(whole));
        let key = if path == "/extract" {
            "extracted_content"
        } else {
            "analysis"
        };
        assert_eq!(done[key], joined(deltas));
        let size = json!({"width": 56, "height": 84, "resized_width": 56, "resized_height": 84, "tokens": 6});
        assert_eq!(done["image"], size);
        let tokens = deltas
            .iter()
            .flat_map(|(_, data)| data["logprobs"].as_array().expect("tokens"));
        let tokens: Value = tokens.cloned().collect();
        assert_eq!(tokens, done["logprobs"]);
        if path == "/analyze" {
            assert_eq!(text_of(&tokens), "Hgb 9.2 g/dL, Größe 1,7 m");
        }
    }
}

#[test]
fn a_whole_answer_has_logprobs_only_where_asked_for() {
    let server = TestServer::start(ServerOptions::default());
    let plain: Value = server
        .post("/analyze", form("say Hgb |9.2"))
        .json()
        .expect("JSON");
    assert!(plain.get("logprobs").is_none(), "{plain}");
    let asked = form("say Hgb |9.2").text("logprobs", "true");
    let asked: Value = server.post("/analyze", asked).json().expect("JSON");
    assert_eq!(
        asked["logprobs"][1],
        json!({
            "token": "9.2", "bytes": [57, 46, 50], "logprob": -0.25,
            "top_logprobs": [
                {"token": "9.2", "bytes": [57, 46, 50], "logprob": -0.25},
                {"token": "?", "bytes": [63], "logprob": -9999.0},
            ],
        })
    );
    let deltas = stream(&server, "say Hgb |9.2").rest();
    assert!(deltas.iter().all(|(_, data)| data.get("logprobs").is_none()));
}

#[test]
fn text_is_sent_before_the_answer_is_complete() {
    let server = TestServer::start(ServerOptions::default());
    let mut events = stream(&server, "say first|WAIT|second");
    events.expect("queued");
    assert_eq!(events.expect("delta"), json!({"text": "first"}));
    assert_eq!(
        server.counts.finished.load(Ordering::SeqCst),
        0,
        "it waits for the signal"
    );
    go(&server);
    assert_eq!(events.expect("delta"), json!({"text": "second"}));
    assert_eq!(events.expect("done")["analysis"], "firstsecond");
    assert_eq!(events.item(), None);
}

#[test]
fn characters_are_whole_however_long_the_text_is() {
    let server = TestServer::start(ServerOptions::default());
    // Longer than a chunk of the body, which may end within a character.
    let text = "€ä𝛼".repeat(2_500);
    let events = stream(&server, &format!("say {text}")).rest();
    assert_eq!(joined(&events), text);
}

#[test]
fn the_place_in_the_queue_is_told_when_it_changes() {
    let server = TestServer::start(ServerOptions::default());
    let mut first = stream(&server, "say a|WAIT");
    assert_eq!(first.expect("queued"), json!({"before": 0}));
    started(&server, 1);
    let mut second = stream(&server, "say b|WAIT");
    let mut third = stream(&server, "say c|WAIT");
    assert_eq!(second.expect("queued"), json!({"before": 1}));
    assert_eq!(third.expect("queued"), json!({"before": 2}));
    go(&server);
    first.expect("delta");
    first.expect("done");
    assert_eq!(second.expect("queued"), json!({"before": 0}));
    assert_eq!(third.expect("queued"), json!({"before": 1}));
    // One that leaves the queue counts, too.
    let mut fourth = stream(&server, "say d|WAIT");
    assert_eq!(fourth.expect("queued"), json!({"before": 2}));
    drop(third);
    assert_eq!(fourth.expect("queued"), json!({"before": 1}));
    drop(second);
    assert_eq!(fourth.expect("queued"), json!({"before": 0}));
}

#[test]
fn a_quiet_stream_gets_comments() {
    let server = TestServer::start(ServerOptions {
        stream_keep_alive_seconds: 1,
        ..ServerOptions::default()
    });
    // Before its first token, as while a model looks at the page, and between two.
    let mut running = stream(&server, "say WAIT|a|WAIT");
    running.expect("queued");
    let mut waiting = stream(&server, "say b");
    waiting.expect("queued");
    let comments = |quiet: &mut EventReader<Response>| {
        for _ in 0..2 {
            assert_eq!(quiet.item(), Some(Item::Comment("keep-alive".into())));
        }
    };
    comments(&mut running);
    go(&server);
    running.expect("delta");
    comments(&mut running);
    comments(&mut waiting);
    go(&server);
    running.expect("done");
    waiting.expect("queued");
    waiting.expect("delta");
    waiting.expect("done");
}

#[test]
fn a_disconnect_cancels_running_and_waiting_streams() {
    let server = TestServer::start(ServerOptions::default());
    let mut running = stream(&server, "say a|WAIT");
    running.expect("queued");
    running.expect("delta");
    let mut waiting = stream(&server, "say b");
    waiting.expect("queued");
    assert_eq!(server.engine.admitted(), 2);
    drop(waiting);
    eventually("its place is free", || server.engine.admitted() == 1);
    drop(running);
    eventually("it is cancelled", || {
        server.counts.cancelled.load(Ordering::SeqCst) == 1
    });
    eventually("both are gone", || server.engine.admitted() == 0);
    server.is_well();
    assert_eq!(
        server.counts.started.load(Ordering::SeqCst),
        2,
        "and the last check"
    );
}

#[test]
fn faults_after_the_first_byte_are_error_events() {
    let server = TestServer::start(ServerOptions::default());
    for prompt in ["say a|PANIC", "say a|ERROR"] {
        let mut events = stream(&server, prompt);
        events.expect("queued");
        assert_eq!(events.expect("delta"), json!({"text": "a"}));
        let error = events.expect("error");
        assert_eq!(error["status"], 500);
        assert_utc(&error["timestamp"]);
        let detail = error["detail"].as_str().expect("a text");
        assert!(
            detail.contains("internal error") && !detail.contains("CANARY"),
            "{detail}"
        );
        assert_eq!(error.as_object().expect("an object").len(), 3);
        assert_eq!(events.item(), None);
    }
    server.is_well();
}

#[test]
fn deadlines_are_error_events() {
    let server = TestServer::start(ServerOptions {
        queue_deadline_seconds: 1,
        generation_deadline_seconds: 3,
        ..ServerOptions::default()
    });
    let mut running = stream(&server, "say a|WAIT");
    running.expect("queued");
    let mut waiting = stream(&server, "say b");
    assert_eq!(waiting.expect("queued"), json!({"before": 1}));
    assert_eq!(waiting.expect("error")["status"], 503);
    assert_eq!(waiting.item(), None);
    running.expect("delta");
    assert_eq!(running.expect("error")["status"], 504);
    assert_eq!(running.item(), None);
}

#[test]
fn errors_before_the_first_byte_are_ordinary_answers() {
    let server = TestServer::start(ServerOptions {
        queue: 0,
        ..ServerOptions::default()
    });
    let ask = |form: Form| server.post("/analyze", form.text("stream", "true"));
    assert_error(ask(Form::new().text("prompt", "p")), 422);
    assert_error(ask(file_form(b"not a picture".to_vec())), 400);
    let mut running = stream(&server, "say a|WAIT");
    running.expect("queued");
    running.expect("delta");
    let refused = ask(form("one too many"));
    assert!(refused.headers().contains_key("retry-after"));
    assert_error(refused, 503);
    server.engine.close();
    assert_error(ask(form("too late")), 503);
    // Closing lets the running one end.
    go(&server);
    running.expect("done");
}

#[test]
fn waiting_streams_end_when_the_server_stops() {
    let server = TestServer::start(ServerOptions::default());
    let mut running = stream(&server, "say a|WAIT");
    running.expect("queued");
    started(&server, 1);
    let mut waiting = stream(&server, "say b");
    waiting.expect("queued");
    server.engine.reject_queued();
    let last = waiting.rest();
    let (name, error) = last.last().expect("an event");
    assert_eq!((name.as_str(), &error["status"]), ("error", &json!(503)));
}

#[test]
fn a_streams_connection_counts_until_its_end() {
    let server = TestServer::start(ServerOptions {
        http: HttpOptions {
            max_connections: 1,
            ..HttpOptions::default()
        },
        ..ServerOptions::default()
    });
    let fresh = || {
        Client::builder()
            .pool_max_idle_per_host(0)
            .build()
            .expect("a client")
    };
    let ask = || {
        fresh()
            .post(server.url("/analyze"))
            .multipart(form("say x"))
            .send()
            .expect("an answer")
    };
    let request = server.client.post(server.url("/analyze"));
    let request = request.multipart(form("say a|WAIT").text("stream", "true"));
    let mut running = events(request.send().expect("an answer"));
    running.expect("queued");
    // Idle connections may be evicted; this one is not idle although nothing is sent.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let detail = assert_error(ask(), 503);
    assert!(detail.contains("connections"), "{detail}");
    go(&server);
    running.expect("delta");
    running.expect("done");
}

#[test]
fn fields_of_streams_are_validated() {
    let server = TestServer::start(ServerOptions::default());
    let post = |field: &str, value: &str| {
        server.post("/extract", form("say x").text(field.to_owned(), value.to_owned()))
    };
    for (field, values) in [
        ("stream", ["1", "yes", "TRUE", "null"]),
        ("logprobs", ["5", "yes", "False", "-"]),
        ("min_pixels", ["-1", "1.5", "NaN", "18446744073709551616"]),
        ("max_pixels", ["-1", "1.5", "NaN", "many"]),
        ("adapter", ["ward-2", "../ward", "WARD", "None"]),
    ] {
        for value in values {
            let detail = assert_error(post(field, value), 422);
            assert!(detail.starts_with(field), "{detail}");
        }
        assert_eq!(post(field, " ").status(), 200, "blank is absent");
        let twice = form("say x").text(field, "").text(field, "");
        let detail = assert_error(server.post("/extract", twice), 400);
        assert!(detail.contains(field), "{detail}");
    }
    let names = assert_error(post("adapter", "ward-2"), 422);
    assert!(names.ends_with("default, none, ward"), "{names}");
}

#[test]
fn a_request_chooses_adapter_and_page_size() {
    let server = TestServer::start(ServerOptions::default());
    let read = |fields: &[(&'static str, &str)]| {
        let form = file_form(png(560, 840)).text("prompt", "say x");
        let form = fields.iter().fold(form, |form, (field, value)| {
            form.text(*field, (*value).to_owned())
        });
        server.post("/analyze", form)
    };
    let body = |fields: &[(&'static str, &str)]| -> Value { read(fields).json().expect("JSON") };
    for adapter in ["default", "none"] {
        assert_eq!(
            body(&[("adapter", adapter)])["model_info"]["lora_adapter"],
            Value::Null
        );
    }
    let ward = body(&[("adapter", "ward")]);
    assert_eq!(ward["model_info"]["lora_adapter"], "ward");
    assert_eq!(ward["image"]["width"], 560);
    // The stub says what it is given: a page that was scaled while it was decoded.
    let small = body(&[("adapter", "ward"), ("max_pixels", "50000")]);
    let image = &small["image"];
    assert_eq!((&image["width"], &image["height"]), (&json!(560), &json!(840)));
    let side = |name: &str| image[name].as_u64().expect("a number");
    assert!(
        side("resized_width") * side("resized_height") <= 50_000,
        "{image}"
    );
    for (field, value) in [
        ("max_pixels", "783"),
        ("max_pixels", "1003521"),
        ("min_pixels", "0"),
        ("min_pixels", "1003521"),
    ] {
        let detail = assert_error(read(&[("adapter", "ward"), (field, value)]), 422);
        assert_eq!(detail, format!("{field}: must be from 784 to 1003520"));
    }
    let crossed = [
        ("adapter", "ward"),
        ("min_pixels", "5000"),
        ("max_pixels", "4000"),
    ];
    let detail = assert_error(read(&crossed), 422);
    assert!(detail.starts_with("min_pixels: "), "{detail}");
}

#[test]
fn a_raw_stream_is_well_framed() {
    let server = TestServer::start(ServerOptions::default());
    let page = png(8, 8);
    let parts: [(&str, &[u8]); 3] = [
        (FILE_PART, &page),
        (PROMPT_PART, b"say a\r\n\r\ndata: b"),
        ("Content-Disposition: form-data; name=\"stream\"", b"true"),
    ];
    let answer = server.raw(&raw_post("/analyze", "b", &parts)).expect("closed");
    assert_eq!(status_of(&answer), 200);
    assert!(
        answer.contains("event: delta\ndata: {\"text\":\"a\\r\\n\\r\\ndata: b\"}\n\n"),
        "{answer}"
    );
    assert!(
        answer.to_ascii_lowercase().contains("transfer-encoding: chunked"),
        "{answer}"
    );
    assert!(answer.ends_with("0\r\n\r\n"), "{answer}");
}
