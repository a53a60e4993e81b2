//! Every parameter: its range, and what the model is asked.

use medical_vision::server::ServerOptions;
use serde_json::{Value, json};

use super::stub::{assert_refused, post, refusal, request, start, understood};

#[test]
fn parameters_reach_the_model() {
    let server = start(ServerOptions::default());
    let asked = understood(&server, &request("hello", json!({})));
    let expected = json!({
        "messages": [["user", ["hello"]]],
        "max_new_tokens": 1024, "fit_context": true,
        "temperature": null, "top_p": null, "top_k": null, "repetition_penalty": null, "seed": null, "stop": null,
        "variant": 0, "logprobs": null,
    });
    assert_eq!(asked, expected);
    let cases = [
        (
            json!({"max_tokens": 7}),
            json!({"max_new_tokens": 7, "fit_context": false}),
        ),
        (
            json!({"max_completion_tokens": 1024}),
            json!({"max_new_tokens": 1024, "fit_context": false}),
        ),
        (
            json!({"max_tokens": 3, "max_completion_tokens": 3}),
            json!({"max_new_tokens": 3}),
        ),
        (json!({"max_tokens": 16.0}), json!({"max_new_tokens": 16})),
        (json!({"temperature": 0}), json!({"temperature": 0.0})),
        (json!({"temperature": 2}), json!({"temperature": 2.0})),
        (json!({"top_p": 1}), json!({"top_p": 1.0})),
        (json!({"top_p": 0.001}), json!({"top_p": 0.001})),
        (json!({"top_k": -1}), json!({"top_k": 0})),
        (json!({"top_k": 0}), json!({"top_k": 0})),
        (json!({"top_k": 40}), json!({"top_k": 40})),
        (
            json!({"repetition_penalty": 1.05}),
            json!({"repetition_penalty": 1.05}),
        ),
        (json!({"seed": 0}), json!({"seed": 0})),
        (json!({"seed": -1}), json!({"seed": u64::MAX})),
        (json!({"seed": i64::MIN}), json!({"seed": 1_u64 << 63})),
        (json!({"seed": u64::MAX}), json!({"seed": u64::MAX})),
        (json!({"stop": "\n\n"}), json!({"stop": ["\n\n"]})),
        (
            json!({"stop": ["a", "b", "c", "d"]}),
            json!({"stop": ["a", "b", "c", "d"]}),
        ),
        (
            json!({"stop": "é".repeat(256)}),
            json!({"stop": ["é".repeat(256)]}),
        ),
        (json!({"logprobs": true}), json!({"logprobs": 0})),
        (
            json!({"logprobs": true, "top_logprobs": 20}),
            json!({"logprobs": 20}),
        ),
        (json!({"model": "stub"}), json!({"variant": 1})),
        (json!({"model": "labs"}), json!({"variant": 2})),
        (json!({"model": "notes"}), json!({"variant": 0})),
    ];
    for (more, expected) in cases {
        let asked = understood(&server, &request("hello", more.clone()));
        for (key, value) in expected.as_object().expect("an object") {
            assert_eq!(asked[key], *value, "{more}");
        }
    }
}

#[test]
fn parameters_without_effect_are_accepted() {
    let server = start(ServerOptions::default());
    let plain = understood(&server, &request("hello", json!({})));
    let cases = [
        json!({"n": 1, "presence_penalty": 0, "frequency_penalty": 0.0}),
        json!({"tools": [], "tool_choice": "none", "logit_bias": {}, "response_format": {"type": "text"}}),
        json!({"user": "u", "metadata": {"a": "b"}, "store": false, "service_tier": "auto"}),
        json!({"safety_identifier": "s", "prompt_cache_key": "k"}),
        json!({"stream": false, "logprobs": false, "mm_processor_kwargs": {}}),
    ];
    for more in cases {
        assert_eq!(
            understood(&server, &request("hello", more.clone())),
            plain,
            "{more}"
        );
    }
    // Clients write null for what is not set.
    let names = "max_tokens max_completion_tokens temperature top_p top_k repetition_penalty seed stop stream stream_options logprobs \
                 top_logprobs mm_processor_kwargs n presence_penalty frequency_penalty tools tool_choice logit_bias response_format user \
                 metadata store service_tier safety_identifier prompt_cache_key";
    let nulls = names
        .split_whitespace()
        .map(|name| (name.to_owned(), Value::Null));
    let nulls = Value::Object(nulls.collect());
    assert_eq!(understood(&server, &request("hello", nulls)), plain);
}

#[test]
fn values_out_of_range_are_refused_by_name_and_range() {
    let server = start(ServerOptions::default());
    let cases = [
        ("max_tokens", json!(0), "from 1 to 1024"),
        ("max_tokens", json!(1025), "from 1 to 1024"),
        ("max_tokens", json!(1.5), "from 1 to 1024"),
        ("max_completion_tokens", json!(-1), "from 1 to 1024"),
        ("temperature", json!(-0.1), "from 0 to 2"),
        ("temperature", json!(2.01), "from 0 to 2"),
        ("top_p", json!(0), "above 0 and at most 1"),
        ("top_p", json!(1.1), "above 0 and at most 1"),
        ("top_k", json!(-2), "from -1"),
        ("repetition_penalty", json!(0), "above 0"),
        ("repetition_penalty", json!(101), "at most 100"),
        ("seed", json!(1.5), "a whole number"),
        ("seed", json!(1e30), "a whole number"),
        ("stop", json!(["a", "b", "c", "d", "e"]), "the limit is 4"),
        ("stop", json!(""), "is empty"),
        ("stop", json!("s".repeat(257)), "256 characters"),
        ("stop", json!("s".repeat(1 << 20)), "256 characters"),
    ];
    for (param, value, reason) in cases {
        let message = refusal(
            &server,
            &request("hello", json!({param: value})),
            "invalid_value",
            param,
        );
        assert!(message.contains(param) && message.contains(reason), "{message}");
    }
    let stop = request("hello", json!({"stop": ["a", "s".repeat(1 << 20)]}));
    refusal(&server, &stop, "invalid_value", "stop[1]");
    let top = request("hello", json!({"logprobs": true, "top_logprobs": 21}));
    assert!(refusal(&server, &top, "invalid_value", "top_logprobs").contains("from 0 to 20"));
    // What only makes sense together.
    let lone = request("hello", json!({"top_logprobs": 1}));
    assert!(refusal(&server, &lone, "invalid_value", "top_logprobs").contains("`logprobs`"));
    let lone = request("hello", json!({"stream_options": {"include_usage": true}}));
    assert!(refusal(&server, &lone, "invalid_value", "stream_options").contains("`stream`"));
    let two = request("hello", json!({"max_tokens": 1, "max_completion_tokens": 2}));
    refusal(&server, &two, "invalid_value", "max_tokens");
    server.is_well();
}

#[test]
fn wrong_types_are_refused_by_name() {
    let server = start(ServerOptions::default());
    let cases = [
        ("model", json!(1), "model"),
        ("messages", json!("hello"), "messages"),
        ("temperature", json!("hot"), "temperature"),
        ("top_p", json!([]), "top_p"),
        ("top_k", json!("1"), "top_k"),
        ("max_tokens", json!("12"), "max_tokens"),
        ("seed", json!(true), "seed"),
        ("stop", json!(1), "stop"),
        ("stop", json!(["a", 1]), "stop[1]"),
        ("stream", json!("yes"), "stream"),
        ("stream", json!(1), "stream"),
        ("logprobs", json!(3), "logprobs"),
        ("n", json!("1"), "n"),
        ("presence_penalty", json!({}), "presence_penalty"),
        ("response_format", json!("text"), "response_format"),
        ("response_format", json!({"type": 1}), "response_format.type"),
        ("mm_processor_kwargs", json!([]), "mm_processor_kwargs"),
        (
            "mm_processor_kwargs",
            json!({"max_pixels": "big"}),
            "mm_processor_kwargs.max_pixels",
        ),
    ];
    for (param, value, place) in cases {
        refusal(
            &server,
            &request("hello", json!({param: value})),
            "invalid_type",
            place,
        );
    }
    let options = request(
        "hello",
        json!({"stream": true, "stream_options": {"include_usage": 1}}),
    );
    refusal(&server, &options, "invalid_type", "stream_options.include_usage");
    let error = assert_refused(post(&server, &json!([])), 400);
    assert_eq!(
        (&error["code"], &error["param"]),
        (&json!("invalid_type"), &Value::Null)
    );
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let server = start(ServerOptions::default());
    let tool = json!({"type": "function", "function": {"name": "f"}});
    let cases = [
        ("n", json!(2), "n"),
        ("presence_penalty", json!(0.5), "presence_penalty"),
        ("frequency_penalty", json!(-1), "frequency_penalty"),
        ("tools", json!([tool]), "tools"),
        ("tool_choice", json!("required"), "tool_choice"),
        ("tool_choice", json!({"type": "function"}), "tool_choice"),
        ("logit_bias", json!({"50256": -100}), "logit_bias"),
        (
            "response_format",
            json!({"type": "json_object"}),
            "response_format.type",
        ),
        (
            "response_format",
            json!({"type": "json_schema", "json_schema": {}}),
            "response_format.type",
        ),
        ("store", json!(true), "store"),
    ];
    for (param, value, place) in cases {
        refusal(
            &server,
            &request("hello", json!({param: value})),
            "unsupported_value",
            place,
        );
    }
}

#[test]
fn unknown_and_missing_parameters_are_refused_by_name() {
    let server = start(ServerOptions::default());
    for param in ["functions", "temperatures", "extra_body", "", "Temperature"] {
        refusal(
            &server,
            &request("hello", json!({param: null})),
            "unknown_parameter",
            param,
        );
    }
    let nested = [
        (
            json!({"mm_processor_kwargs": {"fps": 1}}),
            "mm_processor_kwargs.fps",
        ),
        (
            json!({"response_format": {"type": "text", "schema": {}}}),
            "response_format.schema",
        ),
    ];
    for (more, place) in nested {
        refusal(&server, &request("hello", more), "unknown_parameter", place);
    }
    let long = refusal_of_long_name(&server);
    assert!(long.len() < 1000, "{}", long.len());
    for param in ["model", "messages"] {
        for absent in [true, false] {
            let mut body = request("hello", json!({}));
            let keys = body.as_object_mut().expect("an object");
            match absent {
                true => keys.remove(param),
                false => keys.insert(param.to_owned(), Value::Null),
            };
            refusal(&server, &body, "missing_required_parameter", param);
        }
    }
}

/// The whole error of a key of a megabyte.
fn refusal_of_long_name(server: &super::super::support::TestServer) -> String {
    let body = request("hello", json!({"é".repeat(1 << 19): 1}));
    assert_refused(post(server, &body), 400).to_string()
}
