//! Integer products by way of the CPU: the whole reading path with the detour and without it.

use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;

use medical_vision::blackwell_compat::{Capability, Reductions, detours};
use medical_vision::engine::{LoadOptions, ReadRequest, Reader};
use medical_vision::processing::{DecodeLimits, decode};
use serde_json::{Value, json};

use super::program::{TRAINED_PROMPT, golden_page, run, stdout};

#[test]
fn a_page_is_read_alike_with_the_detour_and_without() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/qwen25-vl-nano");
    let page = golden_page("small_strip_rx.png");
    let image = decode(&std::fs::read(&page.path).unwrap(), &DecodeLimits::default()).unwrap();
    let read = |capability: Option<Capability>| {
        let reductions = capability.map(|capability| Reductions::with_capability(Some(capability)));
        let options = LoadOptions {
            reductions,
            ..LoadOptions::default()
        };
        let reader = Reader::load(&model, &options).unwrap();
        let before = detours();
        let mut request = ReadRequest::page(TRAINED_PROMPT, image.clone());
        request.overrides.max_new_tokens = Some(640);
        let reading = reader.read(&request, &mut |_| ControlFlow::Continue(())).unwrap();
        (reading, detours() - before)
    };
    let (plain, none) = read(None);
    assert_eq!((plain.text.as_str(), none), (page.text.as_str(), 0));
    let (hopper, none) = read(Some((9, 0)));
    let (blackwell, taken) = read(Some((12, 1)));
    assert_eq!(none, 0);
    // The vision tower's sizes and the language model's positions: each kind of page once.
    assert!(taken >= 2, "{taken}");
    assert_eq!(hopper.tokens, plain.tokens);
    assert_eq!(blackwell.tokens, plain.tokens);
    assert_eq!(blackwell.prompt_tokens, plain.prompt_tokens);
}

/// A machine without a GPU has nothing to try; the key is there all the same.
#[test]
fn records_tell_of_products() {
    let none = json!({"capability": null, "needed": false, "in_use": false, "checked": false});
    let doctor = run(&["doctor", "--json", "--device", "cpu"]);
    let report: Value = serde_json::from_str(&stdout(&doctor)).unwrap();
    let gpus = report["accelerators"]["gpus"].as_array().unwrap();
    let root = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_validate_environment"))
        .args(["--device", "cpu", "--root"])
        .arg(root.path())
        .output()
        .unwrap();
    assert!(output.status.code().is_some());
    let record = std::fs::read(root.path().join("benchmarks/environment.json")).unwrap();
    let record: Value = serde_json::from_slice(&record).unwrap();
    for found in [&report["blackwell_compat"], &record["blackwell_compat"]] {
        match gpus.first() {
            None => assert_eq!(found, &none),
            Some(gpu) => {
                assert_eq!(found["capability"], gpu["compute_capability"]);
                assert_eq!(found["checked"], gpu["works"]);
            }
        }
    }
}
