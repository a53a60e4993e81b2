//! `/metrics`: every figure of a known load, and no text of a client.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use medical_vision::engine::Engine;
use medical_vision::server::{Access, ApiKeys, GpuFigures, KeyScope, NewKey, ServerOptions};
use reqwest::blocking::{Client, Response};
use serde_json::{Value, json};

use super::embedded::Shipped;
use super::support::{
    Counts, FILE_PART, PATIENCE, PROMPT_PART, StubAnswerer, TestServer, engine_options, eventually,
    file_form, page_form, png, raw_post, read_to_close, status_of,
};
use crate::suite::program::{TRAINED_PROMPT, golden_page};

/// What a server's `/metrics` says.
#[derive(Debug, Clone)]
struct Scrape {
    text: String,
    /// Type by metric.
    types: BTreeMap<String, String>,
    /// Value by series, as in `name{label="value"}`.
    samples: BTreeMap<String, f64>,
}

impl Scrape {
    fn of(response: Response) -> Self {
        assert_eq!(response.status(), 200);
        assert_eq!(
            response.headers()["content-type"],
            "text/plain; version=0.0.4; charset=utf-8"
        );
        Self::parse(response.text().expect("a text"))
    }

    fn parse(text: String) -> Self {
        let (mut types, mut samples) = (BTreeMap::new(), BTreeMap::new());
        for line in text.lines() {
            if let Some(line) = line.strip_prefix("# TYPE ") {
                let (name, kind) = line.split_once(' ').expect("a type");
                assert!(
                    types.insert(name.to_owned(), kind.to_owned()).is_none(),
                    "{name} twice"
                );
            } else if !line.starts_with('#') {
                let (series, value) = line.rsplit_once(' ').expect("a value");
                let value = value.parse().expect("a number");
                assert!(
                    samples.insert(series.to_owned(), value).is_none(),
                    "{series} twice"
                );
            }
        }
        Self { text, types, samples }
    }

    /// The value of a series without its prefix; 0 if there is none.
    fn get(&self, series: &str) -> f64 {
        let value = self.samples.get(&format!("medvision_{series}"));
        value.copied().unwrap_or(0.0)
    }

    /// The series of a metric that are not 0, by what is in their braces.
    fn of_metric(&self, name: &str) -> BTreeMap<String, f64> {
        let start = format!("medvision_{name}{{");
        let series = self.samples.iter().filter_map(|(series, value)| {
            let labels = series.strip_prefix(&start)?.strip_suffix('}')?;
            Some((labels.to_owned(), *value))
        });
        series.filter(|(_, value)| *value != 0.0).collect()
    }

    fn reasons(&self) -> BTreeMap<String, f64> {
        let of_reason = |(labels, value): (String, f64)| {
            let reason = labels
                .strip_prefix("reason=\"")
                .and_then(|rest| rest.strip_suffix('"'));
            (reason.expect("a reason").to_owned(), value)
        };
        self.of_metric("rejected_total")
            .into_iter()
            .map(of_reason)
            .collect()
    }

    fn requests(&self, route: &str, status: u16) -> f64 {
        self.get(&format!(
            "requests_total{{route=\"{route}\",status=\"{status}\"}}"
        ))
    }

    /// Asserts that no counter and no histogram is lower than in `earlier`.
    fn assert_not_before(&self, earlier: &Self) {
        for (series, value) in &earlier.samples {
            let name = series.split('{').next().expect("a name");
            let is_gauge = earlier.types.get(name).is_some_and(|kind| kind == "gauge");
            let now = self.samples.get(series).copied();
            assert!(
                is_gauge || now.is_some_and(|now| now >= *value),
                "{series}: {value}, then {now:?}"
            );
        }
    }
}

fn scrape(server: &TestServer) -> Scrape {
    Scrape::of(server.get("/metrics"))
}

fn numbers<const N: usize>(expected: [(&str, u32); N]) -> BTreeMap<String, f64> {
    let expected = expected.into_iter();
    expected
        .map(|(name, value)| (name.to_owned(), f64::from(value)))
        .collect()
}

fn chat(server: &TestServer, stream: bool) -> Value {
    json!({
        "model": "default",
        "stream": stream,
        "messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": super::openai::stub::page_uri()}},
            {"type": "text", "text": "say a|b|c"},
        ]}],
        "user": server.address.to_string(),
    })
}

fn post_chat(server: &TestServer, body: &Value) -> Response {
    let request = server.client.post(server.url("/v1/chat/completions"));
    request.json(body).send().expect("an answer")
}

#[test]
fn a_known_load_adds_up() {
    let server = TestServer::start(ServerOptions::default());
    let before = scrape(&server);
    assert_eq!(before.get("reading_seconds_count"), 0.0);
    assert_eq!(before.reasons(), numbers([]));
    let page = |prompt: &str| page_form().text("prompt", prompt.to_owned());
    for _ in 0..3 {
        assert_eq!(server.post("/extract", page_form()).status(), 200);
    }
    for _ in 0..2 {
        assert_eq!(server.analyze("say a|b|c|d").status(), 200);
    }
    let streamed = server.post("/analyze", page("say a|b").text("stream", "true"));
    assert!(streamed.text().expect("a stream").contains("event: done"));
    assert_eq!(post_chat(&server, &chat(&server, false)).status(), 200);
    let streamed = post_chat(&server, &chat(&server, true)).text();
    assert!(streamed.expect("a stream").contains("[DONE]"));
    // Failures: one whole, one in a stream, which has begun with 200.
    assert_eq!(server.analyze("panic").status(), 500);
    let failed = server.post("/analyze", page("say a|b|ERROR").text("stream", "true"));
    assert!(failed.text().expect("a stream").contains("event: error"));
    for file in [b"%PDF-1.7".to_vec(), png(56, 84)[..60].to_vec(), Vec::new()] {
        assert_eq!(server.post("/extract", file_form(file)).status(), 400);
    }
    // A client that leaves: after its first token, before its answer.
    let request = raw_post(
        "/analyze",
        "b",
        &[(FILE_PART, &png(56, 84)), (PROMPT_PART, b"say a|WAIT|b")],
    );
    let mut leaving = server.connect();
    leaving.write_all(&request).expect("written");
    eventually("its first token", || {
        scrape(&server).get("kv_cache_usage_ratio") == 0.25
    });
    let during = scrape(&server);
    assert_eq!(
        (during.get("requests_running"), during.get("requests_waiting")),
        (1.0, 0.0)
    );
    drop(leaving);
    eventually("it has ended", || scrape(&server).get("requests_running") == 0.0);

    let after = scrape(&server);
    after.assert_not_before(&before);
    assert_eq!(after.requests("/extract", 200), 3.0);
    assert_eq!(after.requests("/extract", 400), 3.0);
    assert_eq!(after.requests("/analyze", 200), 4.0, "{}", after.text);
    assert_eq!(after.requests("/analyze", 500), 1.0);
    assert_eq!(after.requests("/analyze", 499), 1.0);
    assert_eq!(after.requests("/v1/chat/completions", 200), 2.0);
    assert_eq!(after.reasons(), numbers([("internal", 2), ("invalid_image", 3)]));
    // Every turn counts, whatever came of it.
    let turns = 3.0 + 2.0 + 1.0 + 2.0 + 2.0 + 1.0;
    assert_eq!(after.get("queue_seconds_count"), turns);
    assert_eq!(after.get("reading_seconds_count"), turns);
    // 1 token for each `/extract`; the one that panics has none.
    let tokens = 3.0 + 2.0 * 4.0 + 2.0 + 2.0 * 3.0 + 2.0 + 1.0;
    assert_eq!(after.get("tokens_total{kind=\"generated\"}"), tokens);
    assert_eq!(after.get("first_token_seconds_count"), turns - 1.0);
    assert_eq!(after.get("inter_token_seconds_count"), tokens - (turns - 1.0));
    // The stub tells 100 tokens, (56 / 28) * (84 / 28) of them the page's, of each reading that did not fail.
    assert_eq!(after.get("tokens_total{kind=\"image\"}"), 6.0 * (turns - 2.0));
    assert_eq!(after.get("tokens_total{kind=\"text\"}"), 94.0 * (turns - 2.0));
    let pages = after.of_metric("pages_total");
    let expected = [
        (r#"kind="other",status="failed""#, 1),
        (r#"kind="pdf",status="failed""#, 1),
        (r#"kind="png",status="failed""#, 1),
        (r#"kind="png",status="read""#, 11),
    ];
    assert_eq!(pages, numbers(expected));
    assert_eq!(after.get("kv_cache_usage_ratio"), 0.0);
    // One for each request that was answered before this one; the scrapes are among them.
    let scrapes = after.requests("/metrics", 200);
    assert_eq!(scrape(&server).requests("/metrics", 200), scrapes + 1.0);
}

#[test]
fn names_types_and_labels_are_those_of_the_list() {
    let server = TestServer::start_with(ServerOptions::default(), |state| {
        state.with_gpu(|| GpuFigures {
            available: true,
            name: Some("CANARY-GPU".into()),
            used_mb: 1.5,
            total_mb: 80.0 * 1024.0,
        })
    });
    server.is_well();
    let found = scrape(&server);
    assert_eq!(found.get("gpu_memory_bytes{kind=\"used\"}"), 1_572_864.0);
    assert_eq!(found.get("gpu_memory_bytes{kind=\"total\"}"), 85_899_345_920.0);
    let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/metrics.txt");
    let list = std::fs::read_to_string(list).expect("a list");
    let expected: BTreeMap<String, (String, BTreeSet<String>)> = list
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let mut words = line.split(' ').map(str::to_owned);
            let (name, kind) = (words.next().expect("a name"), words.next().expect("a type"));
            let labels = words.next().unwrap_or_default();
            let labels = labels.split(',').filter(|label| !label.is_empty());
            (name, (kind, labels.map(str::to_owned).collect()))
        })
        .collect();
    let mut actual: BTreeMap<_, _> = found
        .types
        .iter()
        .map(|(name, kind)| (name.clone(), (kind.clone(), BTreeSet::new())))
        .collect();
    for series in found.samples.keys() {
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let base = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|part| name.strip_suffix(part));
        let name = base
            .filter(|base| found.types.contains_key(*base))
            .unwrap_or(name);
        let labels = labels
            .trim_end_matches('}')
            .split("\",")
            .filter_map(|label| label.split_once('='));
        let labels = labels
            .map(|(label, _)| label.to_owned())
            .filter(|label| label != "le");
        actual
            .get_mut(name)
            .expect("a type before its series")
            .1
            .extend(labels);
    }
    assert_eq!(actual, expected);
    let version = format!("build_info{{version=\"{}\",commit=\"", env!("CARGO_PKG_VERSION"));
    assert!(found.text.contains(&version), "{}", found.text);
    let cpu = scrape(&TestServer::start(ServerOptions::default()));
    assert!(!cpu.text.contains("gpu_memory"), "{}", cpu.text);
}

/// A server that asks for keys, and a key of each name and scope.
fn guarded<const N: usize>(
    options: ServerOptions,
    names: [(&str, KeyScope); N],
) -> (TestServer, [String; N]) {
    let new = names.map(|(name, scope)| NewKey::make(name, scope).expect("a key"));
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("keys");
    std::fs::write(&file, new.each_ref().map(|key| key.line.clone()).join("\n")).expect("a file");
    let (keys, _) = ApiKeys::load(Some(file), None).expect("keys");
    let access = Access::with(Arc::new(keys));
    let server = TestServer::start_with(options, |state| state.with_access(access));
    (server, new.map(|key| key.key))
}

#[test]
fn only_keys_for_it_may_read_the_metrics_and_refusals_are_counted() {
    let options = ServerOptions {
        max_per_key: Some(1),
        demo_port: Some(0),
        ..ServerOptions::default()
    };
    let names = [
        ("canary-all", KeyScope::All),
        ("canary-scraper", KeyScope::Metrics),
        ("canary-ward", KeyScope::Inference),
    ];
    let (server, [all, metrics, ward]) = guarded(options, names);
    let get = |path: &str, key: &str| {
        server
            .client
            .get(server.url(path))
            .bearer_auth(key)
            .send()
            .expect("an answer")
    };
    assert_eq!(server.get("/metrics").status(), 401);
    assert_eq!(get("/metrics", "canary-wrong-key").status(), 401);
    assert_eq!(get("/metrics", &ward).status(), 403);
    assert_eq!(get("/benchmark", &metrics).status(), 403);
    assert_eq!(get("/metrics", &all).status(), 200);
    assert_eq!(get(&format!("/metrics?key={metrics}"), &metrics).status(), 400);
    // The page's port has none.
    let demo = server.demo.expect("a page");
    for path in ["/metrics", "/api/metrics"] {
        let url = format!("http://{demo}{path}");
        let answer = server
            .client
            .get(url)
            .bearer_auth(&all)
            .send()
            .expect("an answer");
        assert_eq!(answer.status(), 404, "{path}");
    }
    let post = |prompt: &str| {
        let form = page_form().text("prompt", prompt.to_owned());
        let request = server.client.post(server.url("/analyze")).bearer_auth(&ward);
        request
            .multipart(form)
            .send()
            .expect("an answer")
            .status()
            .as_u16()
    };
    std::thread::scope(|scope| {
        let running = scope.spawn(|| post("say x|WAIT"));
        eventually("it runs", || server.engine.load().running == 1);
        assert_eq!(post("one more"), 429);
        server.counts.signals.fetch_add(1, Ordering::SeqCst);
        assert_eq!(running.join().expect("no panic"), 200);
    });
    let found = Scrape::of(get("/metrics", &metrics));
    let expected = [
        ("unauthorized", 2),
        ("forbidden", 2),
        ("key_in_address", 1),
        ("key_limit", 1),
    ];
    assert_eq!(found.reasons(), numbers(expected));
    assert_eq!(found.requests("/metrics", 401), 2.0);
    for key in [&all, &metrics, &ward] {
        assert!(!found.text.contains(key.as_str()), "{}", found.text);
    }
    assert!(!found.text.contains("canary"), "{}", found.text);
}

#[test]
fn refusals_of_a_busy_server_are_counted_by_reason() {
    let options = ServerOptions {
        queue: 1,
        queue_deadline_seconds: 1,
        stream_buffer_kib: 1,
        ..ServerOptions::default()
    };
    let server = TestServer::start(options);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| server.analyze("say x|WAIT").status());
        eventually("it runs", || server.engine.load().running == 1);
        let waiting = scope.spawn(|| server.analyze("waits").status());
        eventually("one waits", || scrape(&server).get("requests_waiting") == 1.0);
        assert_eq!(server.analyze("one more").status(), 503);
        assert_eq!(waiting.join().expect("no panic"), 503);
        server.counts.signals.fetch_add(1, Ordering::SeqCst);
        assert_eq!(running.join().expect("no panic"), 200);
    });
    let poured = page_form().text("prompt", "pour 1").text("stream", "true");
    let poured = server.post("/analyze", poured).text().expect("a stream");
    assert!(poured.contains("\"status\":408"), "{poured}");
    assert_eq!(
        server
            .post("/extract", reqwest::blocking::multipart::Form::new())
            .status(),
        422
    );
    let unknown = json!({"model": "canary-model", "messages": []});
    assert!(post_chat(&server, &unknown).status().is_client_error());
    let broken = chat(&server, false)
        .to_string()
        .replace("data:image/png;base64,", "data:image/png;base64,AAAA");
    let broken: Value = serde_json::from_str(&broken).expect("JSON");
    assert_eq!(post_chat(&server, &broken).status(), 400);
    // The HTTP parser's, which no route sees.
    let answer = server.raw(b"canary\r\n\r\n").expect("an end");
    assert_eq!(status_of(&answer), 400);
    let huge = format!(
        "GET /health HTTP/1.1\r\nHost: l\r\nX: {}\r\n\r\n",
        "x".repeat(1 << 20)
    );
    let answer = server.raw(huge.as_bytes()).expect("an end");
    assert_eq!(status_of(&answer), 431);
    server.engine.close();
    assert_eq!(server.analyze("late").status(), 503);
    let found = scrape(&server);
    let expected = [
        ("queue_full", 1),
        ("queue_deadline", 1),
        ("reader_too_slow", 1),
        ("invalid_request", 2),
        ("invalid_image", 1),
        ("invalid_http", 1),
        ("header_too_large", 1),
        ("draining", 1),
    ];
    assert_eq!(found.reasons(), numbers(expected));
    assert_eq!(found.requests("other", 400), 1.0);
    assert_eq!(found.requests("other", 431), 1.0);
    // Those that never had their turn waited in vain: they are in no histogram.
    assert_eq!(found.get("queue_seconds_count"), 2.0);
}

#[test]
fn bounds_on_uploads_and_generation_have_reasons() {
    let mut options = ServerOptions {
        generation_deadline_seconds: 1,
        ..ServerOptions::default()
    };
    options.http.max_upload_mib = 1;
    options.http.body_deadline_seconds = 1;
    let server = TestServer::start(options);
    let large = server.post("/extract", file_form(vec![b'x'; 2 << 20]));
    assert_eq!(large.status(), 413);
    let mut slow = server.connect();
    let head = "POST /extract HTTP/1.1\r\nHost: l\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: 1000\r\n\r\n--b";
    slow.write_all(head.as_bytes()).expect("written");
    assert_eq!(status_of(&read_to_close(&mut slow).expect("an end")), 408);
    assert_eq!(server.analyze("flood").status(), 504);
    let streamed = page_form().text("prompt", "sleep 100000").text("stream", "true");
    let streamed = server.post("/analyze", streamed).text().expect("a stream");
    assert!(streamed.contains("\"status\":504"), "{streamed}");
    let found = scrape(&server);
    let expected = [
        ("upload_too_large", 1),
        ("upload_too_slow", 1),
        ("generation_deadline", 2),
    ];
    assert_eq!(found.reasons(), numbers(expected));
}

#[test]
fn the_metrics_can_be_read_while_the_model_loads() {
    let (go, gate) = mpsc::channel::<()>();
    let load = move || {
        gate.recv_timeout(PATIENCE).expect("a word");
        Ok(StubAnswerer::backend(Arc::default()))
    };
    let engine = Engine::start(load, engine_options()).expect("a thread");
    let server = TestServer::around(ServerOptions::default(), engine, Arc::<Counts>::default());
    assert_eq!(server.analyze("early").status(), 503);
    assert_eq!(scrape(&server).reasons(), numbers([("not_ready", 1)]));
    go.send(()).expect("the loader waits");
    eventually("it is loaded", || server.health()["model_loaded"] == true);
    server.is_well();
    assert_eq!(scrape(&server).get("reading_seconds_count"), 1.0);
}

#[test]
fn counters_only_grow_while_many_read_and_scrape() {
    let server = TestServer::start(ServerOptions::default());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut earlier = scrape(&server);
                while !done.load(Ordering::SeqCst) {
                    let now = scrape(&server);
                    now.assert_not_before(&earlier);
                    assert!(now.get("requests_running") <= 1.0);
                    earlier = now;
                }
            });
        }
        let clients: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..20 {
                        assert_eq!(server.analyze("say a|b|c").status(), 200);
                    }
                })
            })
            .collect();
        for client in clients {
            client.join().expect("no panic");
        }
        done.store(true, Ordering::SeqCst);
    });
    let found = scrape(&server);
    assert_eq!(found.get("tokens_total{kind=\"generated\"}"), 180.0);
    assert_eq!(found.get("inter_token_seconds_count"), 120.0);
    assert_eq!(found.requests("/analyze", 200), 60.0);
}

#[test]
fn no_label_holds_a_clients_text() {
    let options = ServerOptions {
        demo_port: Some(0),
        ..ServerOptions::default()
    };
    let server = TestServer::start(options);
    let ask = |address, method: &str, path: &str| {
        let lines =
            "Traceparent: 00-ca9a47ca9a47ca9a47ca9a47ca9a4700-ca9a47ca9a47ca9a-01\r\nX-Request-Id: canary-id";
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{lines}\r\n\r\n");
        let mut stream = TcpStream::connect(address).expect("a connection");
        stream.write_all(request.as_bytes()).expect("written");
        read_to_close(&mut stream).expect("an end")
    };
    for address in [server.address, server.demo.expect("a page")] {
        for path in [
            "/canary",
            "/canary/canary?canary=canary",
            "/docs/canary.css",
            "/v1/canary",
            "/v1/models/canary",
            "/api/v1/models/canary",
            "/api/canary",
            "/%63anary",
            "/metrics/canary",
            "//canary",
            "/health/../canary",
            "/canary\"} 1",
            "http://canary/canary",
        ] {
            for method in ["GET", "POST", "CANARY"] {
                ask(address, method, path);
            }
        }
    }
    let named = reqwest::blocking::multipart::Part::bytes(png(56, 84)).file_name("canary.png");
    let form = reqwest::blocking::multipart::Form::new().part("file", named);
    let form = form.text("prompt", "say canary").text("canary", "canary");
    assert_eq!(server.post("/analyze", form).status(), 200);
    let found = scrape(&server);
    let lower = found.text.to_lowercase();
    assert!(
        !lower.contains("canary") && !lower.contains("ca9a47"),
        "{}",
        found.text
    );
    let routes: BTreeSet<String> = found
        .of_metric("requests_total")
        .into_keys()
        .map(|labels| labels.split('"').nth(1).expect("a route").to_owned())
        .collect();
    let known = [
        "other",
        "/analyze",
        "/api/v1/models/{id}",
        "/docs/{file:.*}",
        "/health",
        "/metrics",
        "/v1/models/{id}",
        "/{file:.*}",
    ];
    let known = known.into_iter().map(str::to_owned).collect();
    assert!(routes.is_subset(&known), "{routes:?}");
}

#[test]
fn the_embedded_models_figures_are_those_of_its_answers() {
    let server = Shipped::start("models/qwen25-vl-nano", &[]).loaded();
    let scrape = || {
        Scrape::of(
            server
                .client
                .get(server.url("/metrics"))
                .send()
                .expect("an answer"),
        )
    };
    let page = golden_page("small_strip_rx.png");
    let bytes = std::fs::read(&page.path).expect("a page");
    let form = || file_form(bytes.clone()).text("prompt", TRAINED_PROMPT);
    let (mut prompt, mut image, mut generated) = (0.0, 0.0, 0.0);
    for form in [
        form(),
        form().text("max_new_tokens", "3"),
        form().text("max_new_tokens", "1"),
    ] {
        let answer: Value = server.post("/analyze", form).json().expect("JSON");
        prompt += answer["prompt_tokens"].as_f64().expect("a number");
        image += answer["image"]["tokens"].as_f64().expect("a number");
        generated += answer["completion_tokens"].as_f64().expect("a number");
    }
    let found = scrape();
    assert_eq!(found.get("tokens_total{kind=\"image\"}"), image);
    assert_eq!(found.get("tokens_total{kind=\"text\"}"), prompt - image);
    assert_eq!(found.get("tokens_total{kind=\"generated\"}"), generated);
    assert_eq!(found.get("first_token_seconds_count"), 3.0);
    assert_eq!(found.get("inter_token_seconds_count"), generated - 3.0);
    let [first, inter, reading] =
        ["first_token", "inter_token", "reading"].map(|name| found.get(&format!("{name}_seconds_sum")));
    assert!(
        first > 0.0 && inter > 0.0 && first + inter <= reading,
        "{}",
        found.text
    );
    assert_eq!(found.get("pages_total{kind=\"png\",status=\"read\"}"), 3.0);
    // It is full after the last token that it may generate; the reading has ended when the answer comes.
    assert_eq!(found.get("kv_cache_usage_ratio"), 0.0);
    assert!(!found.text.contains("gpu_memory"));
    let client: &Client = &server.client;
    let head = client.head(server.url("/metrics")).send().expect("an answer");
    assert_eq!(head.status(), 200);
}
