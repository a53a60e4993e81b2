//! The shipped binary as a supervisor sees it: exit codes, signals, what it prints.

use std::net::TcpListener;
use std::process::{Command, Output, Stdio};

/// The binary in the project's folder, without the caller's `MVP_*` variables and without the
/// adapter that comes with the embedded model: most tests are about the model alone.
pub fn server(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_server"));
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"MVP_") {
            command.env_remove(name);
        }
    }
    command.env("MVP_ADAPTER", "none");
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
fn a_taken_port_is_named_with_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let (code, stderr) = run(&["--port", &port]);
    assert_eq!(code, 1, "{stderr}");
    for part in [port.as_str(), "taken", "--port"] {
        assert!(stderr.contains(part), "{stderr}");
    }
    assert!(!stderr.contains("Ready"), "{stderr}");
}

#[test]
fn a_model_that_does_not_load_ends_the_server_with_1() {
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
        "MVP_CORS_ORIGIN",
        "MVP_MODEL",
    ] {
        assert!(help.contains(name), "{name} is missing:\n{help}");
    }
}
