//! The contract: keys, types, statuses, errors, headers, documentation.

use std::collections::BTreeSet;
use std::sync::{Arc, mpsc};

use medical_vision::engine::Engine;
use medical_vision::prompts::EXTRACTION_PROMPT;
use medical_vision::server::ServerOptions;
use reqwest::Method;
use reqwest::blocking::multipart::Form;
use serde_json::{Value, json};

use super::support::{
    PATIENCE, StubAnswerer, TestServer, assert_error, assert_utc, engine_options, eventually, file_form,
    page_form, png,
};

fn assert_model_info(value: &Value) {
    let expected = json!({"model_name": "stub", "precision": "FP32", "lora_adapter": null, "device": "cpu"});
    assert_eq!(*value, expected);
}

fn assert_figures(body: &Value) {
    assert!(body["inference_latency_seconds"].as_f64().expect("a number") >= 0.0);
    assert!(body["queue_seconds"].as_f64().expect("a number") >= 0.0);
    assert_eq!(body["prompt_tokens"], 100);
    assert_eq!(body["completion_tokens"], 4);
    assert_eq!(body["finish_reason"], "stop");
}

#[test]
fn health_has_the_keys_of_the_original_project() {
    let server = TestServer::start(ServerOptions::default());
    let health = server.health();
    assert_eq!(health["model_loaded"], true);
    assert_eq!(health["gpu_available"], false);
    assert_eq!(health["gpu_name"], Value::Null);
    assert_eq!(health["current_vram_usage_mb"], 0.0);
    assert_eq!(health["total_vram_mb"], 0.0);
    assert_utc(&health["timestamp"]);
}

#[test]
fn while_the_model_loads_health_is_served_and_pages_are_503() {
    let (go, gate) = mpsc::channel::<()>();
    let load = move || {
        gate.recv_timeout(PATIENCE).expect("a word");
        Ok(StubAnswerer::backend(Arc::default()))
    };
    let engine = Engine::start(load, engine_options()).expect("a thread");
    let server = TestServer::around(ServerOptions::default(), engine, Arc::default());
    assert_eq!(server.health()["model_loaded"], false);
    assert_eq!(assert_error(server.get("/health/ready"), 503), "loading");
    let refused = server.analyze("hello");
    assert!(refused.headers().contains_key("retry-after"));
    assert_error(refused, 503);
    go.send(()).expect("the loader waits");
    eventually("it is loaded", || server.health()["model_loaded"] == true);
    server.is_well();
}

#[test]
fn extract_uses_the_default_prompt() {
    let server = TestServer::start(ServerOptions::default());
    let response = server.post("/extract", page_form().text("prompt", "not here"));
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/json");
    let body: Value = response.json().expect("JSON");
    let text = body["extracted_content"].as_str().expect("a text");
    assert_eq!(text, format!("{EXTRACTION_PROMPT}|56x84|Some(1024)|None|None"));
    assert_model_info(&body["model_info"]);
    assert_figures(&body);
    assert_utc(&body["timestamp"]);
}

#[test]
fn analyze_returns_the_prompt() {
    let server = TestServer::start(ServerOptions::default());
    let cases = [
        (page_form().text("prompt", "List the doses"), "List the doses"),
        (page_form().text("prompt", " \r\n\t "), EXTRACTION_PROMPT),
        (page_form().text("prompt", ""), EXTRACTION_PROMPT),
        (page_form(), EXTRACTION_PROMPT),
        (Form::new().text("prompt", "first"), ""),
    ];
    for (form, prompt) in cases {
        let response = server.post("/analyze", form);
        if prompt.is_empty() {
            assert_error(response, 422);
            continue;
        }
        let body: Value = response.json().expect("JSON");
        assert_eq!(body["prompt_used"], prompt);
        assert_eq!(body["analysis"], format!("{prompt}|56x84|Some(1024)|None|None"));
        assert_model_info(&body["model_info"]);
        assert_figures(&body);
        assert_utc(&body["timestamp"]);
    }
}

#[test]
fn form_fields_set_generation_options() {
    let server = TestServer::start(ServerOptions::default());
    let form = page_form()
        .text("prompt", "p")
        .text("max_new_tokens", "7")
        .text("temperature", "0.5")
        .text("seed", "18446744073709551615")
        .text("unknown", "ignored");
    let body: Value = server.post("/analyze", form).json().expect("JSON");
    assert_eq!(
        body["analysis"],
        "p|56x84|Some(7)|Some(0.5)|Some(18446744073709551615)"
    );
}

#[test]
fn fields_outside_their_range_are_422_by_name() {
    let server = TestServer::start(ServerOptions::default());
    let megabyte = "9".repeat(40_000);
    for (field, values) in [
        (
            "max_new_tokens",
            ["0", "-1", "1025", "9223372036854775808", "NaN"],
        ),
        ("temperature", ["-0.1", "2.1", "NaN", "inf", "warm"]),
        ("seed", ["-1", "18446744073709551616", "1.5", "NaN", "x"]),
    ] {
        for value in values.into_iter().chain([megabyte.as_str()]) {
            let form = page_form().text(field, value.to_owned());
            let detail = assert_error(server.post("/extract", form), 422);
            assert!(detail.starts_with(field), "{detail}");
            assert!(value.len() < 4 || !detail.contains(value), "the value came back");
        }
        let blank = page_form().text(field, " ");
        assert_eq!(server.post("/extract", blank).status(), 200, "blank is absent");
    }
}

#[test]
fn a_missing_file_is_422_however_the_form_is_sent() {
    let server = TestServer::start(ServerOptions::default());
    for path in ["/extract", "/analyze"] {
        let post = || server.client.post(server.url(path));
        for request in [
            post(),
            post().multipart(Form::new().text("prompt", "hello")),
            post()
                .body("prompt=hello")
                .header("content-type", "application/x-www-form-urlencoded"),
            post().body("{}").header("content-type", "application/json"),
            post().body(png(8, 8)).header("content-type", "image/png"),
        ] {
            let detail = assert_error(request.send().expect("an answer"), 422);
            assert!(detail.contains("`file`"), "{detail}");
        }
    }
}

#[test]
fn undecodable_images_are_400() {
    let server = TestServer::start(ServerOptions::default());
    let mut truncated = png(64, 64);
    truncated.truncate(truncated.len() / 2);
    for bytes in [Vec::new(), b"CANARY this is a text".to_vec(), truncated] {
        let detail = assert_error(server.post("/extract", file_form(bytes)), 400);
        assert!(!detail.contains("CANARY"));
    }
    server.is_well();
}

#[test]
fn unknown_routes_and_methods_are_json_errors() {
    let server = TestServer::start(ServerOptions::default());
    for path in [
        "/",
        "/nope",
        "/extract/",
        "//extract",
        "/EXTRACT",
        "/docs/nope.js",
    ] {
        assert_error(server.get(path), 404);
    }
    for (method, path) in [
        (Method::GET, "/extract"),
        (Method::PUT, "/analyze"),
        (Method::POST, "/health"),
        (Method::DELETE, "/benchmark"),
    ] {
        let request = server.client.request(method, server.url(path));
        assert_error(request.send().expect("an answer"), 405);
    }
}

#[test]
fn benchmark_serves_records_and_lists_skipped_ones() {
    let server = TestServer::start(ServerOptions::default());
    let empty: Value = server.get("/benchmark").json().expect("JSON");
    assert_eq!(empty["benchmarks"], json!({}));
    assert_eq!(empty["files_loaded"], json!([]));

    let folder = server.benchmarks();
    std::fs::create_dir(&folder).expect("a folder");
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).expect("a file");
    write("baseline_fp16.json", r#"{"precision": "FP16"}"#);
    write("environment.json", r#"{"validation_passed": true}"#);
    write("training_metrics.json", "{CANARY");
    // Not records, whatever they hold: of the pipeline, of a run that goes on, of somebody else.
    for name in [
        "pipeline_state.json",
        ".quantization_measured.json",
        "manifest.json",
        "mine.json",
    ] {
        write(name, r#"{"CANARY": 1}"#);
    }
    write("notes.txt", "CANARY");
    let secret = server.root.path().join("secret.json");
    std::fs::write(&secret, r#"{"CANARY": 1}"#).expect("a file");
    std::os::unix::fs::symlink(&secret, folder.join("merge_info.json")).expect("a link");
    std::fs::create_dir(folder.join("quantized_awq.json")).expect("a folder");
    let big = std::fs::File::create(folder.join("download_info.json")).expect("a file");
    big.set_len(17 * 1024 * 1024).expect("a hole");

    let response = server.get("/benchmark");
    assert_eq!(response.status(), 200);
    let text = response.text().expect("a text");
    assert!(!text.contains("CANARY"));
    let body: Value = serde_json::from_str(&text).expect("JSON");
    let expected = json!({
        "baseline_fp16": {"precision": "FP16"},
        "environment": {"validation_passed": true},
    });
    assert_eq!(body["benchmarks"], expected);
    assert_eq!(body["files_loaded"], json!(["baseline_fp16", "environment"]));
    let skipped = json!([
        {"file": "download_info", "reason": "larger than 16 MiB"},
        {"file": "merge_info", "reason": "a symbolic link"},
        {"file": "quantized_awq", "reason": "not a regular file"},
        {"file": "training_metrics", "reason": "not valid JSON"},
    ]);
    assert_eq!(body["files_skipped"], skipped);
    assert_utc(&body["timestamp"]);
}

#[test]
fn every_response_has_security_headers_and_a_request_id() {
    let server = TestServer::start(ServerOptions::default());
    for path in ["/health", "/nope", "/docs/", "/openapi.json"] {
        let response = server.get(path);
        let headers = response.headers();
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert_eq!(headers["cache-control"], "no-store");
        assert_eq!(headers["x-frame-options"], "DENY");
        assert!(headers.contains_key("content-security-policy"));
        assert!(!headers.contains_key("access-control-allow-origin"));
        assert_eq!(headers["x-request-id"].len(), 16, "a fresh id");
    }
}

#[test]
fn only_safe_request_ids_are_adopted() {
    let server = TestServer::start(ServerOptions::default());
    let longest = "a".repeat(64);
    let too_long = "a".repeat(65);
    let send = |id: &str| {
        let request = server
            .client
            .get(server.url("/health"))
            .header("x-request-id", id);
        let response = request.send().expect("an answer");
        response.headers()["x-request-id"]
            .to_str()
            .expect("a text")
            .to_owned()
    };
    for id in ["scan-42_B.7", longest.as_str()] {
        assert_eq!(send(id), id);
    }
    for id in ["", "a b", "a/b", "José", "a\tb", "\"", too_long.as_str()] {
        assert_ne!(send(id), id);
    }
}

#[test]
fn cors_is_off_unless_an_origin_is_listed() {
    let origins = ["https://ward.example.org".to_owned()];
    let listed = ServerOptions {
        cors_origin: origins.to_vec(),
        ..ServerOptions::default()
    };
    let (off, on) = (
        TestServer::start(ServerOptions::default()),
        TestServer::start(listed),
    );
    let allowed = |server: &TestServer, origin: &str| {
        let request = server.client.get(server.url("/health")).header("origin", origin);
        let response = request.send().expect("an answer");
        let value = response.headers().get("access-control-allow-origin").cloned();
        value.map(|value| value.to_str().expect("a text").to_owned())
    };
    assert_eq!(allowed(&off, "https://ward.example.org"), None);
    assert_eq!(
        allowed(&on, "https://ward.example.org").as_deref(),
        Some("https://ward.example.org")
    );
    for other in [
        "null",
        "http://ward.example.org",
        "https://ward.example.org.evil.com",
        "https://evil.com",
        "https://ward.example.org:444",
    ] {
        assert_eq!(allowed(&on, other), None, "{other}");
    }
}

#[test]
fn the_openapi_document_lists_the_routes() {
    let server = TestServer::start(ServerOptions::default());
    let document: Value = server.get("/openapi.json").json().expect("JSON");
    assert!(document["openapi"].as_str().expect("a version").starts_with("3."));
    assert!(document["info"]["title"].is_string() && document["info"]["version"].is_string());
    let paths = document["paths"].as_object().expect("an object");
    let routes: BTreeSet<(&str, &str)> = paths
        .iter()
        .flat_map(|(path, methods)| {
            let methods = methods.as_object().expect("an object").keys();
            methods.map(move |method| (path.as_str(), method.as_str()))
        })
        .collect();
    let expected = [
        ("/analyze", "post"),
        ("/benchmark", "get"),
        ("/extract", "post"),
        ("/health", "get"),
        ("/health/live", "get"),
        ("/health/ready", "get"),
        ("/metrics", "get"),
        ("/v1/chat/completions", "post"),
        ("/v1/models", "get"),
        ("/v1/models/{id}", "get"),
    ];
    assert_eq!(routes, BTreeSet::from(expected));
    // Every reference leads somewhere.
    let text = document.to_string();
    for reference in text.split("\"$ref\":\"#").skip(1) {
        let pointer = reference.split('"').next().expect("a pointer");
        assert!(document.pointer(pointer).is_some(), "{pointer}");
    }
    let form = &document["paths"]["/analyze"]["post"]["requestBody"]["content"];
    assert!(form["multipart/form-data"].is_object());
    let page = server.get("/docs");
    assert_eq!(page.url().path(), "/docs/");
    assert!(page.text().expect("a page").contains("swagger-ui"));
    let script = server
        .get("/docs/swagger-initializer.js")
        .text()
        .expect("a script");
    assert!(script.contains("/openapi.json"));
}
