//! The audit log: a line before each answer, and nothing of a document in any.

use std::io::BufRead;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use medical_vision::server::{Access, ApiKeys, AuditLog, AuditOptions, KeyScope, NewKey, ServerOptions};
use reqwest::blocking::multipart::{Form, Part};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::binary::server as program;
use super::embedded::Shipped;
use super::support::{TestServer, assert_error, assert_utc, eventually, page_form, png};

struct Audited {
    server: TestServer,
    file: PathBuf,
    key: String,
    _folder: tempfile::TempDir,
}

fn audited(change: impl FnOnce(&mut AuditOptions)) -> Audited {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("audit.jsonl");
    let mut options = AuditOptions {
        file: file.clone(),
        salt_file: None,
        address: false,
    };
    change(&mut options);
    let (log, _) = AuditLog::open(options).expect("a log");
    let new = NewKey::make("ward-3", KeyScope::All).expect("a key");
    let keys = folder.path().join("keys");
    std::fs::write(&keys, new.line).expect("a file");
    let (keys, _) = ApiKeys::load(Some(keys), None).expect("keys");
    let options = ServerOptions {
        demo_port: Some(0),
        ..ServerOptions::default()
    };
    let server = TestServer::start_with(options, |state| {
        let state = state.with_access(Access::with(Arc::new(keys)));
        state.with_audit(Some(Arc::new(log)))
    });
    Audited {
        server,
        file,
        key: new.key,
        _folder: folder,
    }
}

fn lines(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).expect("a log");
    text.lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    format!(
        "sha256:{}",
        digest
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    )
}

impl Audited {
    fn post(&self, path: &str, form: Form) -> reqwest::blocking::Response {
        let request = self
            .server
            .client
            .post(self.server.url(path))
            .bearer_auth(&self.key);
        let request = request.header("x-request-id", "scan-42");
        request.multipart(form).send().expect("an answer")
    }

    fn chat(&self, pictures: &[&[u8]], more: Value) -> reqwest::blocking::Response {
        let parts = pictures.iter().map(|picture| {
            let url = format!("data:image/png;base64,{}", STANDARD.encode(picture));
            json!({"type": "image_url", "image_url": {"url": url}})
        });
        let text = json!({"type": "text", "text": "CANARY-PROMPT"});
        let parts: Vec<_> = parts.chain([text]).collect();
        let mut body = json!({"model": "default", "messages": [{"role": "user", "content": parts}]});
        body.as_object_mut()
            .expect("an object")
            .extend(more.as_object().expect("an object").clone());
        let request = self.server.client.post(self.server.url("/v1/chat/completions"));
        request
            .bearer_auth(&self.key)
            .json(&body)
            .send()
            .expect("an answer")
    }

    fn last(&self) -> Value {
        lines(&self.file).pop().expect("a line")
    }
}

#[test]
fn each_answer_has_its_line() {
    let audited = audited(|_| {});
    let page = png(56, 84);
    let form = page_form().text("prompt", "CANARY-PROMPT");
    assert_eq!(audited.post("/analyze", form).status(), 200);
    let mut line = audited.last();
    assert_utc(&line["time"]);
    assert!(line["seconds"].as_f64().expect("a number") >= 0.0);
    assert!(
        line["version"]
            .as_str()
            .expect("a text")
            .starts_with(env!("CARGO_PKG_VERSION"))
    );
    let keys = line.as_object_mut().expect("an object");
    for key in ["time", "seconds", "version"] {
        keys.remove(key);
    }
    let expected = json!({
        "key": "ward-3", "route": "/analyze", "request_id": "scan-42", "documents": [sha256(&page)], "pages": 1,
        "model": "stub", "adapter": null, "status": 200,
    });
    assert_eq!(line, expected);

    let streamed = audited.post("/extract", page_form().text("stream", "true"));
    assert_eq!(audited.last()["route"], "/extract", "before the first event");
    assert!(streamed.text().expect("a stream").contains("event: done"));

    let other = png(28, 28);
    assert_eq!(audited.chat(&[&page, &other], json!({})).status(), 200);
    let line = audited.last();
    assert_eq!(line["documents"], json!([sha256(&page), sha256(&other)]));
    assert_eq!(
        (&line["pages"], &line["route"]),
        (&json!(2), &json!("/v1/chat/completions"))
    );

    // Documents that cannot be read, and requests that are refused.
    let bad = Form::new().part(
        "file",
        Part::bytes(&b"CANARY-TEXT"[..]).file_name("CANARY-NAME.png"),
    );
    assert_error(audited.post("/extract", bad), 400);
    let line = audited.last();
    assert_eq!(line["documents"], json!([sha256(b"CANARY-TEXT")]));
    assert_eq!((&line["status"], &line["pages"]), (&json!(400), &json!(0)));
    assert_eq!(audited.server.get("/CANARY-PATH?CANARY-QUERY=1").status(), 401);
    let line = audited.last();
    assert_eq!(
        (&line["status"], &line["key"], &line["route"]),
        (&json!(401), &Value::Null, &json!("other"))
    );
    let demo = format!("http://{}/api/v1/models", audited.server.demo.expect("a page"));
    let demo = audited.server.client.get(demo).bearer_auth(&audited.key);
    assert_eq!(demo.send().expect("an answer").status(), 200);
    assert_eq!(audited.last()["route"], "/api/v1/models");

    // Who has no key cannot fill the disk.
    for round in 0..12 {
        let (path, status) = match round % 2 {
            0 => ("/benchmark", 401),
            _ => ("/benchmark?key=x", 400),
        };
        assert_eq!(audited.server.get(path).status(), status);
    }
    let refused = lines(&audited.file);
    let refused = refused.iter().filter(|line| line["key"].is_null()).count();
    assert_eq!(refused, 10);
    let known = audited.server.client.get(audited.server.url("/benchmark?key=x"));
    let known = known.bearer_auth(&audited.key).send().expect("an answer");
    assert_eq!(known.status(), 400);
    assert_eq!(audited.last()["key"], "ward-3", "who sent a key is known");
    let field = page_form().text("max_new_tokens", "0");
    assert_error(audited.post("/extract", field), 422);
    assert_eq!(audited.last()["documents"], json!([sha256(&page)]));

    let count = lines(&audited.file).len();
    for path in ["/health", "/health/live", "/health/ready"] {
        assert_eq!(audited.server.get(path).status(), 200);
    }
    assert_eq!(lines(&audited.file).len(), count, "probes have no line");
    let text = std::fs::read_to_string(&audited.file).expect("a log");
    assert!(!text.contains("CANARY") && !text.contains("127.0.0.1"), "{text}");
    assert!(!text.contains(&audited.key), "{text}");
}

#[test]
fn addresses_and_keyed_digests_are_logged_where_asked_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let salt = folder.path().join("salt");
    std::fs::write(&salt, [7; 32]).expect("a file");
    let audited = audited(|options| {
        options.salt_file = Some(salt);
        options.address = true;
    });
    assert_eq!(audited.post("/extract", page_form()).status(), 200);
    let line = audited.last();
    assert_eq!(line["address"], "127.0.0.1");
    let digest = line["documents"][0].as_str().expect("a text");
    assert!(
        digest.starts_with("hmac-sha256:") && digest.len() == 12 + 64,
        "{digest}"
    );
    assert_eq!(audited.chat(&[&png(56, 84)], json!({})).status(), 200);
    assert_eq!(audited.last()["documents"][0], digest, "the same document");
}

#[test]
fn a_client_that_leaves_has_a_line_too() {
    let audited = audited(|_| {});
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let client = reqwest::blocking::Client::builder().timeout(std::time::Duration::from_millis(300));
            let request = client
                .build()
                .expect("a client")
                .post(audited.server.url("/analyze"));
            let request = request
                .bearer_auth(&audited.key)
                .multipart(page_form().text("prompt", "say a|WAIT"));
            request.send().expect_err("it gives up");
        });
    });
    eventually("its line is written", || {
        lines(&audited.file)
            .last()
            .is_some_and(|line| line["status"] == 499)
    });
}

#[test]
fn what_cannot_be_logged_is_not_answered() {
    let folder = tempfile::tempdir().expect("a folder");
    let full = folder.path().join("full");
    std::os::unix::fs::symlink("/dev/full", &full).expect("a link");
    let audited = audited(|options| options.file = full);
    let answer = audited.post("/extract", page_form());
    assert!(answer.headers().contains_key("retry-after"));
    let detail = assert_error(answer, 503);
    assert!(detail.contains("audit log"), "{detail}");
    let answer = audited.post("/extract", page_form().text("stream", "true"));
    assert_error(answer, 503);
    let answer = audited.chat(&[&png(28, 28)], json!({"stream": true}));
    assert_eq!(answer.status(), 503);
    let error: Value = answer.json().expect("JSON");
    assert_eq!(error["error"]["type"], "server_error");
    assert_eq!(audited.server.get("/health").status(), 200, "the server is up");
    eventually("streams are cancelled", || audited.server.engine.admitted() == 0);
}

#[test]
fn readiness_returns_when_there_is_room_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("audit.jsonl");
    let path = file.to_str().expect("UTF-8");
    let limit = |bytes: libc::rlim_t| libc::rlimit {
        rlim_cur: bytes,
        rlim_max: libc::RLIM_INFINITY,
    };
    let server = Shipped::launch("models/qwen25-vl-nano", &["--audit-log", path], |command| {
        let small = limit(1000);
        // SAFETY: both calls are async-signal-safe and change only the new process.
        unsafe {
            command.pre_exec(move || {
                libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
                match libc::setrlimit(libc::RLIMIT_FSIZE, &raw const small) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
    });
    let server = server.loaded();
    let get = |path: &str| server.client.get(server.url(path)).send().expect("an answer");
    let mut answers = 0;
    while get("/v1/models").status() == 200 {
        answers += 1;
        assert!(answers < 100, "a file of 1000 bytes is never full");
    }
    assert_eq!(lines(&file).len(), answers, "no half line");
    assert_eq!(
        assert_error(get("/health/ready"), 503),
        "the audit log cannot be written"
    );
    assert_eq!(get("/v1/models").status(), 503);
    let large = limit(libc::RLIM_INFINITY);
    let child = libc::pid_t::try_from(server.child.id()).expect("an id");
    // SAFETY: `large` is valid for the length of the call; the old limit is not asked for.
    let failed = unsafe { libc::prlimit(child, libc::RLIMIT_FSIZE, &raw const large, std::ptr::null_mut()) };
    assert_eq!(failed, 0);
    assert_eq!(get("/health/ready").status(), 200);
    assert_eq!(get("/v1/models").status(), 200);
    assert_eq!(lines(&file).len(), answers + 1);
}

#[test]
fn a_log_that_others_can_read_is_warned_of() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("audit.jsonl");
    std::fs::write(&file, "").expect("a file");
    let path = file.to_str().expect("UTF-8");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).expect("a mode");
    let server = Shipped::start("models/qwen25-vl-nano", &["--audit-log", path]);
    let warnings = || {
        server
            .log()
            .matches("other users can read this file (mode 644)")
            .count()
    };
    assert_eq!(warnings(), 1, "{}", server.log());
    server.signal(libc::SIGHUP);
    eventually("it is warned of again", || warnings() == 2);
    // One of its own is its own.
    std::fs::remove_file(&file).expect("gone");
    server.signal(libc::SIGHUP);
    eventually("it is there again", || {
        server.log().matches("reloaded: audit log").count() == 2 && file.exists()
    });
    assert_eq!(warnings(), 2, "{}", server.log());
}

#[test]
fn unusable_files_are_named_before_the_model_is_loaded() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).to_str().expect("UTF-8").to_owned();
    std::fs::write(path("salt"), "short").expect("a file");
    for (flags, code, expected) in [
        (vec!["--audit-log".to_owned(), path("no/audit")], 1, "--audit-log"),
        (vec!["--audit-log".to_owned(), path("")], 1, "--audit-log"),
        (
            vec![
                "--audit-log".to_owned(),
                path("a"),
                "--audit-salt-file".to_owned(),
                path("salt"),
            ],
            1,
            "shorter than 16 bytes",
        ),
        (
            vec!["--audit-salt-file".to_owned(), path("salt")],
            2,
            "--audit-log",
        ),
    ] {
        let flags: Vec<_> = flags.iter().map(String::as_str).collect();
        let arguments = [&["--port", "0", "--model", "models/qwen25-vl-nano"], &flags[..]].concat();
        let output = program(&arguments).output().expect("the server runs");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{error}");
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_thousand_requests_and_a_kill_leave_a_line_for_every_answer() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("audit.jsonl");
    let path = file.to_str().expect("UTF-8");
    let server = Shipped::start("models/qwen25-vl-nano", &["--audit-log", path, "--queue", "20"]).loaded();
    let (answered, sent) = (Mutex::new(Vec::new()), AtomicUsize::new(0));
    let moved = folder.path().join("audit.1.jsonl");
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                loop {
                    let number = sent.fetch_add(1, Ordering::SeqCst);
                    if number >= 1000 {
                        return;
                    }
                    // Every twentieth is a page; the others are refused as soon as they are looked at.
                    let mut document = format!("CANARY-DOCUMENT-{number}").into_bytes();
                    if number % 20 == 0 {
                        document = png(28, 28);
                    }
                    let part = Part::bytes(document).file_name("CANARY-NAME");
                    let form = Form::new().part("file", part).text("max_new_tokens", "1");
                    let form = form.text("prompt", "CANARY-PROMPT");
                    let request = server.client.post(server.url("/analyze")).multipart(form);
                    match request.send() {
                        Ok(response) => {
                            let id = response.headers()["x-request-id"]
                                .to_str()
                                .expect("a text")
                                .to_owned();
                            let status = response.status().as_u16();
                            answered.lock().expect("no panic").push((id, status));
                        }
                        // It was killed.
                        Err(_) => return,
                    }
                }
            });
        }
        eventually("half is answered", || {
            answered.lock().expect("no panic").len() > 450
        });
        std::fs::rename(&file, &moved).expect("moved, as logrotate does");
        server.signal(libc::SIGHUP);
        eventually("most is answered", || {
            answered.lock().expect("no panic").len() > 900
        });
        server.signal(libc::SIGKILL);
    });
    let mut logged = std::collections::HashMap::new();
    for log in [&moved, &file] {
        let bytes = std::fs::read(log).expect("a log");
        assert!(!bytes.windows(6).any(|window| window == b"CANARY"));
        for line in bytes.lines() {
            let line: Value = serde_json::from_str(&line.expect("UTF-8")).expect("JSON");
            let id = line["request_id"].as_str().expect("a text").to_owned();
            assert!(
                logged.insert(id, line["status"].clone()).is_none(),
                "two lines: {line}"
            );
        }
    }
    let answered = answered.into_inner().expect("no panic");
    assert!(answered.len() > 900 && answered.iter().any(|(_, status)| *status == 200));
    for (id, status) in answered {
        assert_eq!(logged.get(&id), Some(&json!(status)), "{id}");
    }
    assert!(!server.log().contains("CANARY"));
}
