//! Connections: heads that are too large or slow, the parser's own errors, bounds, places kept for `/health`, large answers.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use medical_vision::server::{HttpOptions, ServerOptions};
use reqwest::Method;
use serde_json::Value;
use socket2::SockRef;

use super::support::{
    FILE_PART, PROMPT_PART, TestServer, assert_utc, eventually, png, raw_body, read_to_close, status_of,
};

const GET: &[u8] = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// A raw answer's body, an error as all errors are.
fn error_of(answer: &str) -> String {
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    let head = head.to_ascii_lowercase();
    assert!(head.contains("content-type: application/json"), "{answer}");
    assert!(
        head.contains(&format!("content-length: {}", body.len())),
        "{answer}"
    );
    assert!(head.contains("x-content-type-options: nosniff"), "{answer}");
    let body: Value = serde_json::from_str(body).expect("JSON");
    assert_eq!(body.as_object().expect("an object").len(), 2);
    assert_utc(&body["timestamp"]);
    body["detail"].as_str().expect("a text").to_owned()
}

/// Reads one answer with a length.
fn one_answer(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte).expect("an answer");
        bytes.push(byte[0]);
        if bytes.ends_with(b"\r\n\r\n") {
            break;
        }
    }
    let head = String::from_utf8(bytes).expect("text");
    let length = head.to_ascii_lowercase();
    let length = length.split("content-length: ").nth(1).expect("a length");
    let length: usize = length
        .split("\r\n")
        .next()
        .expect("a line")
        .parse()
        .expect("a number");
    let mut body = vec![0; length];
    stream.read_exact(&mut body).expect("a body");
    head + &String::from_utf8_lossy(&body)
}

#[test]
fn a_head_is_bounded_before_the_parser_sees_it() {
    let server = TestServer::start(ServerOptions::default());
    let start = "GET /health HTTP/1.1\r\nHost: a\r\n";
    for (what, request) in [
        ("a name", format!("{start}{}: y\r\n\r\n", "a".repeat(65_536))),
        (
            "a longer name",
            format!("{start}{}: y\r\n\r\n", "a".repeat(120_000)),
        ),
        ("a name without an end", format!("{start}{}", "a".repeat(65_536))),
        ("a value", format!("{start}a: {}\r\n\r\n", "y".repeat(65_536))),
        ("many lines", format!("{start}{}\r\n", "a: y\r\n".repeat(20_000))),
        ("empty lines", "\r\n".repeat(65_536)),
    ] {
        let answer = server.raw(request.as_bytes()).expect("closed");
        assert_eq!(status_of(&answer), 431, "{what}: {answer}");
        assert!(error_of(&answer).contains("header"), "{what}: {answer}");
    }
    // Behind other requests on the same connection, with bodies of both kinds.
    let body = raw_body("b", &[(FILE_PART, &png(8, 8)), (PROMPT_PART, b"hello")]);
    let form = "Content-Type: multipart/form-data; boundary=b";
    let length = body.len();
    let mut client = server.connect();
    for (framing, before, after) in [
        (format!("Content-Length: {length}"), String::new(), ""),
        (
            "Transfer-Encoding: chunked".to_owned(),
            format!("{length:x}\r\n"),
            "\r\n0\r\n\r\n",
        ),
    ] {
        let head = format!("POST /analyze HTTP/1.1\r\nHost: a\r\n{form}\r\n{framing}\r\n\r\n{before}");
        let request = [head.as_bytes(), &body, after.as_bytes()].concat();
        client.write_all(&request).expect("written");
        assert_eq!(status_of(&one_answer(&mut client)), 200);
    }
    let _ = client.write_all(format!("{start}{}: y\r\n\r\n", "a".repeat(65_536)).as_bytes());
    let answer = read_to_close(&mut client).expect("closed");
    assert_eq!(status_of(&answer), 431, "{answer}");
    error_of(&answer);
    server.is_well();
}

/// A text in a form may be as long without a line end as it likes.
#[test]
fn bytes_of_a_body_are_not_taken_for_a_header() {
    let server = TestServer::start(ServerOptions::default());
    let prompt = b"x".repeat(8_192);
    let body = raw_body("b", &[(FILE_PART, &b"a".repeat(300_000)), (PROMPT_PART, &prompt)]);
    let head = format!(
        "POST /analyze HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let answer = server.raw(&[head.as_bytes(), &body].concat()).expect("closed");
    assert_eq!(status_of(&answer), 400, "{answer}");
    assert!(answer.contains("not a supported file"), "{answer}");
}

#[test]
fn the_parsers_own_errors_have_the_json_body() {
    let server = TestServer::start(ServerOptions::default());
    for request in [
        "GET /health HTTP/1.1\r\n\r\n",
        "GET /health HTTP/9.9\r\n\r\n",
        "\x16\x03\x01\r\n\r\n",
        "GET /health HTTP/1.1\r\nHost: a\r\nA b: c\r\n\r\n",
        "POST /extract HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n",
    ] {
        let answer = server.raw(request.as_bytes()).expect("closed");
        assert_eq!(status_of(&answer), 400, "{request:?}: {answer}");
        assert!(error_of(&answer).contains("not valid HTTP"), "{answer}");
    }
    // Behind an answer that is whole.
    let answer = server.raw(&[GET, b"nonsense\r\n\r\n"].concat()).expect("closed");
    assert_eq!(status_of(&answer), 200, "{answer}");
    let last = answer.rfind("HTTP/1.1 400").expect("the error");
    error_of(&answer[last..]);
    server.is_well();
}

/// The first head of a connection, and one after an answer.
#[test]
fn an_incomplete_head_is_408() {
    let server = TestServer::start(ServerOptions::default());
    for before in [&b""[..], GET] {
        let mut client = server.connect();
        client.write_all(before).expect("written");
        if !before.is_empty() {
            assert_eq!(status_of(&one_answer(&mut client)), 200);
        }
        client
            .write_all(b"GET /health HTTP/1.1\r\nHost: l\r\nX-Slow: ")
            .expect("written");
        let mut drip = client.try_clone().expect("a second handle");
        let dripping = std::thread::spawn(move || {
            while drip.write_all(b"a").is_ok() {
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        let answer = read_to_close(&mut client).expect("closed");
        client.shutdown(std::net::Shutdown::Both).ok();
        dripping.join().expect("no panic");
        assert_eq!(status_of(&answer), 408, "{answer}");
        error_of(&answer);
    }
}

#[test]
fn head_is_like_get_without_a_body() {
    let server = TestServer::start(ServerOptions::default());
    for path in [
        "/health",
        "/benchmark",
        "/openapi.json",
        "/docs/",
        "/docs/swagger-ui.css",
    ] {
        let get = server.get(path);
        let head = server
            .client
            .request(Method::HEAD, server.url(path))
            .send()
            .expect("an answer");
        assert_eq!(head.status(), 200, "{path}");
        assert_eq!(head.headers()["content-type"], get.headers()["content-type"]);
        let announced = &head.headers()["content-length"];
        assert_ne!(announced, "0", "{path}");
        if !["/health", "/benchmark"].contains(&path) {
            assert_eq!(announced, &get.headers()["content-length"]);
        }
        assert!(head.bytes().expect("no body").is_empty());
    }
    for path in ["/extract", "/nope"] {
        let head = server
            .client
            .request(Method::HEAD, server.url(path))
            .send()
            .expect("an answer");
        assert!(head.status().is_client_error(), "{path}");
    }
    // Two on one connection: no byte of a body is taken for the next answer.
    let mut client = server.connect();
    let request = "HEAD /docs/ HTTP/1.1\r\nHost: a\r\n\r\n";
    client.write_all(request.repeat(2).as_bytes()).expect("written");
    client
        .write_all(b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        .expect("written");
    let answers = read_to_close(&mut client).expect("closed");
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 3, "{answers}");
    assert!(!answers.contains("<html"), "{answers}");
}

#[test]
fn a_body_below_the_minimum_rate_is_408_before_its_deadline() {
    let options = ServerOptions {
        http: HttpOptions {
            body_deadline_seconds: 3600,
            ..HttpOptions::default()
        },
        ..ServerOptions::default()
    };
    let server = TestServer::start(options);
    let mut client = server.connect();
    client
        .write_all(b"POST /extract HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: 100000\r\n\r\n")
        .expect("written");
    let mut drip = client.try_clone().expect("a second handle");
    let dripping = std::thread::spawn(move || {
        while drip.write_all(b"a").is_ok() {
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    let answer = read_to_close(&mut client).expect("closed");
    client.shutdown(std::net::Shutdown::Both).ok();
    dripping.join().expect("no panic");
    assert_eq!(status_of(&answer), 408, "{answer}");
    assert!(answer.contains("1024 bytes a second"), "{answer}");
}

/// Slow bodies and idle connections on every place, and more: `/health` is answered, and the places come back.
#[test]
fn health_is_served_when_all_connection_slots_are_taken() {
    let options = ServerOptions {
        http: HttpOptions {
            max_connections: 24,
            max_connections_per_address: 16,
            body_deadline_seconds: 3600,
            min_body_rate: 0,
            ..HttpOptions::default()
        },
        ..ServerOptions::default()
    };
    let server = TestServer::start(options);
    let head = b"POST /extract HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: 10000\r\n\r\n";
    let mut held: Vec<TcpStream> = (0..60)
        .map(|_| {
            let mut client = server.connect();
            client.write_all(head).expect("written");
            client
        })
        .collect();
    held.extend((0..60).map(|_| server.connect()));
    for round in 0..20 {
        let begin = Instant::now();
        let mut client = server.connect();
        client.write_all(GET).expect("written");
        let answer = read_to_close(&mut client).expect("closed");
        assert_eq!(status_of(&answer), 200, "round {round}: {answer}");
        assert!(
            answer.to_ascii_lowercase().contains("connection: close"),
            "{answer}"
        );
        assert!(begin.elapsed() < Duration::from_secs(10), "round {round}");
        held.push(server.connect());
    }
    // Other requests learn why, and when to come again.
    let mut client = server.connect();
    client
        .write_all(b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n")
        .expect("written");
    let answer = read_to_close(&mut client).expect("closed");
    assert_eq!(status_of(&answer), 503, "{answer}");
    assert!(
        answer.contains("retry-after: 1\r\n") && error_of(&answer).contains("connections"),
        "{answer}"
    );
    drop(held);
    eventually("places come back", || {
        let mut client = server.connect();
        client
            .write_all(b"GET /openapi.json HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            .expect("written");
        read_to_close(&mut client).is_some_and(|answer| status_of(&answer) == 200)
    });
    server.is_well();
}

/// Connections that ask for nothing give way to those that do.
#[test]
fn idle_connections_are_evicted() {
    let options = ServerOptions {
        http: HttpOptions {
            max_connections: 4,
            ..HttpOptions::default()
        },
        ..ServerOptions::default()
    };
    let server = TestServer::start(options);
    let mut idle: Vec<TcpStream> = (0..4).map(|_| server.connect()).collect();
    for client in &mut idle {
        client.write_all(GET).expect("written");
        one_answer(client);
    }
    // After a second without a request.
    eventually("a newcomer has a place of its own", || {
        let mut client = server.connect();
        client
            .write_all(b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n")
            .expect("written");
        status_of(&one_answer(&mut client)) == 200
    });
}

#[test]
fn connections_have_a_maximum_lifetime() {
    let options = ServerOptions {
        http: HttpOptions {
            connection_lifetime_seconds: 1,
            ..HttpOptions::default()
        },
        ..ServerOptions::default()
    };
    let server = TestServer::start(options);
    let mut client = server.connect();
    let mut answers = 0;
    loop {
        client.write_all(GET).expect("written");
        let answer = one_answer(&mut client);
        answers += 1;
        if answer.to_ascii_lowercase().contains("connection: close") {
            break;
        }
        assert!(answers < 10_000, "it goes on for ever");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(read_to_close(&mut client).as_deref(), Some(""));
    assert!(answers > 1, "closed at once");
}

/// Resident memory of this process, which the server is a part of, KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("a status");
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .expect("a line");
    line.split_whitespace()
        .nth(1)
        .expect("a number")
        .parse()
        .expect("a number")
}

#[test]
fn stalled_clients_hold_no_copy_of_the_documentation() {
    let options = ServerOptions {
        http: HttpOptions {
            max_connections_per_address: 512,
            ..HttpOptions::default()
        },
        ..ServerOptions::default()
    };
    let server = TestServer::start(options);
    let bundle = server
        .get("/docs/swagger-ui-bundle.js")
        .bytes()
        .expect("a script");
    assert!(bundle.len() > 500_000, "{} bytes", bundle.len());
    let before = resident();
    let request = "GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: a\r\n\r\n".repeat(16);
    let mut held: Vec<TcpStream> = (0..200)
        .map(|_| {
            let mut client = server.connect();
            SockRef::from(&client)
                .set_recv_buffer_size(2048)
                .expect("a buffer");
            client.write_all(request.as_bytes()).expect("written");
            client
        })
        .collect();
    // Each of them is being answered: its first bytes are here.
    for client in &mut held {
        client.read_exact(&mut [0; 16]).expect("an answer");
    }
    let more = resident().saturating_sub(before);
    // A copy each would be 200 times the file.
    assert!(more < 100 * 1024, "{more} KiB more for 200 readers");
    assert_eq!(
        server
            .get("/docs/swagger-ui-bundle.js")
            .bytes()
            .expect("a script"),
        bundle
    );
}

/// The deadline of the queue counts from the first byte, not from the last.
#[test]
fn a_slow_upload_counts_toward_the_queue_deadline() {
    let options = ServerOptions {
        http: HttpOptions {
            min_body_rate: 0,
            ..HttpOptions::default()
        },
        queue_deadline_seconds: 12,
        ..ServerOptions::default()
    };
    let server = TestServer::start(options);
    let post = |prompt: &[u8]| {
        let body = raw_body("b", &[(FILE_PART, &png(8, 8)), (PROMPT_PART, prompt)]);
        let head = format!(
            "POST /analyze HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        (head, body)
    };
    let (head, body) = post(b"sleep 600000");
    let mut running = server.connect();
    running
        .write_all(&[head.as_bytes(), &body].concat())
        .expect("written");
    eventually("it runs", || server.engine.load().running == 1);
    let (head, body) = post(b"waiting");
    let mut slow = server.connect();
    slow.write_all(head.as_bytes()).expect("written");
    for piece in body.chunks(body.len().div_ceil(10)) {
        std::thread::sleep(Duration::from_secs(1));
        slow.write_all(piece).expect("written");
    }
    let arrived = Instant::now();
    let answer = read_to_close(&mut slow).expect("closed");
    assert_eq!(status_of(&answer), 503, "{answer}");
    // Two seconds are left of the twelve.
    assert!(
        arrived.elapsed() < Duration::from_secs(10),
        "{:?}",
        arrived.elapsed()
    );
}
