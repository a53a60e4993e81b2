//! Keys: before every route, in every spelling; in turn; read anew.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use medical_vision::engine::Engine;
use medical_vision::server::{Access, ApiKeys, KeyScope, NewKey, ServerOptions};
use reqwest::Method;
use serde_json::{Value, json};
use socket2::{Domain, Socket, Type};

use super::binary::server as program;
use super::embedded::Shipped;
use super::streaming::events;
use super::support::{PATIENCE, Stub, TestServer, assert_error, eventually, page_form, status_of};
use crate::suite::program::without_variables;

/// A server that asks for keys, with a page, and a key of each name and scope.
fn guarded(options: ServerOptions, names: &[(&str, KeyScope)]) -> (TestServer, Vec<String>) {
    let new: Vec<_> = names
        .iter()
        .map(|(name, scope)| NewKey::make(name, *scope).expect("a key"))
        .collect();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("keys");
    let lines: Vec<_> = new.iter().map(|key| key.line.as_str()).collect();
    std::fs::write(&file, lines.join("\n")).expect("a file");
    let (keys, _) = ApiKeys::load(Some(file), None).expect("keys");
    let options = ServerOptions {
        demo_port: Some(0),
        ..options
    };
    let server = TestServer::start_with(options, |state| state.with_access(Access::with(Arc::new(keys))));
    (server, new.into_iter().map(|key| key.key).collect())
}

fn one() -> (TestServer, String) {
    let (server, mut keys) = guarded(ServerOptions::default(), &[("ward", KeyScope::All)]);
    (server, keys.remove(0))
}

/// Connects from an address of its own for each few connections: requests of one address without a key are slowed down.
fn connect(to: SocketAddr) -> TcpStream {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::SeqCst) / 5;
    let [.., high, low] = number.to_be_bytes();
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let from = SocketAddr::from(([127, 1 + low / 200, high, 1 + low % 200], 0));
    socket.bind(&from.into()).expect("an address of this machine");
    socket.connect(&to.into()).expect("a connection");
    socket.into()
}

/// Sends a request as it is to either port.
fn raw(server: &TestServer, demo: bool, method: &str, path: &str, lines: &str) -> String {
    let address = match demo {
        true => server.demo.expect("a page"),
        false => server.address,
    };
    let mut stream = connect(address);
    let request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{lines}\r\n");
    stream.write_all(request.as_bytes()).expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

/// A path of every route: of the table from which the server is built.
fn routes() -> Vec<String> {
    let filled = |pattern: &str| {
        let pattern = pattern.replace("{id}", "default");
        pattern.replace("{file:.*}", "swagger-ui.css")
    };
    let more = ["/docs/", "/", "/nothing"];
    let paths = medical_vision::server::paths().map(filled);
    let all: Vec<_> = paths.chain(more.map(str::to_owned)).collect();
    assert!(all.iter().all(|path| !path.contains('{')), "{all:?}");
    all
}

/// Everything that could add a route stands where the check of keys is around it: the table, and the page's own server.
#[test]
fn no_route_is_added_beside_the_table() {
    let server = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/server");
    let (mut folders, mut found) = (vec![server.clone()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("a source");
            let adds = [
                ".service(",
                ".route(",
                "web::resource(",
                "web::scope(",
                "#[get",
                "#[post",
                "#[route",
            ];
            if adds.iter().any(|add| text.contains(add)) {
                let name = path.strip_prefix(&server).expect("below it");
                found.push(name.to_str().expect("UTF-8").to_owned());
            }
        }
    }
    found.sort();
    let expected = [
        "demo/api_url.rs", // addresses of another server
        "demo/forward.rs", // to another server, which has the check
        "demo/mod.rs",     // the page's files
        "http/listen.rs",  // methods of a route
        "openai/mod.rs",   // entries of the table
        "route_table.rs",
        "run.rs", // the scope with the check
    ];
    assert_eq!(
        found, expected,
        "is the check of keys around what is added there?"
    );
}

const HEALTH: [&str; 3] = ["/health", "/health/live", "/health/ready"];

#[test]
fn every_route_in_every_spelling_needs_a_key() {
    let (server, key) = one();
    let routes = routes();
    // Those that are described are among them.
    let document = server.client.get(server.url("/openapi.json")).bearer_auth(&key);
    let document: Value = document.send().expect("an answer").json().expect("JSON");
    for path in document["paths"].as_object().expect("an object").keys() {
        assert!(routes.contains(&path.replace("{id}", "default")), "{path}");
    }
    for route in &routes {
        let encoded: String = route
            .char_indices()
            .map(|(index, c)| match index {
                1 => format!("%{:02x}", u32::from(c)),
                _ => c.to_string(),
            })
            .collect();
        let spellings = [
            route.clone(),
            format!("{route}/"),
            format!("/{route}"),
            encoded,
            format!("/health/..{route}"),
            format!("/health/ready/..{route}"),
            format!("/health/%2e%2e{route}"),
            format!("/.{route}"),
            format!("{route}?x=/health"),
            format!("{route}%00"),
            format!("{route};/health"),
        ];
        for (spelling, demo) in spellings
            .iter()
            .flat_map(|spelling| [(spelling, false), (spelling, true)])
        {
            for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"] {
                let path = match demo {
                    true => format!("/api{spelling}"),
                    false => spelling.clone(),
                };
                let answer = raw(&server, demo, method, &path, "");
                let status = status_of(&answer);
                let is_open = HEALTH.contains(&spelling.split('?').next().expect("a path"));
                match is_open {
                    true => assert_ne!(status, 401, "{method} {path}"),
                    // Some spellings are refused as HTTP.
                    false => assert!(matches!(status, 400 | 401), "{method} {path}: {answer}"),
                }
                assert!(!answer.contains("stub"), "{method} {path}: {answer}");
            }
        }
    }
    // On the page's port, other spellings of `/api` lead nowhere, too.
    for path in [
        "/%61pi/benchmark",
        "//api/benchmark",
        "/api//benchmark",
        "/x/../api/benchmark",
        "/API/benchmark",
    ] {
        let answer = raw(&server, true, "GET", path, "");
        assert!(!answer.contains("benchmarks\":"), "{path}: {answer}");
        assert!(matches!(status_of(&answer), 400 | 401 | 404), "{path}: {answer}");
    }
    let page = raw(&server, true, "GET", "/", "");
    assert_eq!(status_of(&page), 200, "the page itself is open");
}

#[test]
fn a_key_is_taken_from_two_headers() {
    let (server, key) = one();
    let status = |lines: &str| status_of(&raw(&server, false, "GET", "/benchmark", lines));
    for lines in [
        format!("Authorization: Bearer {key}\r\n"),
        format!("authorization: bearer {key}\r\n"),
        format!("X-Api-Key: {key}\r\n"),
        format!("X-Api-Key: {key}\r\nAuthorization: Basic abc\r\n"),
    ] {
        assert_eq!(status(&lines), 200, "{lines}");
    }
    for lines in [
        String::new(),
        "Authorization:\r\n".to_owned(),
        "Authorization: Bearer \r\n".to_owned(),
        "X-Api-Key:\r\n".to_owned(),
        format!("Authorization: {key}\r\n"),
        format!("Authorization: Basic {key}\r\n"),
        format!("Authorization: Bearer {key}x\r\n"),
        format!("Authorization: Bearer {}\r\n", &key[1..]),
        format!("Authorization: Bearer {}\r\n", key.to_uppercase()),
        format!("Cookie: {key}\r\n"),
        "X-Api-Key: sch\u{fc}ssel\r\n".to_owned(),
    ] {
        assert_eq!(status(&lines), 401, "{lines}");
    }
    let huge = format!("X-Api-Key: {}\r\n", "k".repeat(1 << 20));
    let mut stream = server.connect();
    // The server answers before all is sent.
    let _ = stream.write_all(format!("GET /benchmark HTTP/1.1\r\nHost: l\r\n{huge}\r\n").as_bytes());
    let answer = super::support::read_to_close(&mut stream).expect("an end");
    assert_eq!(status_of(&answer), 431);
    let with_key = server.post("/extract", page_form());
    assert_error(with_key, 401);
}

#[test]
fn refusals_have_the_form_of_their_route_and_tell_nothing() {
    let (server, key) = one();
    let get = |path: &str, key: Option<&str>| {
        let request = server.client.get(server.url(path));
        let request = match key {
            Some(key) => request.bearer_auth(key),
            None => request,
        };
        request.send().expect("an answer")
    };
    let mut details = Vec::new();
    for sent in [None, Some("wrong"), Some(&key[..key.len() - 1])] {
        let answer = get("/benchmark", sent);
        assert_eq!(answer.headers()["www-authenticate"], "Bearer");
        details.push(assert_error(answer, 401));
        let answer = get("/v1/models", sent);
        assert_eq!(answer.status(), 401);
        let error: Value = answer.json().expect("JSON");
        assert_eq!(error["error"]["code"], "invalid_api_key");
        assert_eq!(error["error"]["message"], *details.last().expect("a detail"));
    }
    details.dedup();
    assert_eq!(details.len(), 1);

    for (path, sent) in [
        ("/benchmark", Some(key.as_str())),
        ("/health", None),
        ("/health/ready", None),
    ] {
        for query in ["api_key", "key", "Token"] {
            let answer = get(&format!("{path}?{query}={key}"), sent);
            let detail = assert_error(answer, 400);
            assert!(detail.contains("a key in the address"), "{detail}");
        }
    }
    for path in ["/", "/api/health", "/api/benchmark", "/api/nothing"] {
        let answer = raw(&server, true, "GET", &format!("{path}?key={key}"), "");
        assert_eq!(status_of(&answer), 400, "{path}: {answer}");
        assert!(!answer.contains(&key), "{answer}");
    }
    let preflight = raw(
        &server,
        false,
        "OPTIONS",
        "/extract",
        "Origin: https://a.example\r\nAccess-Control-Request-Method: POST\r\n",
    );
    assert_eq!(status_of(&preflight), 401, "CORS is off");
}

#[test]
fn browsers_of_listed_origins_may_send_a_key() {
    let options = ServerOptions {
        cors_origin: vec!["https://ward.example.org".to_owned()],
        ..ServerOptions::default()
    };
    let (server, _) = guarded(options, &[("ward", KeyScope::All)]);
    let preflight = raw(
        &server,
        false,
        "OPTIONS",
        "/extract",
        "Origin: https://ward.example.org\r\nAccess-Control-Request-Method: POST\r\n\
         Access-Control-Request-Headers: authorization,x-api-key\r\n",
    );
    assert_eq!(status_of(&preflight), 200, "{preflight}");
    assert!(
        preflight.to_lowercase().contains("access-control-allow-headers"),
        "{preflight}"
    );
}

#[test]
fn guessing_is_slow_and_does_not_delay_others() {
    let (server, key) = one();
    let ask = |key: &str| {
        let begin = Instant::now();
        let request = server.client.get(server.url("/benchmark")).bearer_auth(key);
        (
            request.send().expect("an answer").status().as_u16(),
            begin.elapsed(),
        )
    };
    for number in 0..10 {
        assert_eq!(ask(&format!("guess-{number}")).0, 401);
    }
    let (status, time) = ask("guess-10");
    assert_eq!(status, 401);
    assert!(time >= Duration::from_secs(1), "{time:?}");
    // While another guess waits, a right key is answered.
    std::thread::scope(|scope| {
        let guess = scope.spawn(|| ask("guess-11"));
        assert_eq!(ask(&key).0, 200);
        assert_eq!(guess.join().expect("no panic").0, 401);
    });
}

#[test]
fn keys_are_served_in_turn() {
    let options = ServerOptions {
        queue: 60,
        max_per_key: Some(50),
        queue_deadline_seconds: 600,
        ..ServerOptions::default()
    };
    let (server, keys) = guarded(options, &[("batch", KeyScope::All), ("ward", KeyScope::All)]);
    let (sender, answers) = mpsc::channel();
    let post = |key: &str, prompt: &str| {
        let form = page_form().text("prompt", prompt.to_owned());
        let request = server.client.post(server.url("/analyze")).bearer_auth(key);
        request.multipart(form).send().expect("an answer")
    };
    std::thread::scope(|scope| {
        let send = || {
            let (sender, key) = (sender.clone(), keys[0].clone());
            let post = &post;
            scope.spawn(move || {
                let status = post(&key, "say x|WAIT").status();
                sender.send((key, status.as_u16())).expect("the test waits");
            });
        };
        for _ in 0..50 {
            send();
        }
        eventually("the batch is admitted", || server.engine.admitted() == 50);
        eventually("its first runs", || {
            server.counts.started.load(Ordering::SeqCst) == 1
        });
        let refused = post(&keys[0], "one more");
        assert!(refused.headers().contains_key("retry-after"));
        let detail = assert_error(refused, 429);
        assert!(detail.contains("50 requests in the queue"), "{detail}");
        let chat = json!({"model": "default", "messages": [{"role": "user", "content": "hello"}]});
        let chat = server.client.post(server.url("/v1/chat/completions")).json(&chat);
        let chat = chat.bearer_auth(&keys[0]).send().expect("an answer");
        assert_eq!(
            (chat.status().as_u16(), chat.headers().contains_key("retry-after")),
            (429, true)
        );
        let chat: Value = chat.json().expect("JSON");
        assert_eq!(chat["error"]["type"], "rate_limit_error");

        // Streamed, so that it tells when it waits.
        let (waits, waiting) = mpsc::channel();
        let form = page_form().text("prompt", "say x|WAIT").text("stream", "true");
        let request = server.client.post(server.url("/analyze")).bearer_auth(&keys[1]);
        let (sender, ward) = (sender.clone(), keys[1].clone());
        scope.spawn(move || {
            let mut stream = events(request.multipart(form).send().expect("an answer"));
            stream.expect("queued");
            waits.send(()).expect("the test waits");
            let rest = stream.rest();
            let status = if rest.iter().any(|(name, _)| name == "done") {
                200
            } else {
                500
            };
            sender.send((ward, status)).expect("the test waits");
        });
        waiting.recv_timeout(PATIENCE).expect("the other key waits, too");
        let next = || {
            server.counts.signals.fetch_add(1, Ordering::SeqCst);
            answers.recv_timeout(PATIENCE).expect("an answer")
        };
        let order = [next(), next()];
        if order != [(keys[0].clone(), 200), (keys[1].clone(), 200)] {
            // The others must not wait in vain.
            server.counts.signals.fetch_add(100, Ordering::SeqCst);
            panic!("{order:?} of {keys:?}");
        }
        server.counts.signals.fetch_add(49, Ordering::SeqCst);
        assert!(answers.iter().take(49).all(|(_, status)| status == 200));
    });
}

fn key_program(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = without_variables(env!("CARGO_BIN_EXE_medvision"));
    let output = command.args(arguments).output().expect("the program runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn keys_are_made_used_and_exchanged_while_the_server_runs() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("keys");
    let make = |name: &str| {
        let (code, line, key) = key_program(&["key", "new", name]);
        assert_eq!(code, Some(0), "{key}");
        let key = key.trim().rsplit(' ').next().expect("a key").to_owned();
        assert!(!line.contains(&key), "the file must not hold the key");
        (line, key)
    };
    let ((first_line, first), (second_line, second)) = (make("ward-3"), make("lab"));
    std::fs::write(&file, &first_line).expect("a file");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).expect("a mode");
    let path = file.to_str().expect("UTF-8");
    let server = Shipped::start("models/qwen25-vl-nano", &["--api-key-file", path]);
    let status = |key: &str| {
        let request = server.client.get(server.url("/benchmark")).bearer_auth(key);
        request.send().expect("an answer").status().as_u16()
    };
    assert_eq!((status(&first), status(&second)), (200, 401));
    assert!(
        server.log().contains("other users can read this file"),
        "{}",
        server.log()
    );
    // Of a group: root's is nobody's own.
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).expect("a mode");
    let warnings = || server.log().matches("(mode 640); chmod 600 it").count();
    server.signal(libc::SIGHUP);
    eventually("it is reloaded", || server.log().contains("reloaded: API keys"));
    // SAFETY: takes no argument and touches no memory of the process.
    let is_root = unsafe { libc::getegid() } == 0;
    assert_eq!(warnings(), usize::from(is_root), "{}", server.log());
    let hang_up = |expected: &str| {
        let before = server.log().matches(expected).count();
        server.signal(libc::SIGHUP);
        eventually(expected, || server.log().matches(expected).count() > before);
    };

    std::fs::write(&file, format!("{first_line}\r\n{second_line}\r\n")).expect("a file");
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).expect("a mode");
    hang_up("reloaded: API keys");
    assert_eq!((status(&first), status(&second)), (200, 200));

    std::fs::write(&file, format!("{first_line}{first_line}")).expect("a file");
    hang_up("line 2: this name was given before");
    std::fs::remove_file(&file).expect("gone");
    hang_up("No such file");
    assert_eq!((status(&first), status(&second)), (200, 200), "the old keys stay");

    std::fs::write(&file, &second_line).expect("a file");
    hang_up("reloaded: API keys");
    assert_eq!((status(&first), status(&second)), (401, 200));
    let answer = server
        .client
        .get(server.url(&format!("/benchmark?key={second}")))
        .send();
    assert_eq!(answer.expect("an answer").status(), 400);
    let log = server.log();
    assert!(
        !log.contains(&first) && !log.contains(&second),
        "a key is in the log"
    );
}

/// Runs the server until it listens; its first lines and what it printed to standard output.
fn lines_until_it_listens(command: &mut Command) -> (String, String) {
    let mut child = command.spawn().expect("the server starts");
    let mut lines = String::new();
    let mut error = std::io::BufReader::new(child.stderr.take().expect("a pipe"));
    while !lines.contains("Ready") {
        let read = std::io::BufRead::read_line(&mut error, &mut lines).expect("a line");
        assert_ne!(read, 0, "the server has ended: {lines}");
    }
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    let mut output = String::new();
    let mut stdout = child.stdout.take().expect("a pipe");
    stdout.read_to_string(&mut output).expect("UTF-8");
    (lines, output)
}

#[test]
fn without_a_key_only_this_machine_is_served() {
    let nano = ["--model", "models/qwen25-vl-nano", "--port", "0"];
    let all = [&nano[..], &["--host", "0.0.0.0", "--demo-port", "0"]].concat();
    let (lines, _) = lines_until_it_listens(&mut program(&all));
    assert!(lines.contains("listening on http://127.0.0.1:"), "{lines}");
    assert!(
        lines.contains("there is no key, so the server listens on 127.0.0.1, not on 0.0.0.0"),
        "{lines}"
    );
    assert!(!lines.contains("//0.0.0.0"), "{lines}");

    let (lines, _) = lines_until_it_listens(program(&all).env("MVP_COMPAT", "1"));
    assert!(lines.contains("listening on http://0.0.0.0:"), "{lines}");
    assert!(lines.contains("warning: no key is asked for"), "{lines}");

    let (lines, output) = lines_until_it_listens(program(&all).env("MVP_GENERATE_API_KEY", "1"));
    assert!(lines.contains("listening on http://0.0.0.0:"), "{lines}");
    let key = output
        .lines()
        .next()
        .and_then(|line| line.rsplit(' ').next())
        .expect("a key");
    assert!(key.starts_with("medvision-") && key.len() > 40, "{output}");
    assert!(
        output.contains(&format!("/#key={key}")) && output.contains("http://127.0.0.1:"),
        "{output}"
    );
    assert!(!lines.contains(key), "the log is no place for a key");

    // As `docker run -e MVP_COMPAT=1`: the image sets the other variable.
    let both = [("MVP_COMPAT", "1"), ("MVP_GENERATE_API_KEY", "1")];
    let (lines, output) = lines_until_it_listens(program(&all).envs(both));
    assert!(lines.contains("listening on http://0.0.0.0:"), "{lines}");
    assert!(
        lines.contains("warning: no key is asked for") && output.is_empty(),
        "{lines}{output}"
    );

    let key = "a-key-of-the-environment";
    let (lines, output) = lines_until_it_listens(
        program(&all)
            .env("MVP_API_KEY", key)
            .env("MVP_GENERATE_API_KEY", "1"),
    );
    assert!(lines.contains("listening on http://0.0.0.0:"), "{lines}");
    assert!(output.is_empty() && !lines.contains(key), "{lines}{output}");

    for (variables, code, expected) in [
        (&[("MVP_API_KEY", "")][..], 1, "MVP_API_KEY: a key has 16"),
        (&[("MVP_API_KEY", "short")], 1, "MVP_API_KEY: a key has 16"),
        (&[("MVP_API_KEY", key), ("MVP_COMPAT", "1")], 2, "--compat"),
        (
            &[("MVP_API_KEY_FILE", "/nowhere/keys")],
            1,
            "/nowhere/keys: No such file",
        ),
    ] {
        let output = program(&nano)
            .envs(variables.iter().copied())
            .output()
            .expect("the server runs");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{error}");
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn readiness_is_asked_for_by_containers() {
    let server = Shipped::start("models/qwen25-vl-nano", &[]).loaded();
    let (code, output, _) = key_program(&["health", "--url", &server.url("")]);
    assert_eq!((code, output.as_str()), (Some(0), "ready\n"));
    server.signal(libc::SIGTERM);
    let address = server.url("");
    server.ended();
    let (code, _, error) = key_program(&["health", "--url", &address]);
    assert_eq!(code, Some(1));
    assert!(error.contains("no answer from"), "{error}");
}

#[test]
fn liveness_and_readiness_tell_what_keeps_requests_out() {
    let options = ServerOptions {
        queue: 0,
        ..ServerOptions::default()
    };
    let server = TestServer::start(options);
    let ready = || server.get("/health/ready");
    let live: Value = server.get("/health/live").json().expect("JSON");
    assert_eq!(live["status"], "live");
    let answer: Value = ready().json().expect("JSON");
    assert_eq!(answer["status"], "ready");
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| server.analyze("say x|WAIT").status());
        eventually("it runs", || server.counts.started.load(Ordering::SeqCst) == 1);
        assert_eq!(assert_error(ready(), 503), "queue full");
        server.counts.signals.fetch_add(1, Ordering::SeqCst);
        assert_eq!(reading.join().expect("no panic"), 200);
    });
    eventually("it is ready again", || ready().status() == 200);
    let fails = || Err::<Stub, _>(medical_vision::Error::NonFinite("no such model".into()));
    let options = ServerOptions::default();
    let engine = Engine::start(fails, options.engine()).expect("a thread");
    let failed = TestServer::around(options, engine, Arc::default());
    eventually("it has failed", || {
        let answer = failed.get("/health/ready");
        answer.text().expect("a text").contains("failed: ")
    });
    server.engine.close();
    assert_eq!(assert_error(ready(), 503), "draining");
    assert_eq!(server.get("/health/live").status(), 200);
    let post = server.client.request(Method::POST, server.url("/health/ready"));
    assert_eq!(post.send().expect("an answer").status(), 405);
}
