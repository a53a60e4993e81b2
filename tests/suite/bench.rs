//! `medvision bench` as a user runs it, on the embedded model's shapes.

use std::path::Path;

use medical_vision::records::{self, Speed};
use serde_json::Value;

use super::program::{assert_failed, code, medvision, run, stderr, stdout, text};

/// Small numbers, to keep the run short.
const SHORT: [&str; 9] = [
    "bench",
    "--device",
    "cpu",
    "--image",
    "56x84",
    "--answer-tokens",
    "4",
    "--repeat",
    "2",
];

fn bench(arguments: &[&str]) -> std::process::Output {
    run(&[&SHORT[..], arguments].concat())
}

fn record(path: &Path) -> Speed {
    records::read(path).unwrap()
}

#[test]
fn random_weights_are_measured_and_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("speed.json");
    let flags = ["--shape", "tiny", "--form", "fp4", "--json", text(&path)];
    let more = [
        "--sequences",
        "3",
        "--adapter-rank",
        "4",
        "--profile",
        "--prompt-tokens",
        "20",
    ];
    let output = bench(&[&flags[..], &more].concat());
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let table = stdout(&output);
    for line in [
        "random weights: FP4 (bitsandbytes), computed in FP32 on cpu",
        "page of 56x84, prompt of 20 tokens, 6 of them the page's; medians of 2",
        "load, with making the weights, s",
        "resident memory after loading, MiB",
        "time to first token, s",
        "decode, one sequence, tokens/s",
        "share of the bandwidth limit, %",
        "decode, 3 sequences, tokens/s",
        "answer of 4 tokens, s",
        "with LoRA of rank 4",
        "decode, one token",
    ] {
        assert!(table.contains(line), "{line} is not in:\n{table}");
    }
    assert!(!table.contains("NaN") && !table.contains("inf"), "{table}");

    let found = record(&path);
    assert_eq!((found.what.as_str(), found.model.random_weights), ("speed", true));
    assert_eq!(found.model.weights, "FP4 (bitsandbytes)");
    let settings = &found.settings;
    assert_eq!(
        (
            settings.image_tokens,
            settings.prompt_tokens,
            settings.answer_tokens
        ),
        (6, 20, 4)
    );
    assert_eq!(
        (settings.sequences, settings.adapter_rank, settings.repeat),
        (3, Some(4), 2)
    );
    assert!(
        found.command.starts_with("medvision bench --device cpu"),
        "{}",
        found.command
    );
    let adapter = found.adapter.unwrap();
    // f32 pairs of rank 4 on all seven linear layers of six decoder layers.
    let lora = 4 * 4 * 6 * (4 * (256 + 256) - 2 * 128 + 3 * (256 + 768));
    assert_eq!(
        adapter.weight_bytes_per_token - found.base.weight_bytes_per_token,
        lora
    );
    for speed in [&found.base, &adapter] {
        let first = speed.first_token_seconds;
        assert!(0.0 < first.min && first.min <= first.median && first.median <= first.max);
        assert!(speed.answer_seconds.median > first.min && speed.decode_tokens_per_second.min > 0.0);
        assert!(speed.bandwidth_share_pct > 0.0);
    }
    assert!(found.sequences_tokens_per_second.unwrap().min > 0.0);
    let stages = found.profile.unwrap();
    let names: Vec<&str> = stages.iter().map(|stage| stage.stage.as_str()).collect();
    assert_eq!(
        names,
        ["vision tower", "prefill", "first token", "decode, one token"]
    );
    assert_eq!(stages[3].weight_bytes, found.base.weight_bytes_per_token);
    assert!(found.copy_gb_per_second > 0.0 && found.memory_after_loading_mib.unwrap() > 1.0);
    assert!(found.memory_peak_mib >= found.memory_after_loading_mib);
    let value: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(value["record_version"], 1);
    assert!(value["machine"]["threads"].as_u64().unwrap() >= 1);
}

#[test]
fn a_folder_is_measured_like_its_shapes() {
    let folder = tempfile::tempdir().unwrap();
    let measured = |name: &str, flags: &[&str]| {
        let path = folder.path().join(name);
        let output = bench(&[flags, &["--json", text(&path)]].concat());
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        (record(&path), stdout(&output))
    };
    let (own, table) = measured("folder.json", &["--model", "models/qwen25-vl-nano"]);
    let (random, _) = measured("shape.json", &["--shape", "tiny", "--form", "bf16"]);
    assert_eq!(own.settings, random.settings);
    assert_eq!(own.settings.prompt_tokens, 6 + 65);
    assert_eq!(own.model.weights, random.model.weights);
    assert_eq!(
        own.base.weight_bytes_per_token,
        random.base.weight_bytes_per_token
    );
    assert!(own.model.name == "qwen25-vl-nano" && !own.model.random_weights && own.profile.is_none());
    assert!(
        table.contains("load, s ") && !table.contains("random") && !table.contains("LoRA"),
        "{table}"
    );
}

#[test]
fn text_alone_is_measured_without_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.json");
    let output = run(&[
        "bench",
        "--device",
        "cpu",
        "--shape",
        "tiny",
        "--form",
        "awq",
        "--image",
        "none",
        "--answer-tokens",
        "2",
        "--repeat",
        "1",
        "--profile",
        "--json",
        text(&path),
    ]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(
        stdout(&output).contains("no page, prompt of 65 tokens"),
        "{}",
        stdout(&output)
    );
    let found = record(&path);
    assert_eq!((found.settings.image, found.settings.image_tokens), (None, 0));
    assert_eq!(found.profile.unwrap()[0].stage, "prefill");
}

#[test]
fn wrong_flags_are_refused_before_any_work() {
    for (flags, words) in [
        (&["--shape", "7b", "--model", "X"][..], "cannot be used with"),
        (&["--shape", "8b"], "8b"),
        (&["--form", "nf4", "--model", "X"], "cannot be used with"),
        (&["--form", "nf4"], "--shape"),
        (&["--shape", "7b", "--image", "0x5"], "WIDTHxHEIGHT"),
        (&["--shape", "7b", "--answer-tokens", "0"], "--answer-tokens"),
        (&["--shape", "7b", "--sequences", "0"], "--sequences"),
        (&["--shape", "7b", "--repeat", "0"], "--repeat"),
        (&["--shape", "7b", "--adapter-rank", "0"], "--adapter-rank"),
        // The page alone has 1,248.
        (
            &["--shape", "7b", "--prompt-tokens", "1248"],
            "the page alone has 1248",
        ),
        (&["--shape", "tiny", "--answer-tokens", "4000"], "context 4096"),
    ] {
        let flags = [&["bench", "--device", "cpu"][..], flags].concat();
        let output = medvision(&flags).output().unwrap();
        assert_eq!(code(&output), 2, "{flags:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(words), "{flags:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "");
    }
    let output = run(&["bench", "--shape", "7b", "--json", "no/such/folder/x.json"]);
    assert_failed(&output, &["no/such/folder", "--json"]);
}
