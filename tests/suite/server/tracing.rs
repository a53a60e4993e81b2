//! `traceparent` and `x-request-id`: taken over where they are valid.

use medical_vision::server::ServerOptions;
use serde_json::Value;

use super::embedded::Shipped;
use super::support::{TestServer, eventually, page_form};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

fn valid() -> String {
    format!("00-{TRACE}-00f067aa0ba902b7-01")
}

#[test]
fn a_valid_traceparent_is_in_the_answer_and_no_other() {
    let server = TestServer::start(ServerOptions::default());
    let echoed = |values: &[&str], path: &str| {
        let mut request = server.client.get(server.url(path));
        for value in values {
            request = request.header("traceparent", *value);
        }
        let answer = request.send().expect("an answer");
        assert!(answer.headers().contains_key("x-request-id"));
        let echoed = answer.headers().get("traceparent");
        echoed.map(|value| value.to_str().expect("a text").to_owned())
    };
    for path in ["/health", "/nothing", "/v1/models", "/metrics", "/extract"] {
        assert_eq!(echoed(&[&valid()], path), Some(valid()), "{path}");
    }
    let zeros = "0".repeat(32);
    for invalid in [
        "x",
        &format!("01-{TRACE}-00f067aa0ba902b7-01"),
        &format!("00-{}-00f067aa0ba902b7-01", TRACE.to_uppercase()),
        &format!("00-{zeros}-00f067aa0ba902b7-01"),
        &format!("00-{TRACE}-0000000000000000-01"),
        &format!("{}-more", valid()),
        &format!("{}{}", valid(), "0".repeat(4000)),
    ] {
        assert_eq!(echoed(&[invalid], "/health"), None, "{invalid}");
    }
    assert_eq!(echoed(&[&valid(), &valid()], "/health"), None, "two of them");
    assert_eq!(echoed(&[], "/health"), None);
    let streamed = server
        .client
        .post(server.url("/extract"))
        .header("traceparent", valid());
    let streamed = streamed.multipart(page_form().text("stream", "true"));
    let streamed = streamed.send().expect("an answer");
    assert_eq!(streamed.headers()["traceparent"], valid().as_str());
}

#[test]
fn the_log_holds_the_trace_id_of_a_request_and_its_reading() {
    let server = Shipped::start("models/qwen25-vl-nano", &[]).loaded();
    let post = |id: &str, trace: &str| {
        let request = server.client.post(server.url("/extract"));
        let request = request.header("x-request-id", id).header("traceparent", trace);
        let png = super::support::png(56, 84);
        let form = super::support::file_form(png).text("max_new_tokens", "1");
        let answer = request.multipart(form).send().expect("an answer");
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["x-request-id"], id);
    };
    post("traced", &valid());
    post("invalid", &valid().to_uppercase());
    let lines = |id: &str| {
        let log = server.log();
        let lines = log
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).expect("JSON lines"));
        lines
            .filter(|line| line["span"]["request_id"] == id)
            .collect::<Vec<_>>()
    };
    for (id, trace) in [("traced", Value::from(TRACE)), ("invalid", Value::Null)] {
        for message in ["request", "page read"] {
            let line = || lines(id).into_iter().find(|line| line["message"] == message);
            eventually("it is logged", || line().is_some());
            assert_eq!(line().expect("a line")["span"]["trace_id"], trace, "{message}");
        }
    }
    assert!(
        !server.log().contains(&TRACE.to_uppercase()),
        "an invalid one is in the log"
    );
}
