//! Both programs as a supervisor sees them: flags, exit codes, signals.

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::process::Output;

use super::super::binary::server;
use super::super::support::{FILE_PART, eventually, raw_body, status_of};
use super::{DemoUi, FakeApi, demo_ui, follow, get, read_to_end, read_until, sent, signal};

const PAGE: &str = "tests/fixtures/pages/small_strip_rx.png";
const STREAM_PART: &str = "Content-Disposition: form-data; name=\"stream\"";

fn run(arguments: &[&str]) -> (i32, String) {
    let Output { status, stderr, .. } = demo_ui(arguments).output().expect("demo_ui runs");
    let stderr = String::from_utf8(stderr).expect("UTF-8");
    (status.code().expect("not ended by a signal"), stderr)
}

#[test]
fn wrong_flags_are_usage_errors() {
    for (argument, reason) in [
        ("--api-url=ftp://localhost", "http"),
        ("--api-url=localhost:8000", "http"),
        ("--api-url=http://user:hunter2@localhost", "password"),
        ("--api-url=http://localhost/v1", "no path"),
        ("--api-url=", "not an address"),
        ("--allowed-host=https://example.org", "HOST"),
        ("--max-upload-mib=0", "1.."),
        ("--port=65536", "65536"),
    ] {
        let (code, stderr) = run(&[argument]);
        assert_eq!(code, 2, "{argument}: {stderr}");
        let flag = argument.split('=').next().expect("a flag");
        assert!(
            stderr.contains(flag) && stderr.contains(reason),
            "{argument}: {stderr}"
        );
        assert!(!stderr.contains("hunter2"), "{stderr}");
    }
    let help = demo_ui(&["--help"]).output().expect("demo_ui runs");
    let help = String::from_utf8(help.stdout).expect("UTF-8");
    for name in [
        "MVP_API_URL",
        "MVP_DEMO_PORT",
        "MVP_HOST",
        "MVP_DEMO_ALLOWED_HOST",
        "7860",
        "http://127.0.0.1:8000",
    ] {
        assert!(help.contains(name), "{name} is missing:\n{help}");
    }
}

/// Whoever reaches the page can use an API that asks for no key.
#[test]
fn without_a_host_only_this_machine_reaches_the_page() {
    let api = FakeApi::new();
    let mut demo_ui = DemoUi::start(api.address(), &[]);
    assert!(demo_ui.address.ip().is_loopback(), "{}", demo_ui.address);
    // The kernel's word for it: local addresses and states of this network's sockets, `0A` being one that listens.
    let port = format!(":{:04X}", demo_ui.address.port());
    let sockets =
        ["/proc/net/tcp", "/proc/net/tcp6"].map(|file| std::fs::read_to_string(file).unwrap_or_default());
    let listening: Vec<&str> = sockets
        .iter()
        .flat_map(|table| table.lines())
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|words| words.len() > 3 && words[1].ends_with(&port) && words[3] == "0A")
        .map(|words| words[1])
        .collect();
    assert_eq!(listening, [format!("0100007F{port}")]);
    // And with one, the one that is asked for.
    signal(&demo_ui.child, libc::SIGTERM);
    assert!(!demo_ui.log().contains("reachable from the network"));
    let mut open = DemoUi::start(api.address(), &["--host", "0.0.0.0"]);
    signal(&open.child, libc::SIGTERM);
    assert!(open.log().contains("reachable from the network"));
}

#[test]
fn a_port_in_use_is_an_error_that_names_the_flag() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let (code, stderr) = run(&["--port", &port]);
    assert_eq!(code, 1, "{stderr}");
    for part in [port.as_str(), "already in use", "with --port"] {
        assert!(stderr.contains(part), "{stderr}");
    }
    let output = server(&["--port", "0", "--demo-port", &port])
        .output()
        .expect("the server runs");
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains("already in use") && stderr.contains("--demo-port"),
        "{stderr}"
    );
}

#[test]
fn sigterm_drains_what_is_in_flight() {
    let api = FakeApi::new();
    let mut demo_ui = DemoUi::start(api.address(), &[]);
    let mut client = sent(demo_ui.address, &get("/api/health"));
    let (_, mut stream) = api.request();
    stream
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 8\r\n\r\nhalf")
        .expect("written");
    read_until(&mut client, "half");
    signal(&demo_ui.child, libc::SIGTERM);
    eventually("it accepts nothing more", || {
        TcpStream::connect(demo_ui.address).is_err()
    });
    stream.write_all(b"rest").expect("written");
    assert_eq!(read_to_end(&mut client), "rest");
    let status = demo_ui.child.wait().expect("a child");
    assert_eq!(status.code(), Some(0));
    let log = demo_ui.log();
    assert!(log.contains("draining"), "{log}");
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let api = FakeApi::new();
    let mut demo_ui = DemoUi::start(api.address(), &[]);
    let _client = sent(demo_ui.address, &get("/api/health"));
    let _held = api.request();
    signal(&demo_ui.child, libc::SIGINT);
    eventually("it accepts nothing more", || {
        TcpStream::connect(demo_ui.address).is_err()
    });
    signal(&demo_ui.child, libc::SIGINT);
    let status = demo_ui.child.wait().expect("a child");
    assert_eq!(status.code(), Some(130));
}

/// The shipped program: page and API in one process, drained together.
#[test]
fn one_process_serves_page_and_api() {
    let mut command = server(&[
        "--port",
        "0",
        "--demo-port",
        "0",
        "--model",
        "models/qwen25-vl-nano",
    ]);
    let mut child = command.spawn().expect("the server starts");
    let (page, log) = follow(&mut child, "  page  http://", '\n');
    assert_eq!(status_of(&read_to_end(&mut sent(page, &get("/")))), 200);
    let file = std::fs::read(PAGE).expect("a page");
    let body = raw_body("b", &[(FILE_PART, &file), (STREAM_PART, b"true")]);
    let head = format!(
        "POST /api/extract HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\n\
         Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut client = sent(page, &[head.as_bytes(), &body].concat());
    let begin = read_until(&mut client, "event: delta\n");
    assert!(begin.contains("content-type: text/event-stream"), "{begin}");
    signal(&child, libc::SIGTERM);
    let rest = read_to_end(&mut client);
    assert!(
        rest.contains("event: done\n") && rest.ends_with("0\r\n\r\n"),
        "{rest}"
    );
    let status = child.wait().expect("a child");
    assert_eq!(status.code(), Some(0));
    let log = log.join().expect("no panic");
    assert!(log.contains("  API   http://127.0.0.1:"), "{log}");
}
