//! The shipped server with an adapter beside the embedded model.

use std::fs;

use medical_vision::lora::{Adapter, LoraConfig, Recommendation};
use medical_vision::qwen2_5_vl::Config;
use serde_json::Value;

use super::{embedded::Shipped, support::file_form};
use crate::suite::program::{ModelCopy, golden_page, text};

/// An adapter that changes nothing yet, of rank 512: 24 million values, beside which an allocator's and threads' odd megabyte is little.
fn adapter(model: &ModelCopy) -> Adapter {
    let config = LoraConfig {
        r: 512,
        base_model_name_or_path: Some("models/qwen25-vl-nano-bnb-nf4".to_owned()),
        ..LoraConfig::default()
    };
    let model = Config::from_dir(model.models().join("qwen25-vl-nano").as_path()).expect("a config");
    Adapter::initial(config, &model.linear_modules(), 1).expect("an adapter")
}

fn start(model: &ModelCopy, arguments: &[&str]) -> Shipped {
    let root = text(model.models());
    let server = Shipped::launch(
        model.folder(),
        &[&["--root", root], arguments].concat(),
        |command| {
            command.env_remove("MVP_ADAPTER");
        },
    );
    server.loaded()
}

fn attached(server: &Shipped) -> Value {
    let page = fs::read(golden_page("small_strip_rx.png").path).expect("a page");
    let body: Value = server.post("/extract", file_form(page)).json().expect("JSON");
    body["model_info"]["lora_adapter"].clone()
}

/// Memory of the process that no file backs.
fn anonymous_bytes(server: &Shipped) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", server.child.id())).expect("a process");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .expect("RssAnon");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kib << 10
}

#[test]
fn an_adapter_is_attached_with_its_own_page_size() {
    let model = ModelCopy::new();
    let adapter = adapter(&model);
    let dir = model.models().join("qwen25-vl-nano-medical-lora");
    adapter.write(&dir).expect("written");

    let bare = start(&model, &["--adapter", "none"]);
    let alone = anonymous_bytes(&bare);
    assert_eq!(attached(&bare), Value::Null);
    drop(bare);
    let server = start(&model, &[]);
    let beside = anonymous_bytes(&server).saturating_sub(alone);
    let most = adapter.bytes() * 103 / 100;
    assert!(adapter.bytes() > 80 << 20, "large enough to tell");
    assert!(
        beside > adapter.bytes() / 2 && beside <= most,
        "{beside} bytes for an adapter of {}",
        adapter.bytes()
    );
    assert_eq!(attached(&server), "qwen25-vl-nano-medical-lora");
    assert!(
        server.log().contains("qwen25-vl-nano-medical-lora"),
        "{}",
        server.log()
    );
    drop(server);

    let recommendation = Recommendation {
        recommended: false,
        reason: "accuracy fell".to_owned(),
    };
    recommendation.write(&dir).expect("written");
    let server = start(&model, &[]);
    assert_eq!(attached(&server), Value::Null);
    let log = server.log();
    assert!(
        log.contains("not attached") && log.contains("accuracy fell"),
        "{log}"
    );
    drop(server);
    let server = start(&model, &["--adapter", text(&dir)]);
    assert_eq!(attached(&server), "qwen25-vl-nano-medical-lora");
}
