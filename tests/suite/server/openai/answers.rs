//! Answers, whole and streamed.

use std::io::{BufRead, BufReader, Read};
use std::sync::atomic::Ordering;

use medical_vision::server::ServerOptions;
use reqwest::blocking::Response;
use serde_json::{Value, json};

use super::super::support::{TestServer, eventually};
use super::stub::{assert_refused, completion, page_uri, picture, post, request, start, with_parts};

/// The data of all events of a stream, and whether `[DONE]` ended it.
fn events(response: Response) -> (Vec<Value>, bool) {
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = response.text().expect("a text");
    let mut events = Vec::new();
    for event in text.split("\n\n").filter(|event| !event.is_empty()) {
        match event.strip_prefix("data: ") {
            Some("[DONE]") => return (events, true),
            Some(data) => events.push(serde_json::from_str(data).expect("JSON")),
            None => assert_eq!(event, ": keep-alive"),
        }
    }
    (events, false)
}

fn streamed(server: &TestServer, text: &str, more: Value) -> (Vec<Value>, bool) {
    let mut body = request(text, more);
    body["stream"] = json!(true);
    events(post(server, &body))
}

/// The joined text of chunks.
fn text_of(chunks: &[Value]) -> String {
    let choices = chunks
        .iter()
        .flat_map(|chunk| chunk["choices"].as_array().expect("a list"));
    choices
        .filter_map(|choice| choice["delta"]["content"].as_str())
        .collect()
}

#[test]
fn an_answer_has_openais_keys() {
    let server = start(ServerOptions::default());
    let body = with_parts(json!([picture(&page_uri()), {"type": "text", "text": "say Hgb 9,2"}]));
    let mut answer = completion(&server, &body);
    let id = answer["id"].take();
    assert!(id.as_str().expect("a text").starts_with("chatcmpl-"), "{id}");
    let created = answer["created"].take().as_i64().expect("a number");
    assert!((chrono::Utc::now().timestamp() - created).abs() < 60);
    assert!(answer["system_fingerprint"].take().is_string());
    for key in [
        "queue_seconds",
        "time_to_first_token_seconds",
        "inference_latency_seconds",
    ] {
        assert!(answer["medvision"][key].take().as_f64().expect("a number") >= 0.0);
    }
    let expected = json!({
        "id": null,
        "object": "chat.completion",
        "created": null,
        "model": "notes",
        "choices": [{
            "index": 0,
            "message": {"role": "assistant", "content": "Hgb 9,2", "refusal": null},
            "logprobs": null,
            "finish_reason": "stop",
        }],
        "usage": {"prompt_tokens": 100, "completion_tokens": 4, "total_tokens": 104},
        "system_fingerprint": null,
        "medvision": {
            "finish_reason": "stop",
            "images": [{"width": 56, "height": 84, "resized_width": 56, "resized_height": 84, "tokens": 6}],
            "warnings": [],
            "model_info": {"model_name": "stub", "precision": "FP32", "lora_adapter": "notes", "device": "cpu"},
            "queue_seconds": null, "time_to_first_token_seconds": null, "inference_latency_seconds": null,
        },
    });
    assert_eq!(answer, expected);
    let named = server.client.post(server.url("/v1/chat/completions"));
    let named = named
        .header("x-request-id", "scan-7")
        .json(&request("say a", json!({})));
    let answer: Value = named.send().expect("an answer").json().expect("JSON");
    assert_eq!(answer["id"], "chatcmpl-scan-7");
}

#[test]
fn only_stop_and_length_are_told_as_reasons() {
    let server = start(ServerOptions::default());
    for (reason, told) in [
        ("stop", "stop"),
        ("length", "length"),
        ("repetition", "length"),
        ("deadline", "length"),
    ] {
        let prompt = format!("end {reason}");
        let answer = completion(&server, &request(&prompt, json!({})));
        assert_eq!(answer["choices"][0]["finish_reason"], told);
        assert_eq!(answer["medvision"]["finish_reason"], reason);
        let (chunks, done) = streamed(&server, &prompt, json!({}));
        let last = chunks.last().expect("a chunk");
        assert_eq!((&last["choices"][0]["finish_reason"], done), (&json!(told), true));
        assert_eq!(last["medvision"]["finish_reason"], reason);
    }
}

#[test]
fn a_generation_beyond_its_deadline_keeps_its_text() {
    let server = start(ServerOptions {
        generation_deadline_seconds: 1,
        ..ServerOptions::default()
    });
    let answer = completion(&server, &request("sleep 600000", json!({})));
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["medvision"]["finish_reason"], "deadline");
    assert!(
        answer["choices"][0]["message"]["content"]
            .as_str()
            .expect("a text")
            .starts_with("token ")
    );
}

#[test]
fn logprobs_have_openais_form() {
    let server = start(ServerOptions::default());
    let body = request("say é", json!({"logprobs": true, "top_logprobs": 2}));
    let answer = completion(&server, &body);
    let token = |logprob: f64| json!({"token": "é", "bytes": [195, 169], "logprob": logprob});
    let mut expected = token(-0.5);
    // Minus infinity, which JSON does not have.
    expected["top_logprobs"] = json!([token(-0.5), token(-9999.0)]);
    assert_eq!(
        answer["choices"][0]["logprobs"],
        json!({"content": [expected], "refusal": null})
    );
    let answer = completion(&server, &request("say é", json!({"logprobs": true})));
    assert_eq!(
        answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"],
        json!([])
    );

    let (chunks, _) = streamed(&server, "say né", json!({"logprobs": true}));
    let tokens = chunks
        .iter()
        .flat_map(|chunk| chunk["choices"].as_array().expect("a list"));
    let tokens: Vec<&Value> = tokens
        .filter_map(|choice| choice["logprobs"]["content"].as_array())
        .flatten()
        .map(|token| &token["token"])
        .collect();
    assert_eq!(tokens, ["n", "é"]);
}

#[test]
fn a_stream_has_openais_chunks() {
    let server = start(ServerOptions::default());
    let (chunks, done) = streamed(&server, "say Hämoglobin\n9", json!({}));
    assert!(done);
    let first = &chunks[0];
    assert_eq!(first["object"], "chat.completion.chunk");
    assert_eq!(first["model"], "notes");
    assert_eq!(
        first["choices"],
        json!([{"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": null, "finish_reason": null}])
    );
    assert_eq!(text_of(&chunks), "Hämoglobin\n9");
    let last = chunks.last().expect("a chunk");
    assert_eq!(
        last["choices"],
        json!([{"index": 0, "delta": {}, "logprobs": null, "finish_reason": "stop"}])
    );
    assert_eq!(last["medvision"]["model_info"]["model_name"], "stub");
    for chunk in &chunks {
        assert_eq!(
            (&chunk["id"], &chunk["created"]),
            (&first["id"], &first["created"])
        );
        assert!(chunk.get("usage").is_none(), "{chunk}");
        assert_eq!(chunk["choices"].as_array().expect("a list").len(), 1);
        assert_eq!(chunk.get("medvision").is_some(), chunk == last);
    }

    let with_usage = json!({"stream_options": {"include_usage": true}});
    let (chunks, done) = streamed(&server, "say a", with_usage);
    let (last, others) = chunks.split_last().expect("a chunk");
    assert!(
        done && others
            .iter()
            .all(|chunk| chunk.get("usage") == Some(&Value::Null))
    );
    assert_eq!(last["choices"], json!([]));
    assert_eq!(
        last["usage"],
        json!({"prompt_tokens": 100, "completion_tokens": 4, "total_tokens": 104})
    );
}

#[test]
fn an_error_before_the_first_token_has_its_status() {
    let server = start(ServerOptions::default());
    for (prompt, status) in [("overflow", 400), ("error", 500), ("panic", 500)] {
        assert_refused(post(&server, &request(prompt, json!({"stream": true}))), status);
    }
}

#[test]
fn an_error_after_the_first_byte_ends_the_stream_without_done() {
    let options = ServerOptions {
        queue_deadline_seconds: 3,
        stream_keep_alive_seconds: 1,
        ..ServerOptions::default()
    };
    let server = start(options);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| post(&server, &request("sleep 600000", json!({"stream": true}))));
        eventually("it runs", || server.engine.load().running == 1);
        // It begins to stream while it waits, and is never its turn.
        let (mut chunks, done) = streamed(&server, "say a", json!({}));
        let error = chunks.pop().expect("an error");
        assert!(!done);
        assert_eq!(chunks.len(), 1, "the role");
        assert_eq!(error["error"]["type"], "server_error");
        assert!(
            error["error"]["message"]
                .as_str()
                .expect("a text")
                .contains("waited too long"),
            "{error}"
        );
        drop(running.join().expect("no panic"));
    });
}

#[test]
fn quiet_streams_get_comments_while_they_wait() {
    let server = start(ServerOptions {
        stream_keep_alive_seconds: 1,
        ..ServerOptions::default()
    });
    std::thread::scope(|scope| {
        let running = scope.spawn(|| post(&server, &request("sleep 600000", json!({"stream": true}))));
        eventually("it runs", || server.engine.load().running == 1);
        let waiting = post(&server, &request("say a", json!({"stream": true})));
        let lines = BufReader::new(waiting).lines().map_while(Result::ok);
        let comments = lines.filter(|line| line == ": keep-alive").take(2).count();
        assert_eq!(comments, 2);
        drop(running.join().expect("no panic"));
    });
}

#[test]
fn leaving_a_stream_frees_the_slot() {
    let server = start(ServerOptions::default());
    let mut response = post(&server, &request("sleep 600000", json!({"stream": true})));
    response.read_exact(&mut [0; 16]).expect("a chunk");
    assert_eq!(server.engine.admitted(), 1);
    drop(response);
    eventually("its slot is free", || server.engine.admitted() == 0);
    assert_eq!(server.counts.cancelled.load(Ordering::SeqCst), 1);
    completion(&server, &request("hello", json!({})));
}
