//! Requests that arrive together, at the shipped server.

use std::io::{BufRead, BufReader};

use reqwest::blocking::Client;
use serde_json::{Value, json};

use super::super::program::ModelCopy;
use super::embedded::Shipped;
use super::support::eventually;

/// A stream of chat that goes on until it is left: the lines with text.
fn ramble(server: &Shipped) -> impl Iterator<Item = String> + use<> {
    let body = json!({
        "model": "default",
        "stream": true,
        "temperature": 2,
        "seed": 1,
        "messages": [{"role": "user", "content": "ramble"}],
    });
    let response = Client::new()
        .post(server.url("/v1/chat/completions"))
        .json(&body)
        .send();
    let lines = BufReader::new(response.expect("an answer"))
        .lines()
        .map_while(Result::ok);
    lines.filter(|line| {
        let data = line
            .strip_prefix("data: ")
            .and_then(|data| serde_json::from_str::<Value>(data).ok());
        data.is_some_and(|data| {
            data["choices"][0]["delta"]["content"]
                .as_str()
                .is_some_and(|text| !text.is_empty())
        })
    })
}

fn metric(server: &Shipped, name: &str) -> f64 {
    let text = reqwest::blocking::get(server.url("/metrics"))
        .expect("metrics")
        .text()
        .expect("text");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .expect("the metric");
    line.trim().parse().expect("a number")
}

#[test]
fn as_many_answers_as_the_batch_holds_are_generated_together() {
    let model = ModelCopy::new();
    // No token ends an answer.
    model.edit("generation_config.json", |config| {
        config["eos_token_id"] = json!([8189])
    });
    let flags = [
        "--adapter=none",
        "--max-batch=2",
        "--queue=4",
        "--max-new-tokens=3900",
    ];
    let server = Shipped::start(model.folder(), &flags).loaded();
    let load = || {
        (
            metric(&server, "medvision_requests_running"),
            metric(&server, "medvision_requests_waiting"),
        )
    };
    let (mut first, mut second) = (ramble(&server), ramble(&server));
    // Both go on at the same time.
    for _ in 0..3 {
        first.next().expect("text");
        second.next().expect("text");
    }
    std::thread::scope(|scope| {
        let third = scope.spawn(|| ramble(&server).next().is_some());
        eventually("the third waits", || load() == (2.0, 1.0));
        let used = metric(&server, "medvision_kv_cache_usage_ratio");
        assert!(used > 0.0 && used < 1.0, "{used}");
        first.next().expect("text");
        drop(first);
        assert!(
            third.join().expect("no panic"),
            "the place of one that left is free"
        );
    });
    second.next().expect("text: it goes on");
    drop(second);
    eventually("nothing runs", || load() == (0.0, 0.0));
    eventually("nothing is held", || {
        metric(&server, "medvision_kv_cache_usage_ratio") == 0.0
    });
}
