//! config.json as transformers of several versions save it (tests/fixtures/makers/configs.py): each means what transformers
//! 5.17 reads in it.

use std::fs;
use std::path::Path;

use medical_vision::Error;
use medical_vision::checkpoint::JsonFile;
use medical_vision::processing::{Content, Grid, Message, Role, TextProcessor};
use medical_vision::qwen2_5_vl::{Activation, Config};
use serde_json::{Value, json};

use super::goldens::{check_folder, goldens};
use crate::suite::fixtures;

const VERSIONS: [&str; 5] = ["hub", "4.49.0", "4.51.3", "4.57.1", "5.17.0"];

fn expected() -> Vec<Value> {
    let text = fs::read_to_string(fixtures().join("configs/expected.json")).unwrap();
    let all: Value = serde_json::from_str(&text).unwrap();
    all["configs"].as_array().unwrap().clone()
}

fn read(file: &str) -> Result<Config, Error> {
    let path = fixtures().join("configs").join(file);
    let value: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    Config::from_json(&JsonFile::new(path, value)?)
}

fn activation(activation: Activation) -> &'static str {
    match activation {
        Activation::Silu => "silu",
        Activation::Gelu => "gelu",
        Activation::GeluTanh => "gelu_pytorch_tanh",
    }
}

/// The same shape that the fixture has.
fn meaning(config: &Config) -> Value {
    let (t, v) = (&config.text, &config.vision);
    json!({
        "text": {
            "vocab_size": t.vocab_size, "hidden_size": t.hidden_size, "intermediate_size": t.intermediate_size,
            "num_hidden_layers": t.num_hidden_layers, "num_attention_heads": t.num_attention_heads,
            "num_key_value_heads": t.num_key_value_heads, "hidden_act": activation(t.hidden_act),
            "rms_norm_eps": t.rms_norm_eps
        },
        "vision": {
            "depth": v.depth, "hidden_size": v.hidden_size, "intermediate_size": v.intermediate_size,
            "num_heads": v.num_heads, "hidden_act": activation(v.hidden_act), "in_channels": v.in_channels,
            "patch_size": v.patch_size, "temporal_patch_size": v.temporal_patch_size,
            "spatial_merge_size": v.spatial_merge_size, "window_size": v.window_size,
            "out_hidden_size": v.out_hidden_size, "fullatt_block_indexes": v.fullatt_block_indexes
        },
        "tie_word_embeddings": config.tie_word_embeddings,
        "image_token_id": config.image_token_id
    })
}

#[test]
fn every_version_s_file_means_what_transformers_reads_in_it() {
    let all = expected();
    assert!(all.len() >= 75, "{}", all.len());
    for mut row in all {
        let file = row["file"].as_str().unwrap().to_owned();
        if row["vision"]["out_hidden_size"] != row["text"]["hidden_size"] {
            // Defaults alone do not fit each other: transformers 5.17 reads them, and no page with them.
            let error = read(&file).unwrap_err().to_string();
            assert!(
                error.contains("out_hidden_size") && error.contains("3584"),
                "{error}"
            );
            continue;
        }
        let config = read(&file).unwrap_or_else(|error| panic!("{error}"));
        let rope = row["rope"].take();
        let context = row["text"]
            .as_object_mut()
            .unwrap()
            .remove("max_position_embeddings");
        let row = row.as_object_mut().unwrap();
        row.retain(|key, _| !["rope", "file"].contains(&key.as_str()));
        assert_eq!(meaning(&config), Value::Object(row.clone()), "{file}");
        assert_eq!(json!(config.text.rope.theta), rope["theta"], "{file}");
        assert_eq!(json!(config.text.rope.sections), rope["sections"], "{file}");
        assert_eq!(config.text.rope.yarn.is_some(), rope["type"] == "yarn", "{file}");
        let context = context.and_then(|context| context.as_u64()).unwrap() as usize;
        match &config.text.rope.yarn {
            None => assert_eq!(config.text.max_position_embeddings, context, "{file}"),
            Some(_) => assert!(config.text.max_position_embeddings >= context, "{file}"),
        }
        let factor = rope["attention_factor"].as_f64().unwrap();
        assert!(
            (config.text.rope.attention_factor() - factor).abs() < 1e-12,
            "{file}"
        );
        if let Some(frequencies) = rope["frequencies"].as_array() {
            let head = config.text.head_dim;
            let got = Vec::<f32>::try_from(config.text.rope.inverse_frequencies(head).unwrap()).unwrap();
            assert_eq!(got.len(), frequencies.len(), "{file}");
            for (i, (got, want)) in got.iter().zip(frequencies).enumerate() {
                let want = want.as_f64().unwrap();
                assert!(
                    (f64::from(*got) - want).abs() <= 3e-7 * want,
                    "{file}: frequency {i}: {got} {want}"
                );
            }
        }
    }
}

#[test]
fn yarn_s_context_is_what_it_stretches_to() {
    let context = |file: &str| read(file).unwrap().text.max_position_embeddings;
    assert_eq!(context("hub/7b.json"), 128_000);
    // The card's: 4 times 32,768.
    assert_eq!(context("hub/7b-yarn.json"), 131_072);
    assert_eq!(context("forms/yarn-no-original.json"), 131_072);
    // The text's own length is no less for a small factor.
    assert_eq!(context("forms/yarn-betas.json"), 128_000);
}

/// A folder that each version saved, whole: the same logits and tokens as before it was saved.
#[test]
fn a_folder_of_any_version_computes_the_same() {
    for version in VERSIONS {
        for model in ["untied-flat-sharded", "nested-bf16", "gelu-depth3"] {
            let dir = tempfile::tempdir().unwrap();
            let source = fixtures().join("models").join(model);
            for entry in fs::read_dir(&source).unwrap() {
                let path = entry.unwrap().path();
                fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
            }
            let config = fixtures()
                .join("configs")
                .join(version)
                .join(format!("{model}.json"));
            fs::copy(config, dir.path().join("config.json")).unwrap();
            check_folder(dir.path(), model, "ragged", &goldens(model, "ragged"));
        }
    }
}

/// The text's side of the folder has the same defaults.
#[test]
fn the_text_processor_knows_the_defaults() {
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/qwen25-vl-nano");
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(&nano).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "json" || extension == "jinja")
        {
            fs::copy(&path, dir.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    let path = dir.path().join("config.json");
    let whole: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let message = Message {
        role: Role::User,
        content: vec![Content::Image, Content::Text("Read.".to_owned())],
    };
    let grid = Grid { t: 1, h: 4, w: 6 };
    let encode = || TextProcessor::from_dir(dir.path())?.encode_chat(std::slice::from_ref(&message), &[grid]);
    let full = encode().unwrap();
    for keys in [&["spatial_merge_size"][..], &["spatial_merge_size", "patch_size"]] {
        let mut config = whole.clone();
        for key in keys {
            config["vision_config"].as_object_mut().unwrap().remove(*key);
        }
        fs::write(&path, config.to_string()).unwrap();
        assert_eq!(encode().unwrap(), full);
    }
    // This model's image token has another id than the default.
    let mut config = whole.clone();
    config.as_object_mut().unwrap().remove("image_token_id");
    fs::write(&path, config.to_string()).unwrap();
    let error = encode().unwrap_err().to_string();
    assert!(
        error.contains("image_token_id") && error.contains("do not belong together"),
        "{error}"
    );
}

#[test]
fn what_cannot_be_meant_is_refused_by_its_key() {
    let flat = |change: fn(&mut Value)| {
        let path = fixtures().join("configs/hub/7b.json");
        let mut value: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        change(&mut value);
        match Config::from_json(&JsonFile::new(path, value).unwrap()) {
            Ok(config) => panic!("{config:?}"),
            Err(error) => error.to_string(),
        }
    };
    for (change, words) in [
        (
            (|c| c["num_hidden_layers"] = json!(null)) as fn(&mut Value),
            ["num_hidden_layers", "whole number"],
        ),
        (|c| c["vision_config"] = json!([]), ["vision_config", "object"]),
        (
            |c| c["vision_config"]["depth"] = json!("32"),
            ["vision_config", "depth"],
        ),
        (|c| c["head_dim"] = json!(64), ["head_dim", "not supported"]),
        (
            |c| {
                c["use_sliding_window"] = json!(true);
                // 28 layers, the first 20 of which see everything.
                c["max_window_layers"] = json!(20);
            },
            ["use_sliding_window", "not supported"],
        ),
        (
            |c| c["layer_types"] = json!(["full_attention", "sliding_attention"]),
            ["sliding window", "not supported"],
        ),
        (
            |c| c["rope_scaling"]["type"] = json!("dynamic"),
            ["rope_scaling", "yarn"],
        ),
        (|c| c["rope_scaling"]["type"] = json!(5), ["rope_scaling", "yarn"]),
        (
            |c| c["rope_scaling"] = json!({"type": "yarn"}),
            ["rope_scaling", "\"factor\""],
        ),
        (
            |c| c["rope_scaling"] = json!({"type": "yarn", "factor": -1}),
            ["rope_scaling", "\"factor\""],
        ),
        (
            |c| c["rope_scaling"] = json!({"type": "yarn", "factor": 2, "rope_theta": 1.0}),
            ["rope_scaling", "rope_theta"],
        ),
        (
            |c| c["rope_scaling"] = json!({"full_attention": {"rope_type": "yarn"}}),
            ["rope_scaling", "kind of layer"],
        ),
        (
            |c| c["rope_scaling"] = json!({"type": "yarn", "factor": 2, "attention_factor": "1"}),
            ["rope_scaling", "attention_factor"],
        ),
        (
            |c| c["rope_scaling"] = json!({"type": "yarn", "factor": 2, "partial_rotary_factor": 0.5}),
            ["rope_scaling", "partial_rotary_factor"],
        ),
        (
            |c| c["rope_scaling"]["mrope_section"] = json!([16, 24]),
            ["mrope_section", "three"],
        ),
        (|c| c["num_attention_heads"] = json!(56), ["mrope_section", "32"]),
        (
            |c| c["vision_config"]["rope_parameters"] = json!({"rope_type": "yarn"}),
            ["vision_config", "axial"],
        ),
    ] {
        let error = flat(change);
        assert!(
            words.iter().all(|word| error.contains(word)),
            "{words:?}: {error}"
        );
    }
}
