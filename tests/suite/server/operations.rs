//! The shipped server under what happens in operation: proxies that break off, drains that take too long, probes over TLS.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use medical_vision::engine::Engine;
use medical_vision::server::{Access, ApiKeys, ServerOptions};
use serde_json::{Value, json};

use super::certificates::{Folder, options};
use super::embedded::Shipped;
use super::support::{
    FILE_PART, PATIENCE, Stub, TestServer, assert_error, eventually, file_form, page_form, png, raw_post,
    read_to_close,
};
use crate::suite::program::{ModelCopy, without_variables};

const NANO: &str = "models/qwen25-vl-nano";

/// A proxy for one connection, which breaks off both ways after so many bytes of the request.
fn breaking_off(api: SocketAddr, after: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        let (client, _) = listener.accept().expect("a client");
        let mut server = TcpStream::connect(api).expect("the server");
        let copied = std::io::copy(&mut (&client).take(after as u64), &mut server);
        assert_eq!(copied.expect("copied"), after as u64);
        server.shutdown(Shutdown::Both).expect("a connection");
        client.shutdown(Shutdown::Both).expect("a connection");
    });
    address
}

#[test]
fn a_proxy_that_breaks_off_an_upload_takes_nothing_with_it() {
    let server = Shipped::start(
        NANO,
        &["--queue", "1", "--max-batch", "1", "--max-upload-mib", "1"],
    )
    .loaded();
    // A picture, and zeros that belong to none: nearly the largest file.
    let mut page = png(56, 84);
    page.resize(1_000_000, 0);
    let request = raw_post("/extract", "b", &[(FILE_PART, &page)]);
    let head = request
        .windows(4)
        .position(|end| end == b"\r\n\r\n")
        .expect("a head")
        + 4;
    let body = request.len() - head;
    let whole = || {
        let form = file_form(page.clone()).text("max_new_tokens", "1");
        server.post("/extract", form).status()
    };
    let broken_off = |server: &Shipped| {
        let log = server.log();
        let lines = log
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("JSON lines"));
        lines
            .filter(|line| line["route"] == "/extract" && line["status"] != 200)
            .inspect(|line| {
                // Incomplete, or the client left: whichever the server noticed first.
                assert!(line["status"] == 400 || line["status"] == 499, "{line}");
                assert!(
                    line["body_bytes"].as_u64().expect("a number") < body as u64,
                    "{line}"
                );
            })
            .count()
    };
    let cuts = [head + 20, 100_000, 900_000, request.len() - 1];
    std::thread::scope(|scope| {
        // Somebody else's upload at the same time.
        let other = scope.spawn(whole);
        // More often than slots and memory would last if one were kept.
        for cut in [head / 2].into_iter().chain(cuts.into_iter().cycle().take(40)) {
            let mut client = TcpStream::connect(breaking_off(server.address(), cut)).expect("the proxy");
            client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            // The proxy may break off while this is written.
            let _ = client.write_all(&request);
            assert_eq!(read_to_close(&mut client).as_deref(), Some(""), "no half answer");
        }
        assert_eq!(other.join().expect("no panic"), 200);
    });
    eventually("each has its line in the log", || broken_off(&server) == 40);
    let health = || {
        server
            .client
            .get(server.url("/health"))
            .send()
            .expect("an answer")
    };
    eventually("every slot is free", || {
        health().json::<Value>().expect("JSON")["requests_admitted"] == 0
    });
    assert_eq!(whole(), 200);
    assert!(!server.log().contains("panicked"), "{}", server.log());
}

#[test]
fn a_drain_that_takes_too_long_rejects_the_queue_and_exits_with_1() {
    // An answer without an end.
    let model = ModelCopy::new();
    model.edit("generation_config.json", |config| {
        config["eos_token_id"] = json!([8189])
    });
    let limits = [
        "--max-new-tokens=3900",
        "--shutdown-seconds",
        "1",
        "--max-batch=1",
    ];
    let mut server = Shipped::launch(model.folder(), &limits, |command| {
        command.env("MVP_DRAIN_DELAY", "0");
    })
    .loaded();
    let extract = server.url("/extract");
    let post = || {
        let form = page_form().text("temperature", "2");
        let request = server.client.post(&extract).multipart(form);
        request
            .send()
            .and_then(|answer| Ok((answer.status().as_u16(), answer.text()?)))
    };
    let (running, queued) = std::thread::scope(|scope| {
        let running = scope.spawn(post);
        eventually("it runs", || server.log().contains("reading begins"));
        let queued = scope.spawn(post);
        eventually("another one waits", || {
            let health = server
                .client
                .get(server.url("/health"))
                .send()
                .expect("an answer");
            health.json::<Value>().expect("JSON")["requests_admitted"] == 2
        });
        server.terminate();
        (
            running.join().expect("no panic"),
            queued.join().expect("no panic"),
        )
    });
    assert!(running.is_err(), "it was read to its end: {running:?}");
    let (status, text) = queued.expect("an answer");
    assert_eq!(status, 503, "{text}");
    assert!(text.contains("shutting down"), "{text}");
    let (code, log) = server.wait();
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("--shutdown-seconds exceeded"), "{log}");
}

/// `medvision health` with these variables.
fn health(arguments: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command: Command = without_variables(env!("CARGO_BIN_EXE_medvision"));
    command.env_remove("SSL_CERT_FILE").env_remove("SSL_CERT_DIR");
    command
        .arg("health")
        .args(arguments)
        .envs(variables.iter().copied());
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("it runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (status.code(), text(stdout) + &text(stderr))
}

#[test]
fn health_is_asked_for_over_tls_and_on_any_host() {
    let folder = Folder::new("server");
    let (cert, authority) = (folder.path("cert.pem"), folder.path("authority.pem"));
    for demands in [false, true] {
        let server = TestServer::start(options(folder.tls(demands)));
        let port = server.address.port().to_string();
        let own = [("MVP_PORT", port.as_str()), ("MVP_TLS_CERT", &cert)];
        for host in ["127.0.0.1", "0.0.0.0", "localhost"] {
            let variables = [&own[..], &[("MVP_HOST", host)]].concat();
            assert_eq!(health(&[], &variables), (Some(0), "ready\n".to_owned()), "{host}");
        }
        // It speaks TLS.
        let (code, plain) = health(&[], &own[..1]);
        assert_eq!(code, Some(1), "{plain}");
        // From elsewhere the certificate is checked, and one of its own is not to be had.
        let url = format!("https://localhost:{port}");
        let (code, distrusted) = health(&["--url", &url], &[]);
        assert_eq!(code, Some(1), "{distrusted}");
        let (code, text) = health(&["--url", &url], &[("SSL_CERT_FILE", &authority)]);
        match demands {
            false => assert_eq!((code, text.as_str()), (Some(0), "ready\n")),
            true => {
                assert_eq!(code, Some(1), "{text}");
                assert!(text.contains("demands a client certificate"), "{text}");
            }
        }
        // Not ready is not ready, over TLS, too.
        if !demands {
            server.engine.close();
            let (code, text) = health(&[], &own);
            assert_eq!(code, Some(1), "{text}");
            assert!(text.contains("not ready: draining"), "{text}");
        }
    }
    for (variable, value) in [("MVP_HOST", ""), ("MVP_HOST", "[::1"), ("MVP_PORT", "x")] {
        let (code, text) = health(&[], &[(variable, value)]);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains(variable), "{text}");
    }
}

#[test]
fn an_authoritys_certificate_is_no_servers() {
    let folder = Folder::new("self-signed");
    let options = folder.options();
    let fails = || Err::<Stub, _>(medical_vision::Error::NonFinite("no model".into()));
    let engine = Engine::start(fails, options.engine()).expect("a thread");
    let server = TestServer::around(options, engine, Arc::default());
    let url = format!("https://localhost:{}", server.address.port());
    let (code, text) = health(
        &["--url", &url],
        &[("SSL_CERT_FILE", &folder.path("self-signed.pem"))],
    );
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("CA:FALSE"), "{text}");
}

#[test]
fn refusals_carry_the_clients_ids() {
    let key = "a-key-of-sixteen-or-more";
    let (keys, _) = ApiKeys::load(None, Some(key)).expect("a key");
    let options = ServerOptions {
        max_per_key: Some(1),
        ..ServerOptions::default()
    };
    let server = TestServer::start_with(options, |state| state.with_access(Access::with(keys.into())));
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let post = |key: &str, prompt: &str, id: &str| {
        let request = server.client.post(server.url("/analyze")).bearer_auth(key);
        let request = request
            .header("x-request-id", id.to_owned())
            .header("traceparent", trace);
        let request = request.multipart(page_form().text("prompt", prompt.to_owned()));
        let answer = request.send().expect("an answer");
        assert_eq!(answer.headers()["x-request-id"], id);
        assert_eq!(answer.headers()["traceparent"], trace);
        answer
    };
    assert_error(post("a-wrong-key", "hello", "refused-401"), 401);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| post(key, "say x|WAIT", "first").status());
        eventually("it runs", || server.counts.started.load(Ordering::SeqCst) == 1);
        assert_error(post(key, "one more", "refused-429"), 429);
        server.counts.signals.fetch_add(1, Ordering::SeqCst);
        assert_eq!(first.join().expect("no panic"), 200);
    });
}

/// What ends the program before it listens, and the line that tells why.
fn refused(variables: &[(&str, &str)], arguments: &[&str]) -> String {
    let mut command = super::binary::server(arguments);
    let output = command.envs(variables.iter().copied()).output().expect("it runs");
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    stderr
}

#[test]
fn an_error_about_a_variables_value_names_the_variable() {
    for (variable, value) in [
        ("MVP_PORT", ""),
        ("MVP_PORT", "x"),
        ("MVP_HOST", ""),
        ("MVP_API_KEY_FILE", ""),
        ("MVP_TLS_CERT", ""),
        ("MVP_AUDIT_LOG", ""),
        ("MVP_QUEUE", ""),
        ("MVP_CORS_ORIGIN", "*"),
        ("MVP_PRECISION", ""),
        ("MVP_MODEL", ""),
    ] {
        let stderr = refused(&[(variable, value)], &[]);
        assert!(stderr.contains(&format!("variable {variable}:")), "{stderr}");
    }
    // The flag overrides the variable, and is to blame.
    let stderr = refused(&[("MVP_PORT", "1")], &["--port", "x"]);
    assert!(
        stderr.contains("--port") && !stderr.contains("MVP_PORT"),
        "{stderr}"
    );
}

#[test]
fn a_key_and_no_key_are_not_asked_for_at_once() {
    let compat = [("MVP_COMPAT", "1")];
    for (variables, arguments) in [
        (&[][..], &["--compat", "--generate-api-key"][..]),
        (&compat, &["--generate-api-key"]),
    ] {
        let stderr = refused(variables, arguments);
        assert!(
            stderr.contains("--compat") && stderr.contains("--generate-api-key"),
            "{stderr}"
        );
    }
}

#[test]
fn an_address_in_brackets_is_listened_on() {
    // A machine may have no IPv6.
    if TcpListener::bind("[::1]:0").is_err() {
        return super::support::skipped("this machine has no address ::1");
    }
    let server = Shipped::start(NANO, &["--host", "[::1]"]);
    assert!(server.url("").starts_with("http://[::1]:"), "{}", server.url(""));
    assert_eq!(
        server
            .client
            .get(server.url("/health/live"))
            .send()
            .expect("an answer")
            .status(),
        200
    );
    let stderr = refused(&[], &["--host", "[::1"]);
    assert!(stderr.contains("::1 or 0.0.0.0"), "{stderr}");
}
