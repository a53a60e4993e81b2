//! TLS of the shipped programs: flags, errors, warnings, SIGHUP, and other programs as clients.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::binary::server;
use super::certificates::{Folder, chain, connect, shake_hands, trusting};
use super::support::{PATIENCE, TestServer, eventually, file_form, page_form, read_to_close, skipped};
use crate::suite::program::{SAMPLE, without_variables};

const NANO: [&str; 4] = ["--port", "0", "--model", "models/qwen25-vl-nano"];

fn demo_ui(arguments: &[&str]) -> Command {
    let mut command = without_variables(env!("CARGO_BIN_EXE_demo_ui"));
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// A running program, and what it has said on standard error.
struct Program {
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Program {
    fn start(mut command: Command) -> Self {
        let mut child = command.spawn().expect("it starts");
        let lines = BufReader::new(child.stderr.take().expect("a pipe")).lines();
        let log = Arc::new(Mutex::new(String::new()));
        let writer = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                *writer.lock().expect("a log") += &format!("{line}\n");
            }
        });
        Self { child, log }
    }

    fn log(&self) -> String {
        self.log.lock().expect("a log").clone()
    }

    fn says(&self, text: &str) {
        eventually(text, || self.log().contains(text));
    }

    /// The address behind `before`.
    fn address(&self, before: &str) -> SocketAddr {
        self.says(before);
        let log = self.log();
        let (_, rest) = log.split_once(before).expect("said");
        let end = rest.find(|c: char| !c.is_ascii_digit() && !matches!(c, '.' | ':'));
        rest[..end.expect("a line")].parse().expect("an address")
    }

    fn signal(&self, number: i32) {
        let id = i32::try_from(self.child.id()).expect("an id");
        // SAFETY: `kill` takes any id and number; the child has not been waited for, so that the id is its own.
        assert_eq!(unsafe { libc::kill(id, number) }, 0);
    }

    fn ended(&mut self) -> ExitStatus {
        self.child.wait().expect("a child")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(mut command: Command) -> (Option<i32>, String) {
    let output = command.output().expect("it runs");
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    (output.status.code(), stderr)
}

#[test]
fn certificate_and_key_belong_together() {
    for (arguments, missing) in [
        (&["--tls-cert", "cert.pem"][..], "--tls-key"),
        (&["--tls-key", "cert.key"], "--tls-cert"),
        (&["--tls-client-ca", "ca.pem"], "--tls-cert"),
    ] {
        for command in [server(arguments), demo_ui(arguments)] {
            let (code, stderr) = run(command);
            assert_eq!(code, Some(2), "{stderr}");
            assert!(stderr.contains(missing), "{stderr}");
        }
    }
    let mut command = server(&[]);
    command.env("MVP_TLS_CERT", "cert.pem");
    let (code, stderr) = run(command);
    assert_eq!(code, Some(2), "{stderr}");
    for command in [server(&["--help"]), demo_ui(&["--help"])] {
        let mut command = command;
        let help = command.stdout(Stdio::piped()).output().expect("it runs").stdout;
        let help = String::from_utf8(help).expect("UTF-8");
        for name in ["MVP_TLS_CERT", "MVP_TLS_KEY", "MVP_TLS_CLIENT_CA"] {
            assert!(help.contains(name), "{help}");
        }
    }
}

#[test]
fn files_that_cannot_be_used_end_the_program_at_its_start() {
    let folder = Folder::new("server");
    folder.put("renewed.key", "cert.key");
    let (cert, key) = (folder.path("cert.pem"), folder.path("cert.key"));
    let flags = ["--port", "0", "--tls-cert", &cert, "--tls-key", &key];
    // Before the model is looked for.
    let arguments = [&flags[..], &["--model", "/no/such/model"]].concat();
    for command in [server(&arguments), demo_ui(&flags)] {
        let (code, stderr) = run(command);
        assert_eq!(code, Some(1), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        for part in ["error: ", "--tls-key", &key, &cert] {
            assert!(stderr.contains(part), "{stderr}");
        }
    }
}

#[test]
fn sighup_exchanges_the_certificate() {
    let folder = Folder::new("expired");
    fs::set_permissions(folder.path("cert.key"), fs::Permissions::from_mode(0o604)).expect("permissions");
    let mut command = server(&NANO);
    command
        .env("MVP_TLS_CERT", folder.path("cert.pem"))
        .env("MVP_TLS_KEY", folder.path("cert.key"))
        .env("MVP_LOG", "trace,rustls=trace");
    let mut program = Program::start(command);
    let address = program.address("listening on https://");
    program.says("  API   https://");
    let log = program.log();
    for part in [
        "cert.pem",
        "expired on 2021-01-01",
        "cert.key",
        "chmod 600",
        "  try   curl -F",
    ] {
        assert!(log.contains(part), "{part}: {log}");
    }
    // Expired: whoever checks it goes away, and the log tells why.
    assert!(shake_hands(address, rustls::DEFAULT_VERSIONS, None).is_err());
    program.says("TLS handshakes failed");
    assert!(program.log().contains("the client refused"), "{}", program.log());

    folder.renew("server");
    program.signal(libc::SIGHUP);
    program.says("reloaded: TLS certificate");
    let client = connect(address);
    assert_eq!(client.conn.peer_certificates(), Some(&chain("server")[..]));

    fs::write(folder.path("cert.pem"), "nothing").expect("a file");
    program.signal(libc::SIGHUP);
    program.says("not reloaded, the old one stays: TLS certificate: --tls-cert");
    let client = connect(address);
    assert_eq!(client.conn.peer_certificates(), Some(&chain("server")[..]));

    // What a client sends is not in the log.
    let mut hostile = TcpStream::connect(address).expect("a connection");
    hostile.write_all(b"\x16\x03\x01\x00\x06CANARY").expect("written");
    read_to_close(&mut hostile).expect("closed");
    program.says("not a valid handshake");

    program.signal(libc::SIGTERM);
    assert_eq!(program.ended().code(), Some(0), "{}", program.log());
    let log = program.log();
    assert!(!log.contains("CANARY") && !log.contains("PRIVATE"), "{log}");
}

#[test]
fn sighup_without_anything_to_reload_ends_nothing() {
    let api = TestServer::start(Default::default());
    let url = api.url("");
    for (command, before) in [
        (server(&NANO), "listening on http://"),
        (demo_ui(&["--port", "0", "--api-url", &url]), "Demo page: http://"),
    ] {
        let mut program = Program::start(command);
        let address = program.address(before);
        program.signal(libc::SIGHUP);
        program.says("SIGHUP: nothing to reload");
        TcpStream::connect(address).expect("it listens");
        if before.starts_with("listening") {
            program.says("Press Ctrl-C");
        }
        program.signal(libc::SIGTERM);
        assert_eq!(program.ended().code(), Some(0), "{}", program.log());
    }
}

/// `openssl` and `curl`: programs that share no code with this one.
#[test]
fn other_programs_are_served() {
    let folder = Folder::new("server");
    let api = TestServer::start(folder.options());
    let authority = folder.path("authority.pem");
    let output = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        let output = command.output().ok();
        if output.is_none() {
            skipped(&format!("{program} is not installed"));
        }
        output
    };
    let connect = format!("localhost:{}", api.address.port());
    for version in ["-tls1_2", "-tls1_3"] {
        let arguments = [
            "s_client",
            "-connect",
            &connect,
            "-CAfile",
            &authority,
            "-verify_return_error",
            "-brief",
            version,
        ];
        if let Some(output) = output("openssl", &arguments) {
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(
                output.status.success() && text.contains("Verification: OK"),
                "{text}"
            );
        }
    }
    let page = format!("file=@{}/{SAMPLE}", env!("CARGO_MANIFEST_DIR"));
    let address = format!("https://{connect}/extract");
    let arguments = [
        "--silent",
        "--show-error",
        "--fail",
        "--cacert",
        &authority,
        "--form",
        &page,
        &address,
    ];
    if let Some(output) = output("curl", &arguments) {
        assert!(output.status.success(), "{output:?}");
        assert!(output.stdout.starts_with(b"{"), "{output:?}");
    }
}

/// The page's server, which speaks TLS itself, in front of an API that does.
#[test]
fn demo_ui_trusts_the_authority_of_ssl_cert_file() {
    let folder = Folder::new("server");
    let api = TestServer::start(folder.options());
    let (url, cert, key) = (api.url(""), folder.path("cert.pem"), folder.path("cert.key"));
    let arguments = [
        "--port",
        "0",
        "--api-url",
        &url,
        "--tls-cert",
        &cert,
        "--tls-key",
        &key,
    ];
    let client = reqwest::blocking::Client::builder().timeout(PATIENCE);
    let client = trusting(client, None).build().expect("a client");
    for (authority, status) in [(Some("authority.pem"), 200), (None, 502)] {
        let mut command = demo_ui(&arguments);
        command.env_remove("SSL_CERT_FILE").env_remove("SSL_CERT_DIR");
        if let Some(name) = authority {
            command.env("SSL_CERT_FILE", folder.path(name));
        }
        let mut program = Program::start(command);
        let page = program.address("Demo page: https://");
        let answer = client
            .get(format!("https://{page}/api/health"))
            .send()
            .expect("an answer");
        assert_eq!(answer.status(), status, "{}", program.log());
        if status == 200 {
            let request = client.post(format!("https://{page}/api/analyze"));
            let answer = request.multipart(page_form()).send().expect("an answer");
            assert_eq!(answer.status(), 200);
            // The page leaves as a browser does, and the API stops.
            let started = api.counts.started.load(std::sync::atomic::Ordering::SeqCst);
            let form = file_form(super::support::png(8, 8)).text("prompt", "sleep 600000");
            let quick = trusting(reqwest::blocking::Client::builder(), None);
            let quick = quick.timeout(Duration::from_secs(3)).build().expect("a client");
            let left = quick
                .post(format!("https://{page}/api/analyze"))
                .multipart(form)
                .send();
            assert!(left.is_err());
            eventually("it was cancelled", || {
                let counts = &api.counts;
                counts.started.load(std::sync::atomic::Ordering::SeqCst) == started + 1
                    && counts.cancelled.load(std::sync::atomic::Ordering::SeqCst) == 1
            });
        }
        program.signal(libc::SIGTERM);
        assert_eq!(program.ended().code(), Some(0), "{}", program.log());
    }
}
