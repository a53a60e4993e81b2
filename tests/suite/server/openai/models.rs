//! `/v1/models`.

use medical_vision::server::ServerOptions;
use serde_json::{Value, json};

use super::stub::{assert_refused, completion, post, request, start};

#[test]
fn the_model_and_its_adapters_are_listed() {
    let server = start(ServerOptions::default());
    let list: Value = server.get("/v1/models").json().expect("JSON");
    let created = list["data"][0]["created"].as_i64().expect("a number");
    assert!((chrono::Utc::now().timestamp() - created).abs() < 600);
    let model = |id: &str, adapter: Value, default: bool| {
        json!({
            "id": id, "object": "model", "created": created, "owned_by": "medvision",
            "medvision": {
                "model_name": "stub", "precision": "FP32", "lora_adapter": adapter, "device": "cpu", "default": default,
                "min_pixels": 3136, "max_pixels": 1_003_520,
            },
        })
    };
    let models = [
        model("notes", json!("notes"), true),
        model("stub", Value::Null, false),
        model("labs", json!("labs"), false),
    ];
    assert_eq!(list, json!({"object": "list", "data": models}));
    for (name, expected) in [("notes", 0), ("default", 0), ("stub", 1), ("labs", 2)] {
        let found: Value = server.get(&format!("/v1/models/{name}")).json().expect("JSON");
        assert_eq!(found, models[expected]);
        let answer = completion(&server, &request("hello", json!({"model": name})));
        assert_eq!(answer["model"], models[expected]["id"]);
    }
}

#[test]
fn an_unknown_model_is_404_with_the_names() {
    let server = start(ServerOptions::default());
    let long = "m".repeat(10_000);
    for name in ["gpt-4o", "Stub", "", " stub", "../stub", long.as_str()] {
        let error = assert_refused(post(&server, &request("hello", json!({"model": name}))), 404);
        assert_eq!(
            (&error["code"], &error["param"]),
            (&json!("model_not_found"), &json!("model"))
        );
        let message = error["message"].as_str().expect("a text");
        assert!(
            ["`notes`", "`stub`", "`labs`", "`default`"]
                .iter()
                .all(|name| message.contains(name)),
            "{message}"
        );
        assert!(message.len() < 400, "{message}");
    }
    assert_eq!(
        assert_refused(server.get("/v1/models/gpt-4o"), 404)["code"],
        "model_not_found"
    );
}
