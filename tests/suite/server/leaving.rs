//! Clients that leave, faults of the reading, and the server's own end.

use std::io::Write;
use std::net::Shutdown;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use medical_vision::server::ServerOptions;

use super::support::{
    FILE_PART, PROMPT_PART, TestServer, assert_error, eventually, file_form, png, raw_body, raw_post,
    read_to_close,
};

fn long_request() -> Vec<u8> {
    let page = png(8, 8);
    raw_post(
        "/analyze",
        "b",
        &[(FILE_PART, &page), (PROMPT_PART, b"sleep 60000")],
    )
}

#[test]
fn a_disconnect_cancels_the_running_request() {
    let server = TestServer::start(ServerOptions::default());
    for (round, how) in [Shutdown::Both, Shutdown::Write].into_iter().enumerate() {
        let mut client = server.connect();
        client.write_all(&long_request()).expect("written");
        eventually("it runs", || {
            server.counts.started.load(Ordering::SeqCst) == round + 1
        });
        client.shutdown(how).expect("a connection");
        eventually("it is cancelled", || {
            server.counts.cancelled.load(Ordering::SeqCst) == round + 1
        });
    }
    eventually("its place is free", || server.engine.admitted() == 0);
    server.is_well();
}

#[test]
fn a_disconnect_cancels_the_queued_request() {
    let server = TestServer::start(ServerOptions::default());
    let mut running = server.connect();
    running.write_all(&long_request()).expect("written");
    eventually("it runs", || server.counts.started.load(Ordering::SeqCst) == 1);
    let mut waiting = server.connect();
    waiting.write_all(&long_request()).expect("written");
    eventually("it waits", || server.engine.admitted() == 2);
    drop(waiting);
    eventually("its place is free", || server.engine.admitted() == 1);
    drop(running);
    eventually("both are gone", || server.engine.admitted() == 0);
    server.is_well();
    assert_eq!(
        server.counts.started.load(Ordering::SeqCst),
        2,
        "and the last check"
    );
}

#[test]
fn a_full_queue_is_503_with_retry_after() {
    let options = ServerOptions {
        queue: 1,
        ..ServerOptions::default()
    };
    let server = TestServer::start(options);
    let clients = [(); 2].map(|()| {
        let mut client = server.connect();
        client.write_all(&long_request()).expect("written");
        client
    });
    eventually("all places are taken", || server.engine.admitted() == 2);
    let begin = Instant::now();
    let refused = server.analyze("one too many");
    let seconds = refused.headers()["retry-after"]
        .to_str()
        .expect("a text")
        .to_owned();
    assert!(seconds.parse::<u64>().expect("seconds") >= 1);
    assert_error(refused, 503);
    assert!(begin.elapsed() < Duration::from_secs(5));
    drop(clients);
    eventually("places are free", || server.engine.admitted() == 0);
    server.is_well();
}

#[test]
fn queue_and_generation_deadlines_have_different_errors() {
    let options = ServerOptions {
        queue_deadline_seconds: 1,
        generation_deadline_seconds: 3,
        ..ServerOptions::default()
    };
    let server = TestServer::start(options);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| server.analyze("sleep 60000"));
        eventually("it runs", || server.counts.started.load(Ordering::SeqCst) == 1);
        let waited = server.analyze("waiting");
        assert!(waited.headers().contains_key("retry-after"));
        assert_error(waited, 503);
        assert_error(running.join().expect("an answer"), 504);
    });
}

#[test]
fn health_is_served_during_generation() {
    let server = TestServer::start(ServerOptions::default());
    let mut running = server.connect();
    running.write_all(&long_request()).expect("written");
    eventually("it runs", || server.counts.started.load(Ordering::SeqCst) == 1);
    let mut times: Vec<Duration> = (0..100)
        .map(|_| {
            let begin = Instant::now();
            assert_eq!(server.health()["model_loaded"], true);
            begin.elapsed()
        })
        .collect();
    times.sort_unstable();
    // Milliseconds on a quiet machine; the reading itself would take a minute.
    assert!(times[50] < Duration::from_millis(100), "median {:?}", times[50]);
    assert!(times[99] < Duration::from_secs(5), "slowest {:?}", times[99]);
}

#[test]
fn an_engine_error_is_a_plain_500_and_the_next_request_is_served() {
    let server = TestServer::start(ServerOptions::default());
    for prompt in ["panic", "error", "panic", "error"] {
        let detail = assert_error(server.analyze(prompt), 500);
        assert!(
            !detail.contains("CANARY") && !detail.contains("numeric"),
            "{detail}"
        );
        server.is_well();
    }
}

#[test]
fn concurrent_requests_do_not_mix() {
    let options = ServerOptions {
        queue: 64,
        ..ServerOptions::default()
    };
    let server = TestServer::start(options);
    std::thread::scope(|scope| {
        for client in 0..8 {
            let server = &server;
            scope.spawn(move || {
                for round in 0..10 {
                    let (prompt, width) = (format!("canary {client}-{round}"), 8 + client);
                    let page = file_form(png(width, 8 + round));
                    let response = server.post("/analyze", page.text("prompt", prompt.clone()));
                    let body: serde_json::Value = response.json().expect("JSON");
                    let expected = format!("{prompt}|{width}x{}|", 8 + round);
                    let text = body["analysis"].as_str().expect("a text");
                    assert!(text.starts_with(&expected), "{text}");
                }
            });
        }
    });
}

#[test]
fn a_keep_alive_connection_serves_many_requests() {
    let server = TestServer::start(ServerOptions::default());
    let body = raw_body("b", &[(FILE_PART, &png(8, 8)), (PROMPT_PART, b"hello")]);
    let head = format!(
        "POST /analyze HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    let mut client = server.connect();
    for _ in 0..5 {
        client.write_all(head.as_bytes()).expect("written");
        client.write_all(&body).expect("written");
    }
    // Pipelined: five answers, then the keep-alive timer closes.
    let answers = read_to_close(&mut client).expect("closed");
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 5, "{answers}");
}
