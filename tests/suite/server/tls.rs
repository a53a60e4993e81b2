//! TLS: versions, handshakes that fail or never end, client certificates, exchanged certificates; and that everything a connection
//! does without TLS it does with it, too.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use medical_vision::server::{HttpOptions, ServerOptions};
use reqwest::blocking::Client;
use rustls::ProtocolVersion;
use rustls::version::{TLS12, TLS13};
use serde_json::Value;

use super::certificates::{
    Folder, TlsClient, chain, connect, exchange, options, read_until, shake_hands, trusting,
};
use super::support::{
    FILE_PART, PATIENCE, PROMPT_PART, TestServer, assert_error, eventually, file_form, page_form, png,
    raw_post, read_to_close, status_of,
};

const GET: &[u8] = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
const STREAM_PART: &str = "Content-Disposition: form-data; name=\"stream\"";

fn post(prompt: &str) -> Vec<u8> {
    let page = png(8, 8);
    raw_post(
        "/analyze",
        "b",
        &[(FILE_PART, &page), (PROMPT_PART, prompt.as_bytes())],
    )
}

fn streamed(prompt: &str) -> Vec<u8> {
    let page = png(8, 8);
    let parts: [(&str, &[u8]); 3] = [
        (FILE_PART, &page),
        (PROMPT_PART, prompt.as_bytes()),
        (STREAM_PART, b"true"),
    ];
    raw_post("/analyze", "b", &parts)
}

/// A ClientHello of TLS up to 1.2, `version` 3 for 1.2.
fn client_hello(version: u8) -> Vec<u8> {
    // ECDHE and RSA suites of old; the curve P-256; signatures.
    let suites = [
        0xc0, 0x2b, 0xc0, 0x2f, 0xc0, 0x09, 0xc0, 0x13, 0xc0, 0x14, 0x00, 0x2f,
    ];
    let extensions = [
        [0x00, 0x0a, 0x00, 0x04, 0x00, 0x02, 0x00, 0x17].as_slice(),
        &[0x00, 0x0d, 0x00, 0x06, 0x00, 0x04, 0x04, 0x03, 0x04, 0x01],
    ]
    .concat();
    let mut body = vec![3, version];
    body.extend([7; 32]);
    body.extend([0, 0, suites.len() as u8]);
    body.extend(suites);
    body.extend([1, 0, 0, extensions.len() as u8]);
    body.extend(&extensions);
    let message = [&[1, 0, 0, body.len() as u8], &body[..]].concat();
    [&[22, 3, 1, 0, message.len() as u8], &message[..]].concat()
}

#[test]
fn the_chain_is_served_in_both_versions() {
    for name in ["server", "renewed"] {
        let server = TestServer::start(Folder::new(name).options());
        for (version, number) in [
            (&TLS12, ProtocolVersion::TLSv1_2),
            (&TLS13, ProtocolVersion::TLSv1_3),
        ] {
            let mut client = shake_hands(server.address, &[version], None).expect("a connection");
            assert_eq!(client.conn.protocol_version(), Some(number));
            assert_eq!(client.conn.alpn_protocol(), Some(b"http/1.1".as_slice()));
            assert_eq!(client.conn.peer_certificates(), Some(&chain(name)[..]));
            let answer = exchange(&mut client, GET).expect("closed in order");
            assert_eq!(status_of(&answer), 200, "{answer}");
        }
        server.is_well();
    }
}

#[test]
fn older_versions_and_nonsense_are_refused() {
    let server = TestServer::start(Folder::new("server").options());
    let answer = |bytes: &[u8]| {
        let mut client = server.connect();
        client.write_all(bytes).expect("written");
        client.shutdown(Shutdown::Write).expect("a connection");
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer);
        answer
    };
    // A ServerHello: the message is well-formed.
    assert_eq!(answer(&client_hello(3)).first(), Some(&22));
    // Alert 70: protocol version.
    for version in [0, 1, 2] {
        let answer = answer(&client_hello(version));
        assert_eq!(
            (answer.first(), answer.get(6)),
            (Some(&21), Some(&70)),
            "{answer:?}"
        );
    }
    for bytes in [
        // SSL 2, a record of another kind, a length beyond all limits, zeros.
        b"\x80\x2e\x01\x00\x02CANARY".as_slice(),
        b"\x17\x03\x03\x00\x06CANARY",
        b"\x16\x03\x03\xff\xffCANARY",
        &[0; 4096],
        &[0xff; 4096],
    ] {
        let answer = answer(bytes);
        assert!(answer.is_empty() || answer[0] == 21, "{answer:?}");
    }
    server.is_well();
}

#[test]
fn plain_http_is_told_that_the_port_speaks_tls() {
    let server = TestServer::start(Folder::new("server").options());
    let upload = [&post("hello")[..], &vec![b'x'; 1 << 20]].concat();
    for request in [
        GET,
        b"\r\n\r\nGET / HTTP/1.0\r\n\r\n",
        b"G",
        b"nonsense\r\n\r\n",
        &upload,
    ] {
        let answer = server.raw(request).expect("closed");
        assert_eq!(status_of(&answer), 400, "{answer}");
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
        assert!(head.to_ascii_lowercase().contains("connection: close"), "{head}");
        let body: Value = serde_json::from_str(body).expect("JSON");
        assert!(
            body["detail"].as_str().expect("a text").contains("https://"),
            "{body}"
        );
        assert_eq!(body.as_object().expect("an object").len(), 2);
    }
    let answer = server
        .raw(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n\r\n")
        .expect("closed");
    let (_, body) = answer.split_once("\r\n\r\n").expect("an answer");
    let body: Value = serde_json::from_str(body).expect("JSON");
    assert!(
        body["error"]["message"]
            .as_str()
            .expect("a text")
            .contains("https://"),
        "{body}"
    );
    server.is_well();
}

#[test]
fn half_a_handshake_is_closed_in_time_and_blocks_nobody() {
    assert_eq!(HttpOptions::default().handshake_seconds, 10);
    let folder = Folder::new("server");
    let start = |seconds| {
        let mut options = folder.options();
        options.http.handshake_seconds = seconds;
        TestServer::start(options)
    };
    // That limit alone closes them: it does not come before its time, and without it they stay.
    let (server, patient) = (start(2), start(3600));
    let mut kept = patient.connect();
    kept.write_all(&client_hello(3)[..9]).expect("written");
    let begin = Instant::now();
    let hello = client_hello(3);
    let mut halves: Vec<TcpStream> = (0..20).map(|_| server.connect()).collect();
    for (sent, client) in halves.iter_mut().enumerate() {
        client
            .write_all(&hello[..sent.min(hello.len())])
            .expect("written");
    }
    // The whole message, but nothing after the answer to it.
    let mut silent = server.connect();
    silent.write_all(&hello).expect("written");
    // One that never stops sending a little.
    let slow = server.connect();
    let mut trickle = slow.try_clone().expect("a socket");
    std::thread::spawn(move || {
        // A record of 16,384 bytes.
        let _ = trickle.write_all(b"\x16\x03\x01\x40\x00\x01\x00\x3f\x00");
        while trickle.write_all(b"x").is_ok() {
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    server.is_well();
    halves.push(slow);
    halves.push(silent);
    for client in &mut halves {
        read_to_close(client).expect("closed");
    }
    assert!(begin.elapsed() >= Duration::from_secs(2), "{:?}", begin.elapsed());
    server.is_well();
    kept.set_nonblocking(true).expect("a socket");
    let still = kept.read(&mut [0]).expect_err("neither an answer nor an end");
    assert_eq!(still.kind(), std::io::ErrorKind::WouldBlock);
}

/// A connection has its slot while it shakes hands, and loses it to another one as an idle connection does.
#[test]
fn handshakes_count_as_connections() {
    let folder = Folder::new("server");
    let mut options = folder.options();
    options.http.max_connections = 2;
    let server = TestServer::start(options);
    let mut silent = [server.connect(), server.connect()];
    // They have just come, so that they stay.
    let mut spare = connect(server.address);
    let answer = exchange(&mut spare, &post("hello")).expect("closed in order");
    // On a machine that is too busy they may have been idle for a second.
    assert!(matches!(status_of(&answer), 503 | 200), "{answer}");
    std::thread::sleep(Duration::from_millis(1_100));
    server.is_well();
    // One of them had to make room, the other one ends later.
    for client in &mut silent {
        client.set_nonblocking(true).expect("a socket");
    }
    eventually("one is closed", || {
        silent
            .iter_mut()
            .any(|client| matches!(client.read(&mut [0]), Ok(0)))
    });
}

#[test]
fn client_certificates_are_demanded() {
    let folder = Folder::new("server");
    let server = TestServer::start(options(folder.tls(true)));
    for version in [&TLS12, &TLS13] {
        let ask = |identity| {
            let mut client = shake_hands(server.address, &[version], identity)?;
            exchange(&mut client, GET)
        };
        assert_eq!(status_of(&ask(Some("client")).expect("an answer")), 200);
        // None, one of another authority, one that is not for clients.
        for identity in [None, Some("stranger"), Some("renewed")] {
            let error = ask(identity).expect_err("refused");
            assert!(!error.to_string().is_empty());
        }
    }
    // The health check is no exception.
    let stranger = trusting(Client::builder(), None).build().expect("a client");
    assert!(stranger.get(server.url("/health")).send().is_err());
    server.is_well();
}

#[test]
fn a_certificate_that_does_not_ask_takes_clients_with_one() {
    let server = TestServer::start(Folder::new("server").options());
    for identity in [None, Some("client"), Some("stranger")] {
        let mut client =
            shake_hands(server.address, rustls::DEFAULT_VERSIONS, identity).expect("a connection");
        let answer = exchange(&mut client, GET).expect("closed in order");
        assert_eq!(status_of(&answer), 200, "{answer}");
    }
}

#[test]
fn a_new_certificate_is_for_new_connections() {
    let folder = Folder::new("server");
    let tls = folder.tls(false);
    let server = TestServer::start(options(tls.clone()));
    let mut old = connect(server.address);
    old.write_all(&streamed("say first|WAIT|last")).expect("written");
    read_until(&mut old, "first");

    folder.renew("renewed");
    tls.reload().expect("good files");
    let renewed = connect(server.address);
    assert_eq!(renewed.conn.peer_certificates(), Some(&chain("renewed")[..]));

    // A broken file changes nothing.
    folder.put("server.pem", "cert.pem");
    let error = tls.reload().expect_err("not its key").to_string();
    assert!(error.contains("cert.key"), "{error}");
    std::fs::remove_file(folder.path("cert.pem")).expect("a file");
    tls.reload().expect_err("no file");
    let renewed = connect(server.address);
    assert_eq!(renewed.conn.peer_certificates(), Some(&chain("renewed")[..]));

    server.counts.signals.fetch_add(1, Ordering::SeqCst);
    let rest = read_until(&mut old, "event: done");
    assert!(rest.contains("last"), "{rest}");
    assert_eq!(old.conn.peer_certificates(), Some(&chain("server")[..]));
}

#[test]
fn large_uploads_and_answers_are_whole() {
    let server = TestServer::start(Folder::new("server").options());
    // The largest file: a picture, and zeros that belong to none.
    let mut page = png(56, 84);
    page.resize(20 << 20, 0);
    let answer = server.post("/analyze", file_form(page).text("prompt", "hello"));
    assert_eq!(answer.status(), 200);
    let body: Value = answer.json().expect("JSON");
    assert!(
        body["analysis"]
            .as_str()
            .expect("a text")
            .starts_with("hello|56x84"),
        "{body}"
    );
    // Too large a one gets its answer although it is not read to its end.
    let large = server.post("/analyze", file_form(vec![0; 24 << 20]));
    assert_error(large, 413);

    let body: Value = server.analyze("pour 16").json().expect("JSON");
    assert_eq!(body["analysis"].as_str().expect("a text").len(), 16 << 20);
    server.is_well();
}

#[test]
fn a_stream_arrives_as_it_is_generated() {
    let server = TestServer::start(Folder::new("server").options());
    for version in [&TLS12, &TLS13] {
        let mut client = shake_hands(server.address, &[version], None).expect("a connection");
        client
            .write_all(&streamed("say one|WAIT|two|WAIT|three"))
            .expect("written");
        for (text, later) in [("one", "two"), ("two", "three"), ("three", "four")] {
            let so_far = read_until(&mut client, text);
            assert!(!so_far.contains(later), "{so_far}");
            server.counts.signals.fetch_add(1, Ordering::SeqCst);
        }
        server.counts.signals.store(0, Ordering::SeqCst);
    }
}

/// However a client leaves, with or without TLS's own farewell, its reading is cancelled.
#[test]
fn a_disconnect_cancels_the_request() {
    let server = TestServer::start(Folder::new("server").options());
    let leave: [fn(&mut TlsClient); 4] = [
        |client| client.sock.shutdown(Shutdown::Both).expect("a connection"),
        |client| client.sock.shutdown(Shutdown::Write).expect("a connection"),
        |client| {
            client.conn.send_close_notify();
            client.flush().expect("written");
        },
        |client| {
            client.conn.send_close_notify();
            client.flush().expect("written");
            client.sock.shutdown(Shutdown::Write).expect("a connection");
        },
    ];
    let mut count = 0;
    for leave in leave {
        for request in [post("sleep 600000"), streamed("say a|WAIT")] {
            count += 1;
            let mut client = connect(server.address);
            client.write_all(&request).expect("written");
            eventually("it runs", || {
                server.counts.started.load(Ordering::SeqCst) == count
            });
            leave(&mut client);
            eventually("it is cancelled", || {
                server.counts.cancelled.load(Ordering::SeqCst) == count
            });
        }
    }
    eventually("its place is free", || server.engine.admitted() == 0);
    server.is_well();
}

#[test]
fn a_client_that_reads_nothing_is_disconnected() {
    let folder = Folder::new("server");
    let mut options = folder.options();
    options.http.stall_seconds = 1;
    options.stream_buffer_kib = 1 << 20;
    let server = TestServer::start(options);
    for prompt in ["pour 32|WAIT", "pour 32"] {
        let mut client = connect(server.address);
        client.write_all(&streamed(prompt)).expect("written");
        eventually("it runs", || server.engine.admitted() == 1);
        eventually("its place is free", || server.engine.admitted() == 0);
        eventually("it is disconnected", || {
            let mut probe = &client.sock;
            probe.write_all(b"x").is_err()
        });
    }
    server.is_well();
}

#[test]
fn draining_ends_handshakes_and_idle_connections_and_answers_the_rest() {
    let server = TestServer::start(Folder::new("server").options());
    let mut running = connect(server.address);
    running
        .write_all(&streamed("say first|WAIT|last"))
        .expect("written");
    read_until(&mut running, "first");
    // Answered once: the server has seen the end of the handshake.
    let mut idle = connect(server.address);
    idle.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .expect("written");
    read_until(&mut idle, "\"model_loaded\"");
    let mut silent = server.connect();
    silent.write_all(&client_hello(3)[..9]).expect("written");
    let begin = Instant::now();
    server.drain();
    read_to_close(&mut silent).expect("closed");
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).expect("closed in order");
    eventually("it accepts nothing more", || {
        TcpStream::connect(server.address).is_err()
    });
    assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
    server.counts.signals.fetch_add(1, Ordering::SeqCst);
    let mut rest = String::new();
    running.read_to_string(&mut rest).expect("closed in order");
    assert!(rest.contains("last") && rest.contains("event: done"), "{rest}");
}

#[test]
fn the_demo_page_speaks_tls_too() {
    let folder = Folder::new("server");
    let server = TestServer::start(ServerOptions {
        demo_port: Some(0),
        ..folder.options()
    });
    let demo: SocketAddr = server.demo.expect("a page");
    let page = server
        .client
        .get(format!("https://{demo}/"))
        .send()
        .expect("a page");
    assert_eq!(page.status(), 200);
    assert!(page.text().expect("text").contains("<!doctype html"));
    let reading = |origin: String| {
        let request = server.client.post(format!("https://{demo}/api/analyze"));
        let request = request.header("origin", origin).multipart(page_form());
        request.send().expect("an answer").status().as_u16()
    };
    assert_eq!(reading(format!("https://{demo}")), 200);
    assert_eq!(reading("https://example.org".into()), 403);
    let mut plain = TcpStream::connect(demo).expect("a connection");
    plain.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    plain.write_all(GET).expect("written");
    let answer = read_to_close(&mut plain).expect("closed");
    assert_eq!(status_of(&answer), 400, "{answer}");
}

/// Bounds of head and body are those of a connection without TLS.
#[test]
fn requests_are_bounded_inside_tls() {
    let folder = Folder::new("server");
    let mut options = folder.options();
    options.http = HttpOptions {
        body_deadline_seconds: 1,
        ..options.http
    };
    let server = TestServer::start(options);
    let long = format!(
        "GET /health HTTP/1.1\r\nHost: a\r\n{}: y\r\n\r\n",
        "a".repeat(65_536)
    );
    let cut = post("hello");
    for (status, request) in [
        (400, b"nonsense\r\n\r\n".as_slice()),
        (431, long.as_bytes()),
        (408, b"GET /health HTTP/1.1\r\n"),
        (408, &cut[..cut.len() - 10]),
    ] {
        let answer = exchange(&mut connect(server.address), request).expect("closed in order");
        assert_eq!(status_of(&answer), status, "{answer}");
        assert!(answer.contains("\"detail\""), "{answer}");
    }
    server.is_well();
}
