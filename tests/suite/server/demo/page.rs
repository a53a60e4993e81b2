//! The page's files, its routes and who may use them, in both forms.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use medical_vision::server::{HttpOptions, ServerOptions};
use reqwest::blocking::{Client, Response};
use reqwest::{Method, StatusCode};

use super::super::support::{
    FILE_PART, PROMPT_PART, TestServer, assert_error, eventually, page_form, png, raw_post, status_of,
};
use super::{BothForms, DemoUi, get, read_to_end, sent};

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

fn url(address: SocketAddr, path: &str) -> String {
    format!("http://{address}{path}")
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    let value = response.headers().get(name);
    value.map_or("", |value| value.to_str().expect("text"))
}

#[test]
fn every_file_is_served_with_its_type_tag_and_policy() {
    let forms = BothForms::start();
    let client = &forms.server.client;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = vec![
        (String::new(), root.join("assets/page/index.html")),
        (
            "sample.png".to_owned(),
            root.join("datasets/sample/discharge_note.png"),
        ),
    ];
    for file in fs::read_dir(root.join("assets/page")).expect("a folder") {
        let file = file.expect("a file");
        files.push((file.file_name().into_string().expect("UTF-8"), file.path()));
    }
    for address in forms.addresses {
        for (name, path) in &files {
            let url = url(address, &format!("/{name}"));
            let response = client.get(&url).send().expect("an answer");
            assert_eq!(response.status(), 200, "{name}");
            let kind = match path.extension().and_then(|kind| kind.to_str()) {
                Some("html") => "text/html; charset=utf-8",
                Some("js") => "text/javascript; charset=utf-8",
                Some("css") => "text/css; charset=utf-8",
                Some("svg") => "image/svg+xml",
                Some("png") => "image/png",
                other => panic!("{name}: {other:?}"),
            };
            let tag = header(&response, "etag").to_owned();
            for (header_name, value) in [
                ("content-type", kind),
                ("content-security-policy", POLICY),
                ("x-content-type-options", "nosniff"),
                ("x-frame-options", "DENY"),
                ("referrer-policy", "no-referrer"),
                ("cache-control", "no-cache"),
            ] {
                assert_eq!(header(&response, header_name), value, "{name}");
            }
            let bytes = response.bytes().expect("a body");
            assert_eq!(bytes, fs::read(path).expect("a file"), "{name}");

            let head = client.head(&url).send().expect("an answer");
            assert_eq!(head.status(), 200, "{name}");
            assert_eq!(header(&head, "content-length"), bytes.len().to_string(), "{name}");
            assert_eq!(header(&head, "content-type"), kind, "{name}");
            assert!(head.bytes().expect("no body").is_empty(), "{name}");

            let cached = |tags: &str| {
                let request = client.get(&url).header("if-none-match", tags);
                request.send().expect("an answer")
            };
            for known in [&tag, &format!("W/{tag}"), &format!("\"x\", {tag}"), "*"] {
                let response = cached(known);
                assert_eq!(response.status(), 304, "{name} {known}");
                assert_eq!(header(&response, "etag"), tag, "{name}");
                assert!(response.bytes().expect("no body").is_empty(), "{name}");
            }
            assert_eq!(cached("\"x\"").status(), 200, "{name}");
            assert_eq!(cached("nonsense").status(), 200, "{name}");
        }
    }
}

#[test]
fn only_the_routes_that_the_page_uses_are_there() {
    let forms = BothForms::start();
    for address in forms.addresses {
        for (path, status) in [
            ("/", 200),
            ("/index.html", 200),
            ("/sample.png", 200),
            ("/api/health", 200),
            ("/api/benchmark", 200),
            ("/api/health?query=dropped", 200),
            ("/api", 404),
            ("/api/", 404),
            ("/api/docs", 404),
            ("/api/docs/", 404),
            ("/api/openapi.json", 404),
            ("/api/health/", 404),
            ("/api/../health", 404),
            ("/api/%2e%2e/docs", 404),
            ("/api/v1/models/..", 404),
            ("/api/v1/models/%2e%2e", 404),
            ("/api/v1/models/../../docs", 404),
            ("/api/api/health", 404),
            ("/api//health", 404),
            ("//api/health", 404),
            ("/health", 404),
            ("/extract", 404),
            ("/docs/", 404),
            ("/openapi.json", 404),
            ("/../Cargo.toml", 404),
            ("/%2e%2e/Cargo.toml", 404),
            ("/index.html/", 404),
            ("/INDEX.HTML", 404),
            ("/nope", 404),
            ("/api/extract", 405),
            ("/api/analyze", 405),
        ] {
            let answer = read_to_end(&mut sent(address, &get(path)));
            assert_eq!(status_of(&answer), status, "{path}: {answer}");
            let head = answer.to_ascii_lowercase();
            assert!(
                head.contains("\r\nx-content-type-options: nosniff\r\n"),
                "{answer}"
            );
            if path.starts_with("/api") || status >= 400 {
                assert!(
                    head.contains("\r\ncontent-type: application/json\r\n"),
                    "{path}: {answer}"
                );
            }
        }
        for (method, path) in [
            (Method::POST, "/"),
            (Method::POST, "/index.html"),
            (Method::POST, "/api/health"),
            (Method::PUT, "/api/extract"),
            (Method::DELETE, "/api/benchmark"),
            (Method::OPTIONS, "/api/extract"),
            (Method::PATCH, "/api/analyze"),
        ] {
            let request = forms.server.client.request(method.clone(), url(address, path));
            let response = request.send().expect("an answer");
            assert_eq!(response.status(), 405, "{method} {path}");
            assert_error(response, 405);
        }
    }
}

#[test]
fn the_api_answers_through_the_page_as_it_does_itself() {
    let forms = BothForms::start();
    let client = &forms.server.client;
    for address in forms.addresses {
        let post = |path: &str, form| {
            let request = client.post(url(address, path)).multipart(form);
            request.send().expect("an answer")
        };
        let response = post("/api/analyze", page_form().text("prompt", "hello"));
        assert_eq!(response.status(), 200);
        assert_eq!(header(&response, "content-type"), "application/json");
        assert_eq!(header(&response, "cache-control"), "no-store");
        let through: serde_json::Value = response.json().expect("JSON");
        let direct: serde_json::Value = forms.server.analyze("hello").json().expect("JSON");
        for key in ["analysis", "prompt_used", "model_info"] {
            assert_eq!(through[key], direct[key], "{key}");
        }
        let keys = |value: &serde_json::Value| -> Vec<String> {
            value.as_object().expect("an object").keys().cloned().collect()
        };
        assert_eq!(keys(&through), keys(&direct));
        let empty = reqwest::blocking::multipart::Form::new().text("prompt", "hello");
        assert_error(post("/api/extract", empty), 422);
        assert_error(post("/api/analyze", page_form().text("prompt", "panic")), 500);
        let head = client
            .head(url(address, "/api/health"))
            .send()
            .expect("an answer");
        assert_eq!(head.status(), 200);
        assert_ne!(header(&head, "content-length"), "0");
        let id = client
            .get(url(address, "/api/health"))
            .header("x-request-id", "mine-1");
        assert_eq!(header(&id.send().expect("an answer"), "x-request-id"), "mine-1");
    }
}

fn status_with(client: &Client, method: Method, url: String, lines: &[(&str, &str)]) -> StatusCode {
    let request = client.request(method, url);
    let request = lines
        .iter()
        .fold(request, |request, (name, value)| request.header(*name, *value));
    request.send().expect("an answer").status()
}

#[test]
fn other_sites_are_refused() {
    let forms = BothForms::start();
    let client = &forms.server.client;
    for address in forms.addresses {
        let port = address.port();
        let (own, localhost) = (format!("http://{address}"), format!("http://localhost:{port}"));
        let foreign = "http://example.org";
        for path in ["/", "/sample.png", "/api/health", "/nope"] {
            let status = |host| status_with(client, Method::GET, url(address, path), &[("host", host)]);
            assert_eq!(status("example.org"), 403, "{path}");
            assert_eq!(status("example.org:7860"), 403, "{path}");
            assert_ne!(status("localhost"), 403, "{path}");
        }
        let post =
            |lines: &[(&str, &str)]| status_with(client, Method::POST, url(address, "/api/extract"), lines);
        // Without a file: what passes is refused by the API.
        assert_eq!(post(&[]), 422);
        assert_eq!(post(&[("origin", &own)]), 422);
        assert_eq!(
            post(&[("origin", &localhost), ("host", &format!("localhost:{port}"))]),
            422
        );
        for origin in [foreign, &localhost, "null", ""] {
            assert_eq!(post(&[("origin", origin)]), 403, "{origin}");
        }
        assert_eq!(post(&[("origin", foreign), ("host", "example.org")]), 403);
        let preflight = client
            .request(Method::OPTIONS, url(address, "/api/extract"))
            .header("origin", foreign)
            .header("access-control-request-method", "POST");
        let response = preflight.send().expect("an answer");
        let mut names = response.headers().keys();
        assert!(!names.any(|name| name.as_str().starts_with("access-control")));
        assert_eq!(response.status(), 405);
    }
    // The API's own port has other clients, which know it under any name.
    let direct = status_with(
        client,
        Method::GET,
        forms.server.url("/health"),
        &[("host", "api.example.org")],
    );
    assert_eq!(direct, 200);
}

#[test]
fn names_of_a_reverse_proxy_are_allowed_one_by_one() {
    let server = TestServer::start(ServerOptions {
        demo_port: Some(0),
        demo_allowed_hosts: vec!["page.example.org".into()],
        ..ServerOptions::default()
    });
    let demo_ui = DemoUi::start(server.address, &["--allowed-host", "Page.example.org"]);
    for address in [demo_ui.address, server.demo.expect("a page")] {
        let status = |lines: &[(&str, &str)]| {
            status_with(&server.client, Method::POST, url(address, "/api/extract"), lines)
        };
        let host = ("host", "page.example.org");
        assert_eq!(status(&[host, ("origin", "https://page.example.org")]), 422);
        assert_eq!(status(&[host, ("origin", "https://example.org")]), 403);
        assert_eq!(status(&[("host", "example.org")]), 403);
    }
}

#[test]
fn queue_and_state_are_those_of_the_api() {
    let server = TestServer::start(ServerOptions {
        demo_port: Some(0),
        queue: 0,
        ..ServerOptions::default()
    });
    let demo_ui = DemoUi::start(server.address, &[]);
    let [own, forwarded] = [server.demo.expect("a page"), demo_ui.address];
    let body = [(FILE_PART, &png(8, 8)[..]), (PROMPT_PART, b"sleep 60000")];
    let running = sent(server.address, &raw_post("/analyze", "b", &body));
    eventually("it runs", || server.counts.started.load(Ordering::SeqCst) == 1);
    for address in [own, forwarded] {
        let form = page_form().text("prompt", "hello");
        let request = server.client.post(url(address, "/api/analyze")).multipart(form);
        let response = request.send().expect("an answer");
        let seconds = header(&response, "retry-after").parse::<u64>();
        assert!(seconds.expect("seconds") >= 1);
        assert_error(response, 503);
    }
    drop(running);
}

/// Whether the server has answered or closed the connection.
fn is_answered(connection: &TcpStream) -> bool {
    connection
        .set_read_timeout(Some(Duration::from_millis(300)))
        .expect("a timeout");
    connection.peek(&mut [0]).is_ok()
}

#[test]
fn connections_and_heads_are_bounded_as_those_of_the_api() {
    let http = HttpOptions {
        max_connections: 1,
        ..HttpOptions::default()
    };
    let server = TestServer::start(ServerOptions {
        demo_port: Some(0),
        http,
        ..ServerOptions::default()
    });
    let demo_ui = DemoUi::start(server.address, &["--max-connections", "1"]);
    for address in [server.demo.expect("a page"), demo_ui.address] {
        let long = format!(
            "GET / HTTP/1.1\r\nHost: localhost\r\nA: {}\r\n\r\n",
            "y".repeat(65_536)
        );
        let answer = read_to_end(&mut sent(address, long.as_bytes()));
        assert_eq!(status_of(&answer), 431, "{answer}");
        let late = read_to_end(&mut sent(address, b"GET / HTTP/1.1\r\nHost: loc"));
        assert_eq!(status_of(&late), 408, "{late}");
    }
    // A body that never comes holds the only slot of both ports.
    let head = b"POST /api/extract HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: 100\r\n\r\n";
    let mut held = None;
    let status = |address, path: &str| status_of(&read_to_end(&mut sent(address, &get(path))));
    eventually("the slot is taken", || {
        // An earlier connection may still have it: then this one is answered with 503, too.
        let connection = held.insert(sent(server.demo.expect("a page"), head));
        status(server.demo.expect("a page"), "/") == 503 && !is_answered(connection)
    });
    assert_eq!(status(server.demo.expect("a page"), "/api/health"), 200);
    assert_eq!(status(server.address, "/benchmark"), 503);
    assert_eq!(status(server.address, "/health"), 200);
    drop(held);
    eventually("the slot is free", || {
        status(server.demo.expect("a page"), "/") == 200
    });
}
