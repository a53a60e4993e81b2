//! What `demo_ui` passes on and what it does not, against an API of which the test plays every byte.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};

use super::super::support::{eventually, status_of};
use super::{DemoUi, FakeApi, get, json, read_to_end, read_until, sent};

/// A POST as raw bytes; `lines` end with a line break each.
fn post(path: &str, lines: &str, body: &str) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{lines}\r\n{body}").into_bytes()
}

#[test]
fn only_listed_headers_pass() {
    let api = FakeApi::new();
    let demo_ui = DemoUi::start(api.address(), &[]);
    let lines = "Content-Type: application/json\r\nContent-Length: 2\r\nAccept: text/event-stream\r\n\
                 Authorization: Bearer secret\r\nX-Api-Key: key\r\nX-Request-Id: id-1\r\ntraceparent: 00-1\r\n\
                 Cookie: a=b\r\nOrigin: http://localhost\r\nReferer: http://localhost/\r\nAccept-Encoding: gzip\r\n\
                 X-Forwarded-For: 192.0.2.1\r\nX-Other: o\r\nUser-Agent: browser\r\nTE: trailers\r\n";
    let mut client = sent(demo_ui.address, &post("/api/v1/chat/completions", lines, "{}"));
    let answer = "HTTP/1.1 401 Unauthorized\r\nContent-Type: Application/JSON; charset=x\r\nWWW-Authenticate: Bearer\r\n\
                  Retry-After: 7\r\nX-Accel-Buffering: no\r\nSet-Cookie: a=b\r\nLocation: http://example.org\r\nServer: s\r\nX-Other: o\r\n\
                  Access-Control-Allow-Origin: *\r\nContent-Security-Policy: default-src *\r\nCache-Control: public\r\n\
                  Content-Length: 2\r\n\r\n{}";
    let head = api.answer(answer);
    assert!(
        head.starts_with("post /v1/chat/completions http/1.1\r\n"),
        "{head}"
    );
    let mut names: Vec<&str> = head
        .lines()
        .skip(1)
        .filter_map(|line| Some(line.split_once(": ")?.0))
        .collect();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "accept",
            "authorization",
            "content-length",
            "content-type",
            "host",
            "traceparent",
            "x-api-key",
            "x-request-id"
        ]
    );
    for line in [
        format!("host: {}", api.address()),
        "authorization: bearer secret".into(),
        "x-api-key: key".into(),
        "x-request-id: id-1".into(),
        "accept: text/event-stream".into(),
    ] {
        assert!(head.contains(&format!("\r\n{line}\r\n")), "{line} in {head}");
    }
    let answer = read_to_end(&mut client);
    assert_eq!(status_of(&answer), 401, "{answer}");
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    assert_eq!(body, "{}");
    let mut lines: Vec<&str> = head
        .lines()
        .skip(1)
        .filter(|line| !line.starts_with("date: "))
        .collect();
    lines.sort_unstable();
    assert_eq!(
        lines,
        [
            "cache-control: no-store",
            "connection: close",
            "content-length: 2",
            "content-security-policy: default-src 'none'; frame-ancestors 'none'",
            "content-type: application/json",
            "referrer-policy: no-referrer",
            "retry-after: 7",
            "www-authenticate: Bearer",
            "x-accel-buffering: no",
            "x-content-type-options: nosniff",
            "x-frame-options: DENY",
            "x-request-id: id-1",
        ]
    );
}

/// Whatever the filter, neither keys nor bodies nor names of models are in the log.
#[test]
fn keys_and_documents_are_not_logged() {
    let api = FakeApi::new();
    let mut demo_ui = DemoUi::start_with(
        api.address(),
        &["-vv"],
        &[("MVP_LOG", "trace,hyper=trace,reqwest=trace")],
    );
    let lines = "Content-Type: application/json\r\nAuthorization: Bearer CANARY\r\nX-Api-Key: CANARY\r\nContent-Length: 6\r\n";
    let mut client = sent(
        demo_ui.address,
        &post("/api/v1/chat/completions", lines, "CANARY"),
    );
    api.answer(&json(
        "401 Unauthorized",
        "WWW-Authenticate: CANARY\r\n",
        "\"CANARY\"",
    ));
    assert!(read_to_end(&mut client).contains("CANARY"), "it is passed on");
    // Answers that are refused, and none at all.
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Type: text/CANARY\r\n\r\nCANARY",
        "CANARY",
        "",
    ] {
        let mut client = sent(demo_ui.address, &get("/api/v1/models/CANARY?q=CANARY"));
        api.answer(answer);
        assert_eq!(status_of(&read_to_end(&mut client)), 502);
    }
    demo_ui.child.kill().expect("it runs");
    let log = demo_ui.log();
    assert!(
        log.contains("status=401") && log.contains("does not answer"),
        "{log}"
    );
    assert!(!log.contains("CANARY"), "{log}");
}

#[test]
fn keys_in_the_address_are_refused() {
    let api = FakeApi::new();
    let mut demo_ui = DemoUi::start_with(api.address(), &["-vv"], &[("MVP_LOG", "trace")]);
    for path in [
        "/?key=CANARY",
        "/api/health?api_key=CANARY",
        "/api/nothing?a=1&TOKEN=CANARY",
    ] {
        let answer = read_to_end(&mut sent(demo_ui.address, &get(path)));
        assert_eq!(status_of(&answer), 400, "{answer}");
        assert!(
            answer.contains("a key in the address") && !answer.contains("CANARY"),
            "{answer}"
        );
    }
    let answer = read_to_end(&mut sent(
        demo_ui.address,
        &post("/api/extract?key=CANARY", "Content-Length: 1\r\n", "x"),
    ));
    assert_eq!(status_of(&answer), 400, "{answer}");
    demo_ui.child.kill().expect("it runs");
    let log = demo_ui.log();
    assert!(log.contains("status=400") && !log.contains("CANARY"), "{log}");
}

#[test]
fn names_of_models_stay_one_segment() {
    let api = FakeApi::new();
    let demo_ui = DemoUi::start(api.address(), &[]);
    for (path, target) in [
        ("/api/v1/models", "/v1/models"),
        ("/api/v1/models/nano-lora_1.2", "/v1/models/nano-lora_1.2"),
        ("/api/v1/models/a%20b", "/v1/models/a%20b"),
        ("/api/v1/models/a?b#c", "/v1/models/a"),
        ("/%61pi/benchmark", "/benchmark"),
    ] {
        let mut client = sent(demo_ui.address, &get(path));
        let head = api.answer(&json("200 OK", "", "{}"));
        assert!(
            head.starts_with(&format!("get {target} http/1.1\r\n")),
            "{path}: {head}"
        );
        assert_eq!(status_of(&read_to_end(&mut client)), 200, "{path}");
    }
    let mut client = sent(demo_ui.address, &get("/api/v1/models/..%2f..%2fdocs"));
    let head = api.answer(&json("404 Not Found", "", "{}"));
    assert!(head.starts_with("get /v1/models/..%"), "{head}");
    assert!(!head.contains("/docs"), "{head}");
    assert_eq!(status_of(&read_to_end(&mut client)), 404);
}

#[test]
fn answers_that_are_not_the_apis_are_502() {
    let api = FakeApi::new();
    let demo_ui = DemoUi::start(api.address(), &[]);
    let html = "<script>alert(1)</script>";
    for answer in [
        format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n{html}"),
        format!("HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\n\r\n{html}"),
        format!("HTTP/1.1 200 OK\r\nContent-Type: application/xhtml+xml\r\n\r\n{html}"),
        format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n{html}"),
        format!("HTTP/1.1 200 OK\r\n\r\n{html}"),
        format!("HTTP/1.1 200 OK\r\nContent-Type: application/jsonhtml\r\n\r\n{html}"),
        format!("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\n\r\n{html}"),
        format!(
            "HTTP/1.1 302 Found\r\nLocation: http://{}/docs\r\nContent-Type: application/json\r\n\r\n{{}}",
            api.address()
        ),
        "HTTP/1.1 204 No Content\r\n\r\n".to_owned(),
        "SSH-2.0-OpenSSH\r\n".to_owned(),
        String::new(),
    ] {
        let mut client = sent(demo_ui.address, &get("/api/health"));
        api.answer(&answer);
        let received = read_to_end(&mut client);
        assert_eq!(status_of(&received), 502, "{answer}: {received}");
        assert!(!received.contains("script"), "{received}");
        assert!(received.contains("--api-url"), "{received}");
    }
}

#[test]
fn an_api_that_is_down_is_502_until_it_is_up() {
    // An address of its own, so that no other test gets the port in between.
    let taken = TcpListener::bind("127.0.76.60:0").expect("a free port");
    let address = taken.local_addr().expect("an address");
    drop(taken);
    let demo_ui = DemoUi::start(address, &[]);
    for _ in 0..3 {
        let answer = read_to_end(&mut sent(demo_ui.address, &get("/api/health")));
        assert_eq!(status_of(&answer), 502, "{answer}");
        assert!(
            answer.contains("does not answer") && answer.contains("`server`"),
            "{answer}"
        );
        assert!(answer.contains("\"timestamp\""), "{answer}");
    }
    let api = FakeApi(TcpListener::bind(address).expect("the port is free"));
    let mut client = sent(demo_ui.address, &get("/api/health"));
    api.answer(&json("200 OK", "", "{}"));
    assert_eq!(status_of(&read_to_end(&mut client)), 200);
}

#[test]
fn bodies_above_the_limit_are_413() {
    let api = FakeApi::new();
    let demo_ui = DemoUi::start(api.address(), &["--max-upload-mib", "1"]);
    let form = "Content-Type: multipart/form-data; boundary=b\r\n";
    let announced = format!("{form}Content-Length: 1000000000\r\n");
    let answer = read_to_end(&mut sent(demo_ui.address, &post("/api/extract", &announced, "")));
    assert_eq!(status_of(&answer), 413, "{answer}");
    assert!(answer.contains("1 MiB"), "{answer}");
    // In chunks, nothing announced. The API must not see the end of a body.
    let head = post(
        "/api/extract",
        &format!("{form}Transfer-Encoding: chunked\r\n"),
        "",
    );
    let mut client = sent(demo_ui.address, &head);
    let reading = std::thread::spawn(move || {
        loop {
            let (head, mut stream) = api.request();
            let mut body = Vec::new();
            let _ = stream.read_to_end(&mut body);
            if head.contains("chunked") && !body.is_empty() {
                return body;
            }
        }
    });
    let chunk = format!("10000\r\n{}\r\n", "a".repeat(0x10000));
    for _ in 0..32 {
        if client.write_all(chunk.as_bytes()).is_err() {
            break;
        }
    }
    let answer = read_to_end(&mut client);
    assert_eq!(status_of(&answer), 413, "{answer}");
    let body = reading.join().expect("no panic");
    assert!(
        body.len() < 2 << 20 && !body.ends_with(b"0\r\n\r\n"),
        "{}",
        body.len()
    );
}

#[test]
fn an_answer_before_the_end_of_the_body_arrives() {
    let api = FakeApi::new();
    let demo_ui = DemoUi::start(api.address(), &[]);
    let lines = "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 100000\r\n";
    let mut client = sent(demo_ui.address, &post("/api/extract", lines, "some of it"));
    let (_, mut stream) = api.request();
    stream
        .write_all(
            json(
                "503 Service Unavailable",
                "Retry-After: 3\r\n",
                "{\"detail\":\"full\"}",
            )
            .as_bytes(),
        )
        .expect("written");
    let answer = read_to_end(&mut client);
    assert_eq!(status_of(&answer), 503, "{answer}");
    assert!(
        answer.contains("retry-after: 3") && answer.ends_with("{\"detail\":\"full\"}"),
        "{answer}"
    );
}

#[test]
fn a_body_that_breaks_off_is_not_passed_on_as_whole() {
    let api = FakeApi::new();
    let demo_ui = DemoUi::start(api.address(), &[]);
    let form = "Content-Type: multipart/form-data; boundary=b\r\n";
    for (framing, body) in [
        ("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n"),
        ("Content-Length: 100\r\n", "hello"),
    ] {
        let client = sent(
            demo_ui.address,
            &post("/api/extract", &format!("{form}{framing}"), body),
        );
        let (_, mut stream) = api.request();
        assert!(read_until(&mut stream, "hello").ends_with("hello"));
        client.shutdown(Shutdown::Both).expect("a connection");
        let rest = read_to_end(&mut stream);
        assert!(!rest.contains('0'), "{rest:?}");
    }
    eventually("it still answers", || {
        status_of(&read_to_end(&mut sent(demo_ui.address, &get("/")))) == 200
    });
}
