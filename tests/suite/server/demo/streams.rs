//! Bodies pass in pieces, as they come, in both directions; who leaves is missed at the other end.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::atomic::Ordering;

use super::super::support::{FILE_PART, PROMPT_PART, eventually, png, raw_post, status_of};
use super::{BothForms, DemoUi, FakeApi, get, read_to_end, read_until, sent};

const EVENTS: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

/// Each is read before the next is sent.
#[test]
fn events_arrive_one_by_one() {
    let api = FakeApi::new();
    let demo_ui = DemoUi::start(api.address(), &[]);
    let mut client = sent(demo_ui.address, &get("/api/health"));
    let (_, mut stream) = api.request();
    stream.write_all(EVENTS.as_bytes()).expect("written");
    let head = read_until(&mut client, "\r\n\r\n").to_ascii_lowercase();
    assert!(head.contains("content-type: text/event-stream\r\n"), "{head}");
    for text in [
        "event: queued\ndata: {}\n\n",
        ": keep-alive\n\n",
        "event: delta\ndata: {}\n\n",
    ] {
        // In two pieces: part of an event does not wait for the rest.
        let (first, second) = text.split_at(5);
        for piece in [first, second] {
            stream.write_all(chunk(piece).as_bytes()).expect("written");
            assert_eq!(read_until(&mut client, &chunk(piece)), chunk(piece));
        }
    }
    stream.write_all(b"0\r\n\r\n").expect("written");
    assert_eq!(read_to_end(&mut client), "0\r\n\r\n");
}

#[test]
fn a_body_arrives_piece_by_piece() {
    let api = FakeApi::new();
    let demo_ui = DemoUi::start(api.address(), &[]);
    let head = "POST /api/extract HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
                Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 15\r\n\r\n";
    let mut client = sent(demo_ui.address, head.as_bytes());
    let (head, mut stream) = api.request();
    assert!(head.contains("content-length: 15\r\n"), "{head}");
    for piece in ["first", "other", "third"] {
        client.write_all(piece.as_bytes()).expect("written");
        assert_eq!(read_until(&mut stream, piece), piece);
    }
    stream
        .write_all(super::json("200 OK", "", "{}").as_bytes())
        .expect("written");
    assert_eq!(status_of(&read_to_end(&mut client)), 200);
}

#[test]
fn a_visitor_who_leaves_ends_the_request_to_the_api() {
    let api = FakeApi::new();
    let demo_ui = DemoUi::start(api.address(), &[]);
    // Before the answer, in the middle of it, and with a half-closed connection.
    for (answer, how) in [
        ("", Shutdown::Both),
        (EVENTS, Shutdown::Both),
        (EVENTS, Shutdown::Write),
    ] {
        let mut client = sent(demo_ui.address, &get("/api/health"));
        let (_, mut stream) = api.request();
        if !answer.is_empty() {
            stream.write_all(answer.as_bytes()).expect("written");
            stream
                .write_all(chunk("data: {}\n\n").as_bytes())
                .expect("written");
            read_until(&mut client, "data: {}\n\n");
        }
        client.shutdown(how).expect("a connection");
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty(), "{rest:?}");
    }
}

/// `/api/analyze` of a small page, as raw bytes.
fn analyze(prompt: &str, stream: &str) -> Vec<u8> {
    let parts = [
        (FILE_PART, &png(8, 8)[..]),
        (PROMPT_PART, prompt.as_bytes()),
        (
            "Content-Disposition: form-data; name=\"stream\"",
            stream.as_bytes(),
        ),
    ];
    raw_post("/api/analyze", "b", &parts)
}

#[test]
fn readings_stream_through_both_forms() {
    let forms = BothForms::start();
    for address in forms.addresses {
        let mut client = sent(address, &analyze("sleep 100", "true"));
        let head = read_until(&mut client, "\r\n\r\n").to_ascii_lowercase();
        for line in [
            "content-type: text/event-stream",
            "x-accel-buffering: no",
            "cache-control: no-store",
        ] {
            assert!(head.contains(&format!("{line}\r\n")), "{line}: {head}");
        }
        let events = read_to_end(&mut client);
        let at = |name| events.find(&format!("event: {name}\n")).expect(name);
        assert!(at("queued") < at("delta") && at("delta") < at("done"), "{events}");
        assert!(!events.contains("event: error"), "{events}");
    }
}

#[test]
fn a_visitor_who_leaves_cancels_the_reading() {
    let forms = BothForms::start();
    let counts = &forms.server.counts;
    let cases = forms
        .addresses
        .map(|address| [(address, "false"), (address, "true")]);
    for (round, (address, stream)) in cases.into_iter().flatten().enumerate() {
        let mut client = sent(address, &analyze("sleep 60000", stream));
        eventually("it runs", || counts.started.load(Ordering::SeqCst) == round + 1);
        if stream == "true" {
            read_until(&mut client, "event: delta\n");
        }
        drop(client);
        eventually("it is cancelled", || {
            counts.cancelled.load(Ordering::SeqCst) == round + 1
        });
    }
    eventually("its place is free", || forms.server.engine.admitted() == 0);
    forms.server.is_well();
}

/// The page must not take half an answer for a whole one.
#[test]
fn an_answer_that_breaks_off_is_broken_for_the_visitor() {
    let api = FakeApi::new();
    let demo_ui = DemoUi::start(api.address(), &[]);
    let length = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n";
    for (head, part) in [(EVENTS, chunk("data: 1\n\n")), (length, "{\"a\":".to_owned())] {
        let mut client = sent(demo_ui.address, &get("/api/benchmark"));
        api.answer(&format!("{head}{part}"));
        let answer = read_to_end(&mut client);
        assert_eq!(status_of(&answer), 200, "{answer}");
        let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
        assert!(body.contains(part.trim_end()), "{answer}");
        assert!(!body.ends_with("0\r\n\r\n"), "{answer}");
        assert!(
            head.contains("content-length: 100") || head.contains("chunked"),
            "{head}"
        );
    }
    let mut client = sent(demo_ui.address, &get("/api/health"));
    api.answer(&super::json("200 OK", "", "{}"));
    assert_eq!(status_of(&read_to_end(&mut client)), 200);
}
