//! What the official client sent and got (`tests/clients/test_openai.py`, recorded in `tests/fixtures/clients/openai.json`), replayed
//! without Python.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::super::embedded::Shipped;
use super::stub::data_uri;

/// Log-probabilities differ in the last digits between machines.
const TOLERANCE: f64 = 0.01;

#[test]
fn recorded_exchanges_are_answered_the_same() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let recorded = fs::read(fixtures.join("clients/openai.json")).expect("a fixture");
    let recorded: Vec<Value> = serde_json::from_slice(&recorded).expect("JSON");
    assert!(recorded.len() > 15, "{}", recorded.len());
    let server = Shipped::start("models/qwen25-vl-nano", &["--adapter", "none"]).loaded();
    for exchange in recorded {
        let name = exchange["name"].as_str().expect("a name");
        let url = server.url(exchange["path"].as_str().expect("a path"));
        let request = match exchange["method"].as_str() {
            Some("GET") => server.client.get(url),
            _ => {
                let body = with_pages(&exchange["request"], &fixtures.join("pages"));
                server.client.post(url).json(&body)
            }
        };
        let response = request.send().expect("an answer");
        assert_eq!(response.status().as_u16(), exchange["status"], "{name}");
        let is_stream = response.headers()["content-type"] == "text/event-stream";
        let text = response.text().expect("a text");
        let answer = match is_stream {
            true => joined(&text),
            false => serde_json::from_str(&text).expect("JSON"),
        };
        assert_alike(&steady(answer), &exchange["answer"], name);
    }
}

/// `value` with the pages that `page:NAME` stands for.
fn with_pages(value: &Value, pages: &Path) -> Value {
    match value {
        Value::String(text) => match text.strip_prefix("page:") {
            Some(name) => json!(data_uri(
                "image/png",
                &fs::read(pages.join(name)).expect("a page")
            )),
            None => value.clone(),
        },
        Value::Array(list) => list.iter().map(|item| with_pages(item, pages)).collect(),
        Value::Object(keys) => {
            let keys = keys.iter();
            Value::Object(
                keys.map(|(key, value)| (key.clone(), with_pages(value, pages)))
                    .collect(),
            )
        }
        other => other.clone(),
    }
}

/// The chunks of a stream, those with text as one, as the recording has them.
fn joined(stream: &str) -> Value {
    let mut data: Vec<&str> = stream
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .collect();
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
            let keys = keys.into_iter().map(|(key, value)| {
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
