//! Requests that no well-behaved client sends, as raw bytes: an error or a closed connection, never a 5xx, a panic or a
//! wait without end, and the server serves on.

use std::io::Write;
use std::time::Duration;

use medical_vision::server::{HttpOptions, ServerOptions};

use super::support::{FILE_PART, PROMPT_PART, TestServer, png, raw_body, raw_post, read_to_close, status_of};

fn quick() -> ServerOptions {
    ServerOptions {
        http: HttpOptions {
            body_deadline_seconds: 2,
            ..HttpOptions::default()
        },
        ..ServerOptions::default()
    }
}

fn assert_refused(server: &TestServer, what: &str, request: &[u8]) -> String {
    let answer = server.raw(request);
    let answer = answer.unwrap_or_else(|| panic!("{what}: the connection stays open"));
    let status = status_of(&answer);
    // A connection closed without an answer could hide a panic.
    assert!((400..500).contains(&status), "{what}: {answer:?}");
    answer
}

#[test]
fn malformed_http_is_rejected_and_the_connection_closed() {
    let server = TestServer::start(quick());
    let smuggled = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: l\r\n\r\n";
    let post =
        |lines: &str, body: &str| format!("POST /extract HTTP/1.1\r\nHost: l\r\n{lines}\r\n\r\n{body}");
    let chunked = |body: &str| post("Transfer-Encoding: chunked", body);
    let cases = [
        (
            "length and chunks",
            post("Content-Length: 4\r\nTransfer-Encoding: chunked", smuggled),
        ),
        (
            "chunks and length",
            post("Transfer-Encoding: chunked\r\nContent-Length: 4", smuggled),
        ),
        (
            "two lengths",
            post("Content-Length: 4\r\nContent-Length: 5", "abcd"),
        ),
        (
            "two equal lengths",
            post("Content-Length: 4\r\nContent-Length: 4", "abcd"),
        ),
        ("length with plus", post("Content-Length: +4", "abcd")),
        ("length in hex", post("Content-Length: 0x4", "abcd")),
        ("negative length", post("Content-Length: -4", "abcd")),
        ("length list", post("Content-Length: 4, 4", "abcd")),
        (
            "length overflow",
            post("Content-Length: 18446744073709551616", "abcd"),
        ),
        ("length with letters", post("Content-Length: 4abc", "abcd")),
        ("empty length", post("Content-Length:", "abcd")),
        ("unknown coding", post("Transfer-Encoding: xchunked", smuggled)),
        (
            "two codings",
            post(
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
                smuggled,
            ),
        ),
        ("coding list", post("Transfer-Encoding: gzip, chunked", smuggled)),
        (
            "space before colon",
            post("Transfer-Encoding : chunked", smuggled),
        ),
        ("folded header", post("X-A: b\r\n c: d\r\nContent-Length: 0", "")),
        ("bad chunk size", chunked("zz\r\nabc\r\n0\r\n\r\n")),
        ("negative chunk size", chunked("-1\r\nabc\r\n0\r\n\r\n")),
        (
            "huge chunk size",
            chunked("fffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
        ),
        (
            "largest chunk size",
            chunked("ffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
        ),
        ("chunk without end", chunked("3\r\nabcXX0\r\n\r\n")),
        ("chunk size with spaces", chunked(" 3\r\nabc\r\n0\r\n\r\n")),
        ("no final chunk", chunked("3\r\nabc\r\n")),
        ("null in a header", post("X-A: a\0b\r\nContent-Length: 0", "")),
        ("null in a name", post("X\0A: b\r\nContent-Length: 0", "")),
        ("header without colon", post("Header\r\nContent-Length: 0", "")),
        ("empty header name", post(": value\r\nContent-Length: 0", "")),
        (
            "two hosts",
            "GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".into(),
        ),
        ("no version", "GET /health\r\n\r\n".into()),
        ("version 9", "GET /health HTTP/9.9\r\n\r\n".into()),
        ("spaces in the path", "GET /he alth HTTP/1.1\r\n\r\n".into()),
        ("no path", "GET  HTTP/1.1\r\n\r\n".into()),
        ("not HTTP", "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n".into()),
        ("HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into()),
        ("control characters", "GET /\x01\x02 HTTP/1.1\r\n\r\n".into()),
        ("bad method", "G\u{e9}T / HTTP/1.1\r\n\r\n".into()),
        (
            "long path",
            format!(
                "GET /{} HTTP/1.1\r\nConnection: close\r\n\r\n",
                "a".repeat(60_000)
            ),
        ),
        (
            "longer path",
            format!(
                "GET /{} HTTP/1.1\r\nConnection: close\r\n\r\n",
                "a".repeat(200_000)
            ),
        ),
        (
            "escapes",
            "GET /%ff%00%2e%2e%2f HTTP/1.1\r\nConnection: close\r\n\r\n".into(),
        ),
        (
            "climbing",
            "GET /docs/../../etc/passwd HTTP/1.1\r\nConnection: close\r\n\r\n".into(),
        ),
        (
            "websocket",
            post(
                "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0",
                "",
            ),
        ),
        ("nothing but a line", "\r\n\r\n\r\n".into()),
    ];
    for (what, request) in &cases {
        let answer = assert_refused(&server, what, request.as_bytes());
        // Bytes after a refused request are never taken for another one.
        assert!(answer.matches("HTTP/1.1").count() <= 1, "{what}: {answer}");
    }
    server.is_well();
}

#[test]
fn malformed_forms_are_rejected() {
    let server = TestServer::start(quick());
    let page = png(8, 8);
    let part = |lines: &str| raw_post("/extract", "b", &[(lines, &page)]);
    let framed = |boundary: &str, body: &[u8]| {
        let head = format!(
            "POST /extract HTTP/1.1\r\nHost: l\r\nConnection: close\r\n\
             Content-Type: multipart/form-data{boundary}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        [head.as_bytes(), body].concat()
    };
    let whole = raw_body("b", &[(FILE_PART, &page)]);
    let without_end = &whole[..whole.len() - b"--b--\r\n".len()];
    let many: Vec<(&str, &[u8])> = vec![(PROMPT_PART, b"x".as_slice()); 10_000];
    let long_line = format!("{FILE_PART}\r\nX-Long: {}", "x".repeat(1024 * 1024));
    let many_lines = format!("{FILE_PART}{}", "\r\nX-A: b".repeat(100));
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("no boundary", framed("", &whole)),
        ("empty boundary", framed("; boundary=", &whole)),
        ("empty quoted boundary", framed("; boundary=\"\"", &whole)),
        ("other boundary", framed("; boundary=c", &whole)),
        ("broken boundary", framed("; boundary=\"b", &whole)),
        ("no final boundary", framed("; boundary=b", without_end)),
        (
            "half a final boundary",
            framed("; boundary=b", &whole[..whole.len() - 4]),
        ),
        ("cut in the part's header", framed("; boundary=b", &whole[..20])),
        (
            "cut in the picture",
            framed("; boundary=b", &whole[..whole.len() / 2]),
        ),
        ("nothing", framed("; boundary=b", b"")),
        ("only the end", framed("; boundary=b", b"--b--\r\n")),
        ("only line ends", framed("; boundary=b", &b"\r\n".repeat(50_000))),
        ("only dashes", framed("; boundary=b", &vec![b'-'; 200_000])),
        ("no disposition", part("Content-Type: image/png")),
        (
            "no name",
            part("Content-Disposition: form-data; filename=\"a.png\""),
        ),
        ("empty name", part("Content-Disposition: form-data; name=\"\"")),
        (
            "not form-data",
            part("Content-Disposition: attachment; name=\"file\""),
        ),
        (
            "broken disposition",
            part("Content-Disposition: form-data; name=\"file"),
        ),
        ("not a header", part("Content-Disposition")),
        (
            "binary header",
            part("Content-Disposition: form-data; name=\"\u{7f}\u{1}\""),
        ),
        (
            "wrong length",
            part(&format!("{FILE_PART}\r\nContent-Length: 1000000")),
        ),
        ("short length", part(&format!("{FILE_PART}\r\nContent-Length: 3"))),
        ("odd length", part(&format!("{FILE_PART}\r\nContent-Length: -1"))),
        ("a megabyte of header", part(&long_line)),
        ("a hundred header lines", part(&many_lines)),
        ("ten thousand parts", raw_post("/extract", "b", &many)),
        (
            "a nested form",
            part(&format!(
                "{FILE_PART}\r\nContent-Type: multipart/mixed; boundary=c"
            ))[..300]
                .to_vec(),
        ),
        (
            "a boundary of 64 KiB",
            framed(&format!("; boundary={}", "b".repeat(65_536)), &whole),
        ),
    ];
    for (what, request) in &cases {
        assert_refused(&server, what, request);
    }
    server.is_well();
}

#[test]
fn mutated_forms_get_a_response() {
    let server = TestServer::start(quick());
    let page = png(8, 8);
    let whole = raw_body("b", &[(FILE_PART, &page), (PROMPT_PART, b"hello")]);
    let pieces: [&[u8]; 12] = [
        b"--b",
        b"--b--",
        b"\r\n",
        b"\n",
        b"\r",
        b"\r\n\r\n",
        b"\0",
        b";",
        b"\"",
        b"Content-Length: 3\r\n",
        b"\xff\xfe",
        b"-",
    ];
    let mut seed = 20_261_124_u64;
    let mut random = |below: usize| {
        // Knuth's 64-bit linear congruential generator; its high bits are good enough here.
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    let mut statuses = [0; 600];
    for round in 0..1_000 {
        let mut body = whole.clone();
        for _ in 0..=random(3) {
            let at = random(body.len());
            match random(4) {
                0 => body[at] = random(256) as u8,
                1 => drop(body.splice(at..at, pieces[random(pieces.len())].iter().copied())),
                2 => drop(body.drain(at..(at + 1 + random(20)).min(body.len()))),
                _ => body.truncate(at.max(1)),
            }
        }
        let head = format!(
            "POST /analyze HTTP/1.1\r\nHost: l\r\nConnection: close\r\n\
             Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let answer = server.raw(&[head.as_bytes(), &body].concat()).expect("closed");
        let status = status_of(&answer);
        let allowed = status == 200 || (400..500).contains(&status);
        assert!(
            allowed,
            "round {round}: {answer:?} to {:?}",
            String::from_utf8_lossy(&body)
        );
        statuses[usize::from(status)] += 1;
    }
    // The mutations reach both sides of every decision.
    let [read, malformed, no_file] = [200, 400, 422].map(|status: usize| statuses[status]);
    assert!(
        read > 20 && malformed > 20 && no_file > 0,
        "{read} {malformed} {no_file}"
    );
}

#[test]
fn unusual_but_valid_forms_are_accepted() {
    let server = TestServer::start(quick());
    let page = png(8, 8);
    let long = "b".repeat(256);
    let with_rest = {
        let mut body = b"a preamble\r\n".to_vec();
        body.extend(raw_body("b", &[(FILE_PART, &page)]));
        body.extend_from_slice(b"an epilogue");
        let head = format!(
            "POST /extract HTTP/1.1\r\nHost: l\r\nConnection: close\r\n\
             Content-Type: Multipart/Form-Data; charset=utf-8; boundary=\"b\"\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        [head.into_bytes(), body].concat()
    };
    let hostile_name = "Content-Disposition: form-data; name=\"file\"; filename=\"../../etc/passwd\"";
    let tricky = b"\r\n--b\rnot the boundary\r\n-- b--\r".to_vec();
    for (what, request) in [
        (
            "a boundary of 256 bytes",
            raw_post("/extract", &long, &[(FILE_PART, &page)]),
        ),
        ("preamble and epilogue", with_rest),
        (
            "no file name",
            raw_post(
                "/extract",
                "b",
                &[("Content-Disposition: form-data; name=file", &page)],
            ),
        ),
        (
            "a hostile file name",
            raw_post("/extract", "b", &[(hostile_name, &page)]),
        ),
        (
            "content like a boundary",
            raw_post("/analyze", "bbb", &[(FILE_PART, &page), (PROMPT_PART, &tricky)]),
        ),
    ] {
        let answer = server.raw(&request).expect("closed");
        assert_eq!(status_of(&answer), 200, "{what}: {answer}");
    }
}

#[test]
fn forms_may_be_split_anywhere() {
    let server = TestServer::start(quick());
    let page = png(4, 4);
    let body = raw_body("bound", &[(PROMPT_PART, b"split\r\n--boun"), (FILE_PART, &page)]);
    let content_type = "Content-Type: multipart/form-data; boundary=bound";
    let head = format!(
        "POST /analyze HTTP/1.1\r\nHost: l\r\nConnection: close\r\n{content_type}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    for at in 0..body.len() {
        let mut client = server.connect();
        client.set_nodelay(true).expect("a socket");
        client.write_all(head.as_bytes()).expect("written");
        client.write_all(&body[..at]).expect("written");
        std::thread::sleep(Duration::from_millis(1));
        client.write_all(&body[at..]).expect("written");
        let answer = read_to_close(&mut client).expect("closed");
        assert_eq!(status_of(&answer), 200, "split at {at}: {answer}");
        assert!(
            answer.contains("\"prompt_used\":\"split\\r\\n--boun\""),
            "{answer}"
        );
    }
    // Every byte a chunk of its own.
    let mut request = format!(
        "POST /analyze HTTP/1.1\r\nHost: l\r\nConnection: close\r\n{content_type}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    .into_bytes();
    for byte in &body {
        request.extend_from_slice(&[b'1', b'\r', b'\n', *byte, b'\r', b'\n']);
    }
    request.extend_from_slice(b"0\r\n\r\n");
    let answer = server.raw(&request).expect("closed");
    assert_eq!(status_of(&answer), 200, "{answer}");
}
