//! Tokenizer folders that are incomplete or do not fit together.

use medical_vision::processing::TextProcessor;
use serde_json::{Value, json};

use super::{edit, nano_copy};

/// Changes one file of a good folder; the error must hold all of `expected`.
#[track_caller]
fn refused(name: &str, change: impl FnOnce(&mut Value), expected: &[&str]) {
    let dir = nano_copy();
    edit(dir.path(), name, change);
    let error = TextProcessor::from_dir(dir.path())
        .err()
        .expect("the folder must be refused")
        .to_string();
    for part in expected {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
}

#[test]
fn a_missing_or_broken_file_is_named() {
    for name in ["tokenizer.json", "config.json"] {
        let dir = nano_copy();
        std::fs::remove_file(dir.path().join(name)).unwrap();
        let error = TextProcessor::from_dir(dir.path()).err().unwrap().to_string();
        assert!(error.contains(name) && error.contains("no such file"), "{error}");
        for bytes in [&b"{\"version\": "[..], b"", b"\xff\xfe", b"[]", b"{}"] {
            std::fs::write(dir.path().join(name), bytes).unwrap();
            let error = TextProcessor::from_dir(dir.path()).err().unwrap().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}

#[test]
fn a_tokenizer_without_a_needed_token_is_refused() {
    for token in [
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
    ] {
        refused(
            "tokenizer.json",
            |tokenizer| {
                tokenizer["added_tokens"]
                    .as_array_mut()
                    .unwrap()
                    .retain(|t| t["content"] != token)
            },
            &["tokenizer.json", token, "not among its added_tokens"],
        );
    }
    refused(
        "tokenizer_config.json",
        |config| config["eos_token"] = json!({"content": "<|eot|>"}),
        &["tokenizer.json", "<|eot|>"],
    );
}

#[test]
fn ids_must_be_those_of_the_config() {
    for key in ["image_token_id", "vision_start_token_id", "vision_end_token_id"] {
        refused(
            "config.json",
            |config| config[key] = 5.into(),
            &["tokenizer.json", key, "do not belong together"],
        );
        refused(
            "config.json",
            |config| config[key] = "x".into(),
            &["tokenizer.json", key],
        );
    }
    refused(
        "config.json",
        |config| drop(config.as_object_mut().unwrap().remove("image_token_id")),
        // The default, 151655, is another than this tokenizer's.
        &["tokenizer.json", "image_token_id", "do not belong together"],
    );
    for merge in [json!(0), json!(null), json!("2"), json!(-2), json!(1_u64 << 40)] {
        refused(
            "config.json",
            |config| config["vision_config"]["spatial_merge_size"] = merge,
            &["config.json", "spatial_merge_size"],
        );
    }
}

#[test]
fn tokenizers_of_another_kind_are_refused() {
    refused(
        "tokenizer.json",
        |t| {
            t["decoder"] =
                json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true})
        },
        &["tokenizer.json", "ByteLevel"],
    );
    refused(
        "tokenizer.json",
        |t| t["added_tokens"][3]["lstrip"] = true.into(),
        &["tokenizer.json", "lstrip"],
    );
    refused(
        "tokenizer.json",
        |t| t["model"]["vocab"]["!"] = 4_000_000_000_u32.into(),
        &["tokenizer.json", "4000000000"],
    );
    refused(
        "tokenizer.json",
        |t| t["model"] = json!({"type": "Nonsense"}),
        &["tokenizer.json"],
    );
}

/// A normalizer can make a text any length before a token is made of it.
#[test]
fn normalizers_other_than_nfc_are_refused() {
    let set = |normalizer: Value| move |tokenizer: &mut Value| tokenizer["normalizer"] = normalizer;
    for normalizer in [
        json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(1000)}),
        json!({"type": "Prepend", "prepend": "x"}),
        json!({"type": "NFKD"}),
        json!({"type": "NFD"}),
        json!({"type": "Lowercase"}),
        json!({"type": "ByteLevel"}),
        json!({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Replace", "pattern": {"Regex": ""}, "content": "xx"}]}),
    ] {
        refused(
            "tokenizer.json",
            set(normalizer),
            &["tokenizer.json", "normalizer", "NFC"],
        );
    }
    for normalizer in [
        Value::Null,
        json!({"type": "NFC"}),
        json!({"type": "Sequence", "normalizers": [{"type": "NFC"}]}),
    ] {
        let dir = nano_copy();
        edit(dir.path(), "tokenizer.json", set(normalizer));
        let processor = TextProcessor::from_dir(dir.path()).unwrap();
        let composed = processor.encode_plain("\u{e9}").unwrap();
        assert_eq!(processor.encode_plain("e\u{301}").unwrap(), composed);
    }
}
