//! Bodies: syntax, size, framing; and errors of OpenAI's form on every path below `/v1`.

use std::io::Write;
use std::sync::Arc;

use medical_vision::engine::Engine;
use medical_vision::server::{HttpOptions, ServerOptions};
use serde_json::{Value, json};

use super::super::support::{
    Counts, TestServer, assert_error, engine_options, eventually, read_to_close, status_of,
};
use super::stub::{assert_refused, completion, post, post_text, request, start};

fn refused_text(server: &TestServer, body: impl Into<reqwest::blocking::Body>, status: u16) -> Value {
    assert_refused(post_text(server, body), status)
}

fn head(framing: &str) -> String {
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{framing}\r\n\r\n"
    )
}

fn error_of(answer: &str) -> Value {
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    let body: Value = serde_json::from_str(body).expect("JSON");
    body["error"].clone()
}

#[test]
fn malformed_json_is_refused_with_line_and_column() {
    let server = start(ServerOptions::default());
    let cases = [
        ("", 1, 0),
        ("{", 1, 1),
        ("{\"model\": \"default\",\n \"messages\": [}", 2, 15),
        ("{\"temperature\": NaN}", 1, 17),
        ("{\"temperature\": Infinity}", 1, 17),
        ("{\"temperature\": 1e999}", 1, 21),
        ("{\"model\": \"\\ud800\"}", 1, 18),
        ("{} {}", 1, 4),
        ("{\"a\": 1,}", 1, 9),
        ("<html>", 1, 1),
    ];
    for (body, line, column) in cases {
        let error = refused_text(&server, body, 400);
        assert_eq!(
            (&error["code"], &error["param"]),
            (&json!("invalid_json"), &Value::Null),
            "{body}"
        );
        let message = error["message"].as_str().expect("a text");
        assert!(
            message.contains(&format!("line {line}, column {column}")),
            "{body}: {message}"
        );
    }
    let error = refused_text(&server, b"{\"model\": \"\xff\"}".to_vec(), 400);
    assert_eq!(error["code"], "invalid_json");
    server.is_well();
}

#[test]
fn duplicate_keys_are_refused_by_name() {
    let server = start(ServerOptions::default());
    let cases = [
        ("{\"seed\": 1, \"model\": \"default\", \"seed\": 1}", "seed"),
        (
            "{\"messages\": [{\"role\": \"user\", \"role\": \"system\"}]}",
            "messages[0].role",
        ),
        ("{\"s\\u0065ed\": 1, \"seed\": 1}", "seed"),
    ];
    for (body, param) in cases {
        let error = refused_text(&server, body, 400);
        assert_eq!(
            (&error["code"], &error["param"]),
            (&json!("duplicate_key"), &json!(param)),
            "{body}"
        );
    }
}

#[test]
fn deep_and_large_trees_are_refused_by_name() {
    let server = start(ServerOptions::default());
    for depth in [70, 200, 100_000] {
        let nested = format!("{{\"metadata\": {}{}}}", "[".repeat(depth), "]".repeat(depth));
        let error = refused_text(&server, nested, 400);
        assert_eq!(
            (&error["code"], &error["param"]),
            (&json!("too_deep"), &json!("metadata")),
            "{depth}"
        );
    }
    let objects = format!("{{\"messages\": {}1{}}}", "{\"a\":".repeat(200), "}".repeat(200));
    assert_eq!(refused_text(&server, objects, 400)["param"], "messages");
    for element in ["0", "{}", "\"\"", "[]", "null"] {
        let list = format!("{{\"metadata\": [{}]}}", vec![element; 100_000].join(","));
        let error = refused_text(&server, list, 400);
        assert_eq!(error["code"], "too_many_values", "{element}");
        assert!(
            error["param"].as_str().expect("a place").starts_with("metadata["),
            "{error}"
        );
    }
    server.is_well();
}

#[test]
fn the_body_limit_is_exact_and_holds_before_the_body() {
    let http = HttpOptions {
        max_upload_mib: 1,
        ..HttpOptions::default()
    };
    let most = http.max_json_bytes() as usize;
    let server = start(ServerOptions {
        http,
        ..ServerOptions::default()
    });
    // Spaces are no values.
    let padded = |length: usize| {
        let mut body = request("hello", json!({})).to_string();
        body.extend(std::iter::repeat_n(' ', length - body.len()));
        body
    };
    assert_eq!(post_text(&server, padded(most)).status(), 200);
    refused_text(&server, padded(most + 1), 413);
    // Announced: not a byte is waited for.
    let mut announced = server.connect();
    announced
        .write_all(head("Content-Length: 1073741824").as_bytes())
        .expect("written");
    let answer = read_to_close(&mut announced).expect("closed");
    assert_eq!(status_of(&answer), 413);
    assert!(
        error_of(&answer)["message"]
            .as_str()
            .expect("a text")
            .contains("1 MiB"),
        "{answer}"
    );
    server.is_well();
}

#[test]
fn other_content_types_are_refused() {
    let server = start(ServerOptions::default());
    let body = request("hello", json!({})).to_string();
    let send = |kind: Option<&str>| {
        let request = server
            .client
            .post(server.url("/v1/chat/completions"))
            .body(body.clone());
        let request = match kind {
            Some(kind) => request.header("content-type", kind),
            None => request,
        };
        request.send().expect("an answer")
    };
    for kind in [
        "application/json",
        "application/json; charset=utf-8",
        "Application/JSON",
    ] {
        assert_eq!(send(Some(kind)).status(), 200, "{kind}");
    }
    for kind in [
        None,
        Some("text/plain"),
        Some("multipart/form-data; boundary=b"),
        Some("application/x-json"),
    ] {
        assert_eq!(
            assert_refused(send(kind), 415)["code"],
            "unsupported_media_type",
            "{kind:?}"
        );
    }
}

#[test]
fn late_and_broken_bodies_have_openais_form() {
    let http = HttpOptions {
        body_deadline_seconds: 1,
        ..HttpOptions::default()
    };
    let server = start(ServerOptions {
        http,
        ..ServerOptions::default()
    });
    let mut late = server.connect();
    late.write_all(head("Content-Length: 100").as_bytes())
        .expect("written");
    let answer = read_to_close(&mut late).expect("closed");
    assert_eq!(status_of(&answer), 408);
    assert_eq!(error_of(&answer)["type"], "invalid_request_error");
    let mut broken = server.connect();
    let framing = head("Transfer-Encoding: chunked");
    broken
        .write_all(format!("{framing}5\r\n{{\"a\":\r\nzz\r\n").as_bytes())
        .expect("written");
    let answer = read_to_close(&mut broken).expect("closed");
    assert_eq!(status_of(&answer), 400, "{answer}");
    assert_eq!(error_of(&answer)["code"], "incomplete_body");
    server.is_well();
}

#[test]
fn every_path_below_v1_has_openais_form() {
    let server = start(ServerOptions::default());
    let get = |path: &str| server.get(path);
    for path in [
        "/v1",
        "/v1/",
        "/v1/nope",
        "/v1/chat",
        "/v1/chat/completions/x",
        "/v1/engines",
    ] {
        assert_refused(get(path), 404);
    }
    let wrong = get("/v1/chat/completions");
    assert_eq!(wrong.headers()["allow"], "POST");
    assert_refused(wrong, 405);
    let delete = server.client.delete(server.url("/v1/models/stub"));
    assert_refused(delete.send().expect("an answer"), 405);
    let long = "v".repeat(5000);
    let mut request = server.client.get(server.url("/v1/models"));
    for line in 0..5 {
        request = request.header(format!("x-{line}"), &long);
    }
    assert_refused(request.send().expect("an answer"), 431);
    // Rejected before they have a path for the framework: too large, late, malformed.
    let large = format!("GET /v1/models HTTP/1.1\r\nx: {}\r\n\r\n", "v".repeat(40_000));
    for (head, status) in [
        (large.as_str(), 431),
        ("GET /v1/models?a=b HTTP/1.1\r\nHost: l", 408),
        ("POST /v1/chat/completions HTTP/1.1\r\nHo st: l\r\n\r\n", 400),
    ] {
        let answer = server.raw(head.as_bytes()).expect("closed");
        assert_eq!(status_of(&answer), status, "{answer}");
        assert_eq!(error_of(&answer)["type"], "invalid_request_error", "{answer}");
    }
    // Other paths keep theirs.
    for path in ["/nope", "/v1x", "/v10/models"] {
        assert_error(get(path), 404);
    }
    assert_error(get("/extract"), 405);
}

#[test]
fn the_models_and_the_queues_errors_have_openais_form() {
    let server = start(ServerOptions::default());
    for prompt in ["panic", "error"] {
        let error = assert_refused(post(&server, &request(prompt, json!({}))), 500);
        let text = error.to_string();
        assert!(!text.contains("CANARY"), "{text}");
    }
    let error = assert_refused(post(&server, &request("overflow", json!({}))), 400);
    assert_eq!(
        (&error["code"], &error["param"]),
        (&json!("context_length_exceeded"), &json!("messages"))
    );
    let message = error["message"].as_str().expect("a text");
    assert!(
        ["5000", "1024", "4096"]
            .iter()
            .all(|number| message.contains(number)),
        "{message}"
    );

    let full = start(ServerOptions {
        queue: 0,
        ..ServerOptions::default()
    });
    std::thread::scope(|scope| {
        let running = scope.spawn(|| post(&full, &request("sleep 600000", json!({"stream": true}))));
        eventually("it runs", || full.engine.load().running == 1);
        for stream in [false, true] {
            let response = post(&full, &request("hello", json!({"stream": stream})));
            assert!(response.headers().contains_key("retry-after"));
            let error = assert_refused(response, 503);
            assert!(
                error["message"]
                    .as_str()
                    .expect("a text")
                    .contains("queue is full"),
                "{error}"
            );
        }
        drop(running.join().expect("no panic"));
    });
    eventually("its slot is free", || full.engine.admitted() == 0);
    completion(&full, &request("hello", json!({})));
    full.engine.close();
    assert_refused(post(&full, &request("hello", json!({}))), 503);
}

#[test]
fn nothing_is_read_while_the_model_loads() {
    let (release, wait) = std::sync::mpsc::channel::<()>();
    let load = move || {
        let _ = wait.recv();
        Err::<super::super::support::Stub, _>(medical_vision::Error::Internal("stopped".into()))
    };
    let engine = Engine::start(load, engine_options()).expect("a thread");
    let server = TestServer::around(ServerOptions::default(), engine, Arc::new(Counts::default()));
    for response in [
        server.get("/v1/models"),
        server.get("/v1/models/stub"),
        post(&server, &request("hello", json!({}))),
    ] {
        assert_eq!(response.headers()["retry-after"], "5");
        assert_refused(response, 503);
    }
    release.send(()).expect("the engine waits");
}
