//! What the official client sent and got (`tests/clients/test_openai.py`, recorded in `tests/fixtures/clients/openai.json`), replayed
//! without Python.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use reqwest::blocking::Response;
use serde_json::{Map, Value, json};

use super::super::embedded::Shipped;
use super::super::support::eventually;
use super::stub::data_uri;
use crate::suite::program::ModelCopy;

/// Log-probabilities differ in the last digits between machines.
const TOLERANCE: f64 = 0.01;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// The exchanges with the server that `server` names; `null`: with one as it is.
fn recorded(server: &Value) -> Vec<Value> {
    let recorded = fs::read(fixtures().join("clients/openai.json")).expect("a fixture");
    let recorded: Vec<Value> = serde_json::from_slice(&recorded).expect("JSON");
    recorded
        .into_iter()
        .filter(|exchange| exchange["server"] == *server)
        .collect()
}

/// Sends the request of `exchange`; its status and headers must be those that were recorded.
fn replayed(server: &Shipped, exchange: &Value) -> Response {
    let url = server.url(exchange["path"].as_str().expect("a path"));
    let request = match exchange["method"].as_str() {
        Some("GET") => server.client.get(url),
        _ => {
            let body = expanded(&exchange["request"], &fixtures().join("pages"));
            server.client.post(url).json(&body)
        }
    };
    let response = request.send().expect("an answer");
    let name = &exchange["name"];
    assert_eq!(response.status().as_u16(), exchange["status"], "{name}");
    let retry_after = response.headers().contains_key("retry-after");
    assert_eq!(retry_after, exchange["retry_after"] == true, "{name}");
    response
}

fn is_stream(response: &Response) -> bool {
    response.headers()["content-type"] == "text/event-stream"
}

#[test]
fn recorded_exchanges_are_answered_the_same() {
    let recorded = recorded(&Value::Null);
    assert!(recorded.len() > 20, "{}", recorded.len());
    let server = Shipped::start("models/qwen25-vl-nano", &["--adapter", "none"]).loaded();
    let mut of_seeds = BTreeMap::new();
    for exchange in recorded {
        let name = exchange["name"].as_str().expect("a name");
        let response = replayed(&server, &exchange);
        let is_stream = is_stream(&response);
        let text = response.text().expect("a text");
        let mut answer = match is_stream {
            true => joined(text.lines()),
            false => serde_json::from_str(&text).expect("JSON"),
        };
        if exchange["sampled"] == true {
            // Sampled tokens depend on the processor: the same seed answers the same here, and another one does not.
            let seed = exchange["request"]["seed"].as_i64().expect("a seed");
            let content = answer["choices"][0]["message"]["content"].take();
            for key in ["/usage", "/medvision/finish_reason", "/choices/0/finish_reason"] {
                answer.pointer_mut(key).expect("a key").take();
            }
            let before = of_seeds.insert(seed, content.clone());
            assert!(before.is_none_or(|before| before == content), "{name} {seed}");
        }
        assert_alike(&steady(answer), &exchange["answer"], name);
    }
    let answers: Vec<_> = of_seeds.into_values().collect();
    assert!(answers.len() == 2 && answers[0] != answers[1], "{answers:?}");
}

#[test]
fn recorded_exchanges_with_a_busy_server_are_answered_the_same() {
    let recorded = recorded(&json!("endless"));
    let statuses: Vec<_> = recorded.iter().map(|exchange| &exchange["status"]).collect();
    assert_eq!(statuses, [200, 503, 200]);
    let model = ModelCopy::new();
    model.edit("generation_config.json", |config| {
        config["eos_token_id"] = json!([8189])
    });
    let flags = [
        "--adapter=none",
        "--queue=0",
        "--max-batch=1",
        "--max-new-tokens=3900",
    ];
    let server = Shipped::start(model.folder(), &flags).loaded();
    let cancelled = || {
        let log = server.log();
        log.matches("\"finish_reason\":\"cancelled\"").count()
    };
    let mut left = 0;
    let mut running = None;
    for exchange in &recorded {
        let name = exchange["name"].as_str().expect("a name");
        if exchange["cancelled"] != true {
            let answer: Value = replayed(&server, exchange).json().expect("JSON");
            assert_alike(&steady(answer), &exchange["answer"], name);
            continue;
        }
        if running.take().is_some() {
            left += 1;
            eventually("it was left", || cancelled() == left);
        }
        let response = replayed(&server, exchange);
        assert!(is_stream(&response));
        let mut lines = BufReader::new(response).lines().map_while(Result::ok);
        // The role and the first text.
        let mut begin = Vec::new();
        while begin
            .iter()
            .filter(|line: &&String| line.starts_with("data: "))
            .count()
            < 2
        {
            begin.push(lines.next().expect("a chunk"));
        }
        let mut answer = joined(begin.iter().map(String::as_str).chain(["data: [DONE]"]));
        let text = answer["text"].take();
        assert!(!text.as_str().expect("a text").is_empty());
        assert_alike(&steady(answer), &exchange["answer"], name);
        running = Some(lines);
    }
    drop(running);
    eventually("it was left, too", || cancelled() == left + 1);
}

/// `value` with the pages that `page:NAME` stands for, and the texts that `repeat:COUNT:TEXT` does.
fn expanded(value: &Value, pages: &Path) -> Value {
    match value {
        Value::String(text) => match text.split_once(':') {
            Some(("page", name)) => {
                let page = fs::read(pages.join(name)).expect("a page");
                json!(data_uri("image/png", &page))
            }
            Some(("repeat", repeated)) => {
                let (count, text) = repeated.split_once(':').expect("a count");
                json!(text.repeat(count.parse().expect("a number")))
            }
            _ => value.clone(),
        },
        Value::Array(list) => list.iter().map(|item| expanded(item, pages)).collect(),
        Value::Object(keys) => {
            let keys = keys.iter();
            Value::Object(
                keys.map(|(key, value)| (key.clone(), expanded(value, pages)))
                    .collect(),
            )
        }
        other => other.clone(),
    }
}

/// The chunks of a stream, those with text as one, as the recording has them.
fn joined<'l>(lines: impl Iterator<Item = &'l str>) -> Value {
    let mut data: Vec<&str> = lines.filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(data.pop(), Some("[DONE]"));
    let (mut chunks, mut text) = (Vec::new(), String::new());
    for chunk in data {
        let chunk: Value = serde_json::from_str(chunk).expect("JSON");
        match chunk["choices"][0]["delta"]["content"]
            .as_str()
            .unwrap_or_default()
        {
            "" => chunks.push(chunk),
            piece => text.push_str(piece),
        }
    }
    json!({"chunks": chunks, "text": text})
}

/// `value` without ids and times.
fn steady(value: Value) -> Value {
    match value {
        Value::Array(list) => list.into_iter().map(steady).collect(),
        Value::Object(keys) => {
            // Depends on what was asked before.
            let keys = keys.into_iter().filter(|(key, _)| key != "prompt_tokens_details");
            let keys = keys.map(|(key, value)| {
                let volatile = ["id", "created", "system_fingerprint"].contains(&key.as_str());
                let value = if volatile || key.ends_with("_seconds") {
                    Value::Null
                } else {
                    steady(value)
                };
                (key, value)
            });
            Value::Object(keys.collect::<Map<_, _>>())
        }
        Value::String(text) => {
            let Some((before, after)) = text.split_once("try again in ") else {
                return Value::String(text);
            };
            let rest = after.trim_start_matches(|c: char| c.is_ascii_digit());
            json!(format!("{before}try again in N{rest}"))
        }
        other => other,
    }
}

/// Asserts that both are equal but for [`TOLERANCE`].
fn assert_alike(answer: &Value, recorded: &Value, place: &str) {
    match (answer, recorded) {
        (Value::Object(one), Value::Object(other)) => {
            assert!(one.keys().eq(other.keys()), "{place}: {answer} {recorded}");
            for (key, value) in one {
                assert_alike(value, &other[key], &format!("{place}.{key}"));
            }
        }
        (Value::Array(one), Value::Array(other)) => {
            assert_eq!(one.len(), other.len(), "{place}");
            for (index, value) in one.iter().enumerate() {
                assert_alike(value, &other[index], &format!("{place}[{index}]"));
            }
        }
        (Value::Number(one), Value::Number(other)) => {
            let [one, other] = [one, other].map(|number| number.as_f64().expect("a number"));
            assert!((one - other).abs() <= TOLERANCE, "{place}: {one} {other}");
        }
        _ => assert_eq!(answer, recorded, "{place}"),
    }
}
