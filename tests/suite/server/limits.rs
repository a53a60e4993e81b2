//! Every limit at its edge.

use std::io::Write;
use std::time::{Duration, Instant};

use medical_vision::engine::MAX_PROMPT_CHARACTERS;
use medical_vision::server::options::{FORM_OVERHEAD_BYTES, MAX_FIELD_BYTES, MAX_HEADERS, MAX_PARTS};
use medical_vision::server::{HttpOptions, ServerOptions};
use reqwest::blocking::multipart::{Form, Part};

use super::support::{
    FILE_PART, TestServer, assert_error, file_form, page_form, png, read_to_close, status_of,
};

const MIB: usize = 1024 * 1024;

fn small() -> ServerOptions {
    ServerOptions {
        http: HttpOptions {
            max_upload_mib: 1,
            body_deadline_seconds: 1,
            ..HttpOptions::default()
        },
        ..ServerOptions::default()
    }
}

fn head(path: &str, framing: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\n{framing}\r\n\
         Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    )
}

#[test]
fn the_upload_limit_is_exact() {
    let options = ServerOptions {
        http: HttpOptions {
            max_upload_mib: 1,
            ..HttpOptions::default()
        },
        ..ServerOptions::default()
    };
    let server = TestServer::start(options);
    // As many bytes as may be reach the decoder, which finds no picture in them.
    assert_error(server.post("/extract", file_form(vec![7; MIB])), 400);
    let detail = assert_error(server.post("/extract", file_form(vec![7; MIB + 1])), 413);
    assert!(detail.contains("1 MiB"), "{detail}");
    server.is_well();
}

#[test]
fn an_oversized_body_is_rejected_early() {
    let server = TestServer::start(small());
    // Announced: not a byte of it is waited for.
    let mut announced = server.connect();
    let framing = format!("Content-Length: {}", 10 * 1024 * MIB);
    announced
        .write_all(head("/extract", &framing).as_bytes())
        .expect("written");
    assert_eq!(status_of(&read_to_close(&mut announced).expect("closed")), 413);
    // Unannounced: one byte over the limit is enough, and no end ever comes.
    let mut chunked = server.connect();
    let part = format!("--b\r\n{FILE_PART}\r\n\r\n");
    let over = MIB + FORM_OVERHEAD_BYTES as usize + 1 - part.len();
    let request = head("/extract", "Transfer-Encoding: chunked");
    chunked.write_all(request.as_bytes()).expect("written");
    let mut body = part.into_bytes();
    body.resize(body.len() + over, 0);
    let _ = chunked.write_all(format!("{:x}\r\n", body.len() + 1).as_bytes());
    let _ = chunked.write_all(&body);
    assert_eq!(status_of(&read_to_close(&mut chunked).expect("closed")), 413);
    server.is_well();
}

#[test]
fn a_client_that_keeps_sending_receives_the_rejection() {
    let server = TestServer::start(small());
    let mut client = server.connect();
    let body = vec![0; 24 * MIB];
    let framing = format!("Content-Length: {}", body.len());
    client
        .write_all(head("/extract", &framing).as_bytes())
        .expect("written");
    // More than the sockets' buffers hold: the server must take it, or the client sees a reset.
    client.write_all(&body).expect("the whole body is taken");
    assert_eq!(status_of(&read_to_close(&mut client).expect("closed")), 413);
    server.is_well();
}

#[test]
fn an_endless_preamble_is_bounded() {
    let server = TestServer::start(small());
    let mut client = server.connect();
    let request = head("/extract", "Transfer-Encoding: chunked");
    client.write_all(request.as_bytes()).expect("written");
    let chunk = [b"10000\r\n".as_slice(), &[b'\n'; 0x1_0000], b"\r\n"].concat();
    for _ in 0..40 {
        if client.write_all(&chunk).is_err() {
            break;
        }
    }
    let status = status_of(&read_to_close(&mut client).expect("closed"));
    assert!([400, 413].contains(&status), "{status}");
    server.is_well();
}

#[test]
fn the_body_deadline_applies_to_every_framing() {
    let server = TestServer::start(small());
    let cases = [
        ("/extract", "Content-Length: 100000", 408),
        ("/extract", "Transfer-Encoding: chunked", 408),
        // Nobody reads these bodies, and they must not keep their connection open either.
        ("/nope", "Content-Length: 100000", 404),
        ("/nope", "Transfer-Encoding: chunked", 404),
        ("/health", "Transfer-Encoding: chunked", 405),
    ];
    for (path, framing, status) in cases {
        let mut client = server.connect();
        let mut drip = client.try_clone().expect("a second handle");
        client.write_all(head(path, framing).as_bytes()).expect("written");
        let begin = Instant::now();
        let dripping = std::thread::spawn(move || {
            while drip.write_all(b"1\r\n-\r\n").is_ok() && begin.elapsed() < Duration::from_secs(30) {
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let answer = read_to_close(&mut client).expect("closed");
        assert_eq!(status_of(&answer), status, "{path} {framing}: {answer}");
        assert!(begin.elapsed() < Duration::from_secs(12), "{path} {framing}");
        client.shutdown(std::net::Shutdown::Both).ok();
        dripping.join().expect("no panic");
    }
    server.is_well();
}

#[test]
fn a_slow_head_is_408() {
    let server = TestServer::start(ServerOptions::default());
    let mut client = server.connect();
    client
        .write_all(b"GET /health HTTP/1.1\r\nHost: l")
        .expect("written");
    assert_eq!(status_of(&read_to_close(&mut client).expect("closed")), 408);
}

#[test]
fn uploads_share_a_memory_budget() {
    let options = ServerOptions {
        http: HttpOptions {
            max_upload_mib: 1,
            body_deadline_seconds: 8,
            ..HttpOptions::default()
        },
        queue_deadline_seconds: 2,
        ..ServerOptions::default()
    };
    let server = TestServer::start(options);
    // Nine uploads as large as may be, none of which ends: there is memory for two, and for one beyond that.
    let uploads: Vec<_> = (0..9)
        .map(|_| {
            let mut client = server.connect();
            let request = head("/extract", &format!("Content-Length: {}", MIB + 1000));
            let part = format!("--b\r\n{FILE_PART}\r\n\r\n");
            client.write_all(request.as_bytes()).expect("written");
            client.write_all(part.as_bytes()).expect("written");
            let _ = client.write_all(&vec![0; MIB]);
            client
        })
        .collect();
    let answers: Vec<String> = uploads
        .into_iter()
        .map(|mut client| read_to_close(&mut client).expect("closed"))
        .collect();
    let count = |status: u16| {
        answers
            .iter()
            .filter(|answer| status_of(answer) == status)
            .count()
    };
    let refused = count(503);
    assert!((6..9).contains(&refused), "{answers:?}");
    assert_eq!(refused + count(408), 9, "{answers:?}");
    let refusal = answers
        .iter()
        .find(|answer| status_of(answer) == 503)
        .expect("one");
    assert!(
        refusal.contains("retry-after: 1\r\n") && refusal.contains("uploads"),
        "{refusal}"
    );
    server.is_well();
}

#[test]
fn uploads_waiting_for_memory_do_not_deadlock() {
    let options = ServerOptions {
        http: HttpOptions {
            max_upload_mib: 1,
            ..HttpOptions::default()
        },
        queue: 32,
        ..ServerOptions::default()
    };
    let server = TestServer::start(options);
    // All are half there when the memory, a tenth of what they take together, is gone.
    let mut page = png(56, 84);
    page.resize(MIB, 0);
    std::thread::scope(|scope| {
        let uploads: Vec<_> = (0..20)
            .map(|_| scope.spawn(|| server.post("/extract", file_form(page.clone())).status()))
            .collect();
        for upload in uploads {
            assert_eq!(upload.join().expect("no panic"), 200);
        }
    });
    server.is_well();
}

#[test]
fn form_limits_are_exact() {
    let server = TestServer::start(ServerOptions::default());
    let parts = |count: usize| (1..count).fold(page_form(), |form, part| form.text(format!("f{part}"), "x"));
    assert_eq!(server.post("/extract", parts(MAX_PARTS)).status(), 200);
    assert_error(server.post("/extract", parts(MAX_PARTS + 1)), 400);

    let text = |bytes: usize| page_form().text("unknown", "x".repeat(bytes));
    assert_error(server.post("/extract", text(MAX_FIELD_BYTES + 1)), 413);
    assert_eq!(server.post("/extract", text(MAX_FIELD_BYTES)).status(), 200);

    let second_file = page_form().part("file", Part::bytes(vec![1]));
    assert_error(server.post("/extract", second_file), 400);
    let second_prompt = page_form().text("prompt", "a").text("prompt", "b");
    assert_error(server.post("/analyze", second_prompt), 400);
}

#[test]
fn the_prompt_limit_counts_characters() {
    let server = TestServer::start(ServerOptions::default());
    // Two bytes each.
    let prompt = |characters: usize| page_form().text("prompt", "é".repeat(characters));
    assert_eq!(
        server.post("/analyze", prompt(MAX_PROMPT_CHARACTERS)).status(),
        200
    );
    assert_error(server.post("/analyze", prompt(MAX_PROMPT_CHARACTERS + 1)), 422);
    let not_utf8 = page_form().part("prompt", Part::bytes(vec![0xff, 0xfe]));
    assert_error(server.post("/analyze", not_utf8), 422);
    let control = page_form().text("prompt", "a\u{0}\u{1b}[31m\u{2028}b");
    assert_eq!(server.post("/analyze", control).status(), 200);
}

#[test]
fn header_limits_are_exact() {
    let server = TestServer::start(ServerOptions::default());
    let status = |lines: usize, length: usize| {
        let filler: String = (2..lines)
            .map(|line| format!("X-{line}: {}\r\n", "v".repeat(length)))
            .collect();
        let request = format!("GET /health HTTP/1.1\r\nHost: l\r\nConnection: close\r\n{filler}\r\n");
        status_of(&server.raw(request.as_bytes()).expect("closed"))
    };
    assert_eq!(status(MAX_HEADERS, 1), 200);
    assert_eq!(status(MAX_HEADERS + 1, 1), 431);
    assert_eq!(status(6, 4_000), 200);
    assert_eq!(status(6, 4_200), 431);
    assert!([400, 431].contains(&status(5, 60_000)));
    assert!([400, 431].contains(&status(500, 1)));
    server.is_well();
}

#[test]
fn a_decompression_bomb_is_rejected_from_its_header() {
    let server = TestServer::start(ServerOptions::default());
    for (width, height) in [(22_000, 22_000), (65_535, 65_535)] {
        let mut bytes = Vec::new();
        let encoder = png::Encoder::new(&mut bytes, width, height);
        // A header and next to no content: had anyone tried to decode it, the error would be another.
        let mut writer = encoder.write_header().expect("a header");
        writer.write_chunk(png::chunk::IDAT, &[0x78]).expect("written");
        drop(writer);
        let begin = Instant::now();
        let detail = assert_error(server.post("/extract", file_form(bytes)), 400);
        assert!(detail.contains("pixels"), "{detail}");
        assert!(begin.elapsed() < Duration::from_secs(3));
    }
    let form = Form::new().part("file", Part::bytes(b"https://example.org/page.png".to_vec()));
    assert_error(server.post("/extract", form), 400);
    server.is_well();
}
