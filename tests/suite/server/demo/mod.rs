//! The demo page: `demo_ui` in front of an API, and `server --demo-port`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;

use medical_vision::server::ServerOptions;

use super::support::{PATIENCE, TestServer};
use crate::suite::program::without_variables;

mod forward;
mod page;
mod process;
mod streams;

/// `demo_ui` without the caller's `MVP_*` variables.
fn demo_ui(arguments: &[&str]) -> Command {
    let mut command = without_variables(env!("CARGO_BIN_EXE_demo_ui"));
    command
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A running `demo_ui` on a free port.
struct DemoUi {
    address: SocketAddr,
    child: Child,
    log: Option<JoinHandle<String>>,
}

impl DemoUi {
    fn start(api: SocketAddr, arguments: &[&str]) -> Self {
        Self::start_with(api, arguments, &[])
    }

    fn start_with(api: SocketAddr, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let api = format!("http://{api}");
        let mut command = demo_ui(&["--port", "0", "--api-url", &api]);
        command.args(arguments).envs(variables.iter().copied());
        let mut child = command.spawn().expect("demo_ui starts");
        let (address, log) = follow(&mut child, "Demo page: http://", ',');
        Self {
            address,
            child,
            log: Some(log),
        }
    }

    /// All that it said on standard error, once it has ended.
    fn log(&mut self) -> String {
        self.log.take().expect("asked once").join().expect("no panic")
    }
}

impl Drop for DemoUi {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads a program's standard error to its end. Returns the address between `before` and `after` in it, and all lines.
fn follow(child: &mut Child, before: &'static str, after: char) -> (SocketAddr, JoinHandle<String>) {
    let lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    let (sender, receiver) = mpsc::channel();
    let log = std::thread::spawn(move || {
        let mut log = String::new();
        for line in lines.map_while(Result::ok) {
            if let Some((_, rest)) = line.split_once(before) {
                let address = rest.split(after).next().expect("an address");
                let _ = sender.send(address.parse().expect("an address"));
            }
            log.push_str(&line);
            log.push('\n');
        }
        log
    });
    (receiver.recv_timeout(PATIENCE).expect("it listens"), log)
}

/// Sends a signal to a child of this process.
fn signal(child: &Child, number: i32) {
    let id = i32::try_from(child.id()).expect("an id");
    // SAFETY: `kill` takes any id and number; the child has not been waited for, so that the id is its own.
    assert_eq!(unsafe { libc::kill(id, number) }, 0);
}

/// The page in both forms: `demo_ui` in front of a server with a stub, and the same server's own.
struct BothForms {
    server: TestServer,
    addresses: [SocketAddr; 2],
    _demo_ui: DemoUi,
}

impl BothForms {
    fn start() -> Self {
        let server = TestServer::start(ServerOptions {
            demo_port: Some(0),
            ..ServerOptions::default()
        });
        let demo_ui = DemoUi::start(server.address, &[]);
        Self {
            addresses: [demo_ui.address, server.demo.expect("a page")],
            server,
            _demo_ui: demo_ui,
        }
    }
}

/// An API of which the test plays every byte.
struct FakeApi(TcpListener);

impl FakeApi {
    fn new() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").expect("a free port"))
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().expect("an address")
    }

    /// The next request's head, and the connection that it came on.
    fn request(&self) -> (String, TcpStream) {
        let (mut stream, _) = self.0.accept().expect("a connection");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let head = read_until(&mut stream, "\r\n\r\n");
        (head.to_ascii_lowercase(), stream)
    }

    /// Answers the next request; returns its head.
    fn answer(&self, answer: &str) -> String {
        let (head, mut stream) = self.request();
        stream.write_all(answer.as_bytes()).expect("written");
        let _ = stream.shutdown(Shutdown::Write);
        // A reset would take the answer away again.
        let _ = stream.read_to_end(&mut Vec::new());
        head
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// Connects and sends.
fn sent(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = connect(address);
    // The server may answer and close while we still write.
    let _ = stream.write_all(bytes);
    stream
}

/// Reads up to and with `end`.
fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut bytes = Vec::new();
    let mut byte = [0];
    while !bytes.ends_with(end.as_bytes()) {
        let read = stream.read(&mut byte).expect("within patience");
        assert_eq!(read, 1, "ended after {:?}", String::from_utf8_lossy(&bytes));
        bytes.extend_from_slice(&byte);
    }
    String::from_utf8(bytes).expect("text")
}

/// Reads until the other side closes or resets; all that came.
fn read_to_end(stream: &mut TcpStream) -> String {
    super::support::read_to_close(stream).expect("closed")
}

/// A GET as raw bytes; the path is sent as it is.
fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").into_bytes()
}

/// An answer's JSON as raw bytes.
fn json(status: &str, lines: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{lines}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}
