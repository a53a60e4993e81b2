//! The shipped binary as a supervisor sees it: exit codes, signals, what it prints.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;

use super::support::{PATIENCE, read_to_close, status_of};
use crate::suite::program::{ModelCopy, without_variables};

/// The binary in the project's folder, without the caller's `MVP_*` variables and without the
/// adapter that comes with the embedded model: most tests are about the model alone.
pub fn server(arguments: &[&str]) -> Command {
    let mut command = without_variables(env!("CARGO_BIN_EXE_server"));
    command.env("MVP_ADAPTER", "none").env("MVP_DRAIN_DELAY", "0");
    command
        .args(["--device", "cpu"])
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run(arguments: &[&str]) -> (i32, String) {
    let Output { status, stderr, .. } = server(arguments).output().expect("the server runs");
    let stderr = String::from_utf8(stderr).expect("UTF-8");
    (status.code().expect("not ended by a signal"), stderr)
}

#[test]
fn a_port_in_use_is_an_error_with_a_hint() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let (code, stderr) = run(&["--port", &port]);
    assert_eq!(code, 1, "{stderr}");
    for part in [port.as_str(), "already in use", "--port"] {
        assert!(stderr.contains(part), "{stderr}");
    }
    assert!(!stderr.contains("Ready"), "{stderr}");
}

#[test]
fn a_model_that_cannot_be_loaded_ends_the_server_with_1() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("config.json"), "{").expect("a file");
    let path = folder.path().to_str().expect("UTF-8");
    let (code, stderr) = run(&["--port", "0", "--model", path]);
    assert_eq!(code, 1, "{stderr}");
    assert!(
        stderr.contains("cannot load the model") && stderr.contains(path),
        "{stderr}"
    );
}

#[test]
fn wrong_flags_are_usage_errors() {
    for argument in [
        "--queue=-1",
        "--queue=1001",
        "--max-upload-mib=0",
        "--port=65536",
        "--cors-origin=*",
        "--trusted-proxy=proxy.example.org",
        "--max-connections-per-address=0",
        "--cors-origin=https://example.org/path",
        "--no-such-flag=x",
    ] {
        let (code, stderr) = run(&[argument]);
        assert_eq!(code, 2, "{argument}: {stderr}");
        let flag = argument.split('=').next().expect("a flag");
        assert!(stderr.contains(flag), "{stderr}");
    }
}

#[test]
fn flags_have_variables() {
    let help = server(&["--help"]).output().expect("the server runs");
    let help = String::from_utf8(help.stdout).expect("UTF-8");
    for name in [
        "MVP_HOST",
        "MVP_PORT",
        "MVP_QUEUE",
        "MVP_MAX_UPLOAD_MIB",
        "MVP_MAX_CONNECTIONS_PER_ADDRESS",
        "MVP_TRUSTED_PROXY",
        "MVP_MIN_BODY_RATE",
        "MVP_CONNECTION_LIFETIME_SECONDS",
        "MVP_CORS_ORIGIN",
        "MVP_MODEL",
    ] {
        assert!(help.contains(name), "{name} is missing:\n{help}");
    }
}

/// Templates that hang, grow or fail: the load fails at once and names the file; "Ready" is never said.
#[test]
fn a_chat_template_that_cannot_be_used_fails_the_load() {
    let templates = [
        "{% set ns=namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l=ns.l+ns.l %}{% endfor %}{{ ns.l|length }}".to_owned(),
        format!("{{{{ 1{} }}}}", "+1".repeat(30_000)),
        format!("{{{{ {}1 }}}}", "-".repeat(100_000)),
        format!("{{{{ {}1 }}}}", "not ".repeat(50_000)),
        format!("{{{{ a{} }}}}", ".b".repeat(100_000)),
        "{{ \"{:>999999999}\".format(\"x\") }}".to_owned(),
        "{{ raise_exception(\"boom\") }}".to_owned(),
    ];
    for template in &templates {
        let model = ModelCopy::new();
        model.edit("chat_template.json", |file| {
            file["chat_template"] = template.as_str().into()
        });
        let (code, stderr) = run(&["--port", "0", "--model", model.folder()]);
        assert_eq!(code, 1, "{stderr}");
        assert!(
            stderr.contains("cannot load the model") && stderr.contains("chat_template.json: "),
            "{stderr}"
        );
        assert!(!stderr.contains("Ready"), "{stderr}");
        assert!(stderr.len() < 2_000, "{stderr}");
    }
}

/// A running server and what it says on standard error.
fn started(
    variables: &[(&str, &str)],
) -> (
    std::process::Child,
    std::net::SocketAddr,
    std::thread::JoinHandle<String>,
) {
    let mut command = server(&["--port", "0", "--model", "models/qwen25-vl-nano"]);
    command.envs(variables.iter().copied());
    let mut child = command.spawn().expect("the server starts");
    let lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    let (sender, receiver) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut log = String::new();
        for line in lines.map_while(Result::ok) {
            if let Some((_, rest)) = line.split_once("listening on http://") {
                let address = rest.split(';').next().expect("an address");
                sender
                    .send(address.parse().expect("an address"))
                    .expect("the test waits");
            }
            log.push_str(&line);
            log.push('\n');
        }
        log
    });
    let address = receiver.recv_timeout(PATIENCE).expect("the server listens");
    (child, address, reader)
}

/// Whatever the filter, and whatever a client does, no header's value and no error of ours is in the log.
#[test]
fn clients_cannot_write_to_the_log() {
    let (mut child, address, reader) = started(&[("MVP_LOG", "trace,actix_http=trace")]);
    let mut answers = Vec::new();
    for _ in 0..30 {
        for request in [
            "GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: Bearer CANARY\r\nCookie: CANARY\r\n\r\n".to_owned(),
            "POST /extract HTTP/1.1\r\nHost: a\r\nContent-Length: CANARY\r\n\r\n".to_owned(),
            "POST /extract HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: CANARY\r\n\r\n".to_owned(),
            "GET /CANARY?q=CANARY HTTP/1.1\r\nHost: CANARY\r\nConnection: close\r\n\r\n".to_owned(),
            "POST /extract HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: multipart/form-data; boundary=CANARY\r\nContent-Length: 20\r\n\r\n--CANARY\r\nCANARY: a\r\n".to_owned(),
            format!("GET /health HTTP/1.1\r\nHost: a\r\n{}: CANARY\r\n\r\n", "a".repeat(65_536)),
        ] {
            let mut client = TcpStream::connect(address).expect("a connection");
            let _ = client.write_all(request.as_bytes());
            answers.push(status_of(&read_to_close(&mut client).expect("closed")));
        }
    }
    child.kill().expect("it runs");
    child.wait().expect("a child");
    let log = reader.join().expect("no panic");
    assert!(
        answers
            .iter()
            .all(|status| *status == 200 || (400..500).contains(status)),
        "{answers:?}"
    );
    assert!(!log.contains("CANARY"), "{log}");
    assert!(!log.contains("ERROR") && !log.contains("error:"), "{log}");
    // Three kinds of requests were refused by the parser, thirty times each.
    let warnings = log.lines().filter(|line| line.contains("WARN")).count();
    assert!((1..20).contains(&warnings), "{warnings} warnings:\n{log}");
}

#[test]
fn causes_are_printed_once_and_names_are_escaped() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let (_, stderr) = run(&["--port", &port]);
    assert!(!stderr.contains("os error"), "{stderr}");
    let folder = tempfile::tempdir().expect("a folder");
    let model = folder.path().join("a\nerror: b\u{1b}[31m");
    std::fs::create_dir(&model).expect("a folder");
    std::fs::write(model.join("config.json"), "{").expect("a file");
    let (code, stderr) = run(&["--port", "0", "--model", model.to_str().expect("UTF-8")]);
    assert_eq!(code, 1, "{stderr}");
    assert!(
        !stderr.contains("\nerror: b") && !stderr.contains('\u{1b}'),
        "{stderr}"
    );
    assert!(stderr.contains("a\\nerror: b"), "{stderr}");
}
