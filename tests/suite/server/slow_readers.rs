//! Clients that read a stream slowly or not at all, on the form's route and on the chat's.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::Ordering;

use medical_vision::server::{HttpOptions, ServerOptions};
use serde_json::json;
use socket2::SockRef;

use super::openai::stub::{page_uri, picture, with_parts};
use super::support::{FILE_PART, PROMPT_PART, TestServer, eventually, png, raw_post};

/// A request for a stream.
fn asking(path: &str, prompt: &str) -> Vec<u8> {
    if path == "/v1/chat/completions" {
        let mut body = with_parts(json!([picture(&page_uri()), {"type": "text", "text": prompt}]));
        body["stream"] = json!(true);
        let body = body.to_string();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        );
        return [head, body].concat().into_bytes();
    }
    let page = png(8, 8);
    let parts: [(&str, &[u8]); 3] = [
        (FILE_PART, &page),
        (PROMPT_PART, prompt.as_bytes()),
        ("Content-Disposition: form-data; name=\"stream\"", b"true"),
    ];
    raw_post(path, "b", &parts)
}

/// Asks for a stream with `prompt` and reads nothing but its first byte.
fn unread(server: &TestServer, path: &str, prompt: &str) -> TcpStream {
    let mut client = server.connect();
    SockRef::from(&client)
        .set_recv_buffer_size(4096)
        .expect("an option");
    client.write_all(&asking(path, prompt)).expect("written");
    client.read_exact(&mut [0]).expect("an answer");
    client
}

#[test]
fn a_client_that_reads_too_little_is_cancelled() {
    for (limit, path, error_begins, end) in [
        (64, "/analyze", "event: error\n", "event: done"),
        (64, "/v1/chat/completions", "data: {\"error\":", "data: [DONE]"),
        // As it is where no flag is given.
        (256, "/v1/chat/completions", "data: {\"error\":", "data: [DONE]"),
    ] {
        let mut options = ServerOptions::default();
        if limit != options.stream_buffer_kib {
            options.stream_buffer_kib = limit;
        }
        let server = TestServer::start(options);
        let mut client = unread(&server, path, "flood");
        eventually("it is cancelled", || {
            server.counts.cancelled.load(Ordering::SeqCst) == 1
        });
        eventually("its place is free", || server.engine.admitted() == 0);
        // What it is sent when it reads at last.
        let mut answer = String::new();
        client.read_to_string(&mut answer).expect("a whole answer");
        let error = answer.split(error_begins).nth(1).expect("an error");
        assert!(error.contains(&format!("{limit} KiB")), "{error}");
        if path == "/analyze" {
            assert!(error.contains("\"status\":408"), "{error}");
        }
        assert!(!answer.contains(end), "{path}");
        server.is_well();
    }
}

#[test]
fn a_client_that_reads_nothing_is_disconnected() {
    let server = TestServer::start(ServerOptions {
        // All of it fits, so that only the time counts.
        stream_buffer_kib: 1 << 20,
        http: HttpOptions {
            stall_seconds: 1,
            ..HttpOptions::default()
        },
        ..ServerOptions::default()
    });
    let mut cancelled = 0;
    for path in ["/analyze", "/v1/chat/completions"] {
        // While it is generated, and after the generation has ended.
        for (prompt, cancels) in [("pour 32|WAIT", 1), ("pour 32", 0)] {
            let client = unread(&server, path, prompt);
            eventually("its place is free", || server.engine.admitted() == 0);
            cancelled += cancels;
            let counted = server.counts.cancelled.load(Ordering::SeqCst);
            assert_eq!(counted, cancelled, "{path} {prompt}");
            eventually("it is disconnected", || {
                let mut probe = &client;
                probe.write_all(b"x").is_err()
            });
        }
    }
    server.is_well();
}
