//! Streams whose page waits for the memory that other pages hold.

use std::io::{BufRead, BufReader};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use medical_vision::server::{AuditLog, AuditOptions, ServerOptions};
use reqwest::blocking::Response;
use serde_json::{Value, json};

use super::openai::stub::{data_uri, picture, post, with_parts};
use super::streaming::{EventReader, Item, events};
use super::support::{TestServer, eventually, file_form, png};

/// A server whose memory for pages is so full, until its running request ends, that no other page is decoded.
struct Crowded {
    server: TestServer,
    running: EventReader<Response>,
    folder: tempfile::TempDir,
}

fn crowded(queue_deadline_seconds: u64) -> Crowded {
    let folder = tempfile::tempdir().expect("a folder");
    let options = AuditOptions {
        file: folder.path().join("audit.jsonl"),
        salt_file: None,
        address: false,
    };
    let (log, _) = AuditLog::open(options).expect("a log");
    let options = ServerOptions {
        stream_keep_alive_seconds: 1,
        queue_deadline_seconds,
        // A page of 4 megapixels is 11.4 MiB, and 48 MiB more while it is decoded. Beside one a chat can be parsed, as long as no page
        // waits before it, and no page be decoded.
        max_megapixels: 4,
        max_decoded_mib: 60,
        ..ServerOptions::default()
    };
    let server = TestServer::start_with(options, |state| state.with_audit(Some(Arc::new(log))));
    let form = file_form(png(2000, 2000)).text("prompt", "say a|WAIT");
    let mut running = events(server.post("/analyze", form.text("stream", "true")));
    running.expect("queued");
    running.expect("delta");
    Crowded {
        server,
        running,
        folder,
    }
}

impl Crowded {
    fn ask(&self, path: &str, page: Vec<u8>) -> Response {
        let response = if path.starts_with("/v1") {
            let page = picture(&data_uri("image/png", &page));
            let mut body = with_parts(json!([page, {"type": "text", "text": "say b"}]));
            body["stream"] = json!(true);
            post(&self.server, &body)
        } else {
            let form = file_form(page).text("prompt", "say b");
            self.server.post(path, form.text("stream", "true"))
        };
        assert_eq!(response.status(), 200, "{path}");
        response
    }

    /// Ends what holds the memory.
    fn go(&mut self) {
        self.server.counts.signals.fetch_add(1, Ordering::SeqCst);
        self.running.expect("done");
    }

    fn audited(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.folder.path().join("audit.jsonl")).expect("a log");
        text.lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    }
}

/// A PNG whose header is right and whose picture is not.
fn spoiled() -> Vec<u8> {
    let mut page = png(56, 84);
    let data = page
        .windows(4)
        .position(|four| four == b"IDAT")
        .expect("a picture")
        + 4;
    page[data..].fill(0xff);
    page
}

/// Two comments, then the events of a chat.
fn chat_after_comments(response: Response) -> impl FnMut() -> Option<String> {
    let mut lines = BufReader::new(response).lines();
    let mut next = move || loop {
        let line = lines.next()?.expect("a whole stream");
        match line.strip_prefix("data: ") {
            Some(data) => return Some(data.to_owned()),
            None if line.is_empty() => {}
            None => return Some(line),
        }
    };
    for _ in 0..2 {
        assert_eq!(next().as_deref(), Some(": keep-alive"));
    }
    move || loop {
        match next()? {
            comment if comment == ": keep-alive" => {}
            data => return Some(data),
        }
    }
}

#[test]
fn a_stream_gets_comments_before_its_page_is_decoded() {
    let mut crowded = crowded(600);
    let mut chat = chat_after_comments(crowded.ask("/v1/chat/completions", png(56, 84)));
    let mut forms: Vec<_> = ["/extract", "/analyze"]
        .into_iter()
        .map(|path| events(crowded.ask(path, png(56, 84))))
        .collect();
    for form in &mut forms {
        for _ in 0..2 {
            assert_eq!(form.item(), Some(Item::Comment("keep-alive".into())));
        }
    }
    // The line of a stream says what was sent, before it is decoded.
    let lines = crowded.audited();
    assert_eq!(lines.len(), 4);
    for line in lines {
        assert_eq!(
            (&line["pages"], &line["model"], &line["status"]),
            (&json!(1), &json!("stub"), &json!(200)),
            "{line}"
        );
    }
    crowded.go();
    for form in &mut forms {
        let rest = form.rest();
        let names: Vec<&str> = rest.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names.iter().filter(|name| **name == "delta").count(), 1);
        assert_eq!((names[0], names.last()), ("queued", Some(&"done")));
    }
    let all: Vec<String> = std::iter::from_fn(&mut chat).collect();
    let (done, chunks) = all.split_last().expect("events");
    let chunks: Vec<Value> = chunks
        .iter()
        .map(|chunk| serde_json::from_str(chunk).expect("JSON"))
        .collect();
    assert_eq!(done, "[DONE]");
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(chunks[1]["choices"][0]["delta"]["content"], "b");
    assert_eq!(chunks[2]["choices"][0]["finish_reason"], "stop");
}

#[test]
fn errors_after_the_first_comment_are_events() {
    // A page that turns out to be none.
    let mut late = crowded(600);
    let chat = late.ask("/v1/chat/completions", spoiled());
    let form = events(late.ask("/analyze", spoiled()));
    late.go();
    assert_errors(form, chat, 400, "invalid_request_error");
    let metrics = late.server.get("/metrics").text().expect("a text");
    assert!(
        metrics.contains("medvision_rejected_total{reason=\"invalid_image\"} 2"),
        "{metrics}"
    );
    // No turn in time.
    let late = crowded(3);
    let chat = late.ask("/v1/chat/completions", png(56, 84));
    let form = events(late.ask("/extract", png(56, 84)));
    assert_errors(form, chat, 503, "server_error");
    eventually("their places are free", || late.server.engine.admitted() == 1);
}

fn assert_errors(mut form: EventReader<Response>, chat: Response, status: u16, kind: &str) {
    assert_eq!(form.item(), Some(Item::Comment("keep-alive".into())));
    let (name, error) = form.event().expect("an event");
    assert_eq!(name, "error");
    assert_eq!(error["status"], status, "{error}");
    assert_eq!(form.item(), None);
    let text = chat.text().expect("a text");
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(lines[0], ": keep-alive");
    let events: Vec<_> = lines.iter().filter(|line| **line != ": keep-alive").collect();
    assert_eq!(events.len(), 1, "an error without [DONE]: {text}");
    let data = events[0].strip_prefix("data: ").expect("an event");
    let error: Value = serde_json::from_str(data).expect("JSON");
    assert_eq!(error["error"]["type"], kind, "{error}");
}

#[test]
fn leaving_before_the_page_is_decoded_frees_the_slot() {
    let mut crowded = crowded(600);
    let chat = crowded.ask("/v1/chat/completions", png(56, 84));
    let mut form = events(crowded.ask("/analyze", png(56, 84)));
    form.item();
    assert_eq!(crowded.server.engine.admitted(), 3);
    drop((form, chat));
    eventually("their places are free", || crowded.server.engine.admitted() == 1);
    crowded.go();
    assert_eq!(crowded.server.counts.started.load(Ordering::SeqCst), 1);
    crowded.server.is_well();
}
