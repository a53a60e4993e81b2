//! `benchmark_baseline` and `benchmark_quantized` as a user runs them, on the embedded model.

use std::fs;
use std::path::Path;
use std::process::Output;

use crate::suite::program::without_variables;
use medical_vision::lora::{Adapter, LoraConfig};
use medical_vision::qwen2_5_vl::Config;
use medical_vision::records::{self, Benchmark, GpuMemory, paths};
use serde_json::{Value, json};

/// A binary in the project's folder `root`, on the embedded model, without the caller's `MVP_*` variables.
fn run(binary: &str, root: &Path, arguments: &[&str]) -> Output {
    let mut command = without_variables(binary);
    command
        .args(["--device", "cpu", "--root"])
        .arg(root)
        .args(arguments)
        .output()
        .unwrap()
}

fn baseline(root: &Path, arguments: &[&str]) -> Output {
    run(env!("CARGO_BIN_EXE_benchmark_baseline"), root, arguments)
}

fn quantized(root: &Path, arguments: &[&str]) -> Output {
    run(env!("CARGO_BIN_EXE_benchmark_quantized"), root, arguments)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A set of two short documents, to keep the run short.
fn documents(folder: &Path) -> String {
    let document = |name: &str, line: &str| {
        json!({
            "id": name, "filename": format!("{name}.png"), "title": "NOTE", "content": [line],
            "prompt": "Extract all medical terms, diagnoses, and clinical findings from this image.",
            "expected_terms": ["hypertension"], "expected_values": ["148/92"],
        })
    };
    let set = json!({"documents": [
        document("first", "Essential hypertension, BP 148/92 mmHg"), document("second", "No findings."),
    ]});
    let path = folder.join("documents.json");
    fs::write(&path, set.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn the_baseline_and_what_quantization_changes() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let set = documents(root);
    let flags = ["--documents", &set, "--max-new-tokens", "24"];
    let output = baseline(root, &flags);
    let messages = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{messages}");
    assert!(messages.contains("qwen25-vl-nano"), "{messages}");
    let printed = text(&output.stdout);
    assert!(
        printed.contains("first.png") && printed.contains("baseline_fp16.json"),
        "{printed}"
    );

    let record: Benchmark = records::read(&root.join(paths::BASELINE_FP16)).unwrap();
    assert_eq!(record.model_name, "qwen25-vl-nano");
    assert_eq!(record.precision, "FP16");
    assert_eq!(record.quantization_method, None);
    // The original project's report divides by these. On a CPU they are resident memory and marked as such.
    let memory = |memory: &Option<GpuMemory>| memory.as_ref().unwrap().in_process().unwrap().clone();
    let (before, loaded, peak) = (
        memory(&record.vram.pre_load_mb),
        memory(&record.vram.post_load_mb),
        memory(&record.vram.peak_mb),
    );
    assert!(before.allocated_mb > 1.0 && loaded.allocated_mb > before.allocated_mb);
    assert!(peak.max_allocated_mb >= loaded.allocated_mb);
    assert!(
        printed.contains("resident memory, MiB: ") && !printed.contains("GPU memory"),
        "{printed}"
    );
    let results = &record.inference_results;
    assert_eq!(results.len(), 2);
    assert!(
        results[0].response.contains("hypertension"),
        "the page was not read"
    );
    for result in results {
        assert!(result.latency_seconds >= result.time_to_first_token_seconds.unwrap());
        assert!((1..=24).contains(&result.completion_tokens.unwrap()));
        assert!(result.tokens_per_second.unwrap() > 0.0 && result.prompt_tokens.unwrap() > 100);
        assert_eq!(result.accuracy.as_ref().unwrap().terms_total, 1);
    }
    assert_eq!(results[0].accuracy.as_ref().unwrap().terms_found, 1);
    assert_eq!(results[1].accuracy.as_ref().unwrap().terms_found, 0);
    let latency = record.latency_stats.unwrap();
    assert!(latency.min_seconds > 0.0 && latency.max_seconds >= latency.avg_seconds);
    let details = record.run.unwrap();
    assert_eq!(
        (details.device.as_deref(), details.compute_dtype.as_deref()),
        (Some("cpu"), Some("FP32"))
    );
    let memory = details.resident_memory.unwrap();
    assert!(memory.post_load_mb > memory.pre_load_mb && memory.peak_mb >= memory.post_load_mb);
    assert!(details.warm_up_seconds.unwrap() > 0.0 && details.weight_file_bytes.unwrap() > 20 << 20);
    assert!(details.time_to_first_token_stats.is_some());
    let load = details.load.unwrap();
    assert!(load.load_average_before.is_some() && load.load_average_after.is_some());
    let (own, others) = (load.own_cpu_share.unwrap(), load.other_cpu_share.unwrap());
    assert!(
        (0.0..=1.0).contains(&own) && (0.0..=1.0).contains(&others),
        "{load:?}"
    );

    with_an_adapter(root, &flags);
    quantized_beside_it(root, &flags);
}

/// The record names the adapter; none is attached by default.
fn with_an_adapter(root: &Path, flags: &[&str]) {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/qwen25-vl-nano");
    let config = LoraConfig {
        r: 2,
        ..LoraConfig::default()
    };
    let adapter = Adapter::initial(config, &Config::from_dir(&model).unwrap().linear_modules(), 1).unwrap();
    let dir = root.join("an-adapter");
    adapter.write(&dir).unwrap();
    let file = root.join(paths::BASELINE_FP16);
    let bare: Benchmark = records::read(&file).unwrap();
    let output = baseline(root, &[flags, &["--adapter", dir.to_str().unwrap()]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let record: Benchmark = records::read(&file).unwrap();
    assert_eq!(record.adapter_path.as_deref(), dir.to_str());
    assert_eq!(bare.adapter_path, None);
    let responses = |record: &Benchmark| -> Vec<String> {
        record
            .inference_results
            .iter()
            .map(|result| result.response.clone())
            .collect()
    };
    assert_eq!(
        responses(&record),
        responses(&bare),
        "a new adapter changes nothing"
    );
    records::write(&file, &bare).unwrap();
}

fn quantized_beside_it(root: &Path, flags: &[&str]) {
    let absent = quantized(root, flags);
    assert_eq!(absent.status.code(), Some(1));
    let message = text(&absent.stderr);
    assert!(
        message.contains("models/qwen25-vl-nano-bnb-nf4: no such folder; create it with: quantize_base"),
        "{message}"
    );

    let made = run(env!("CARGO_BIN_EXE_quantize_base"), root, &["--method", "nf4"]);
    assert_eq!(made.status.code(), Some(0), "{}", text(&made.stderr));
    let output = quantized(root, &[flags, &["--no-warm-up"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let printed = text(&output.stdout);
    for row in [
        "weight files, MiB",
        "latency, mean, s",
        "terms and values read, %",
    ] {
        let line = printed.lines().find(|line| line.starts_with(row));
        let line = line.unwrap_or_else(|| panic!("{row} is missing in {printed}"));
        assert!(!line.contains("n/a"), "{line}");
    }
    let record: Benchmark = records::read(&root.join(paths::QUANTIZED_INT4)).unwrap();
    assert_eq!(record.model_name, "qwen25-vl-nano-bnb-nf4");
    assert_eq!(record.precision, "NF4 (bitsandbytes)");
    assert_eq!(record.quantization_method.as_deref(), Some("bitsandbytes_NF4"));
    assert_eq!(record.inference_results.len(), 2);
    assert_eq!(record.run.unwrap().warm_up_seconds, None);

    // Both are in the report.
    let output = run(env!("CARGO_BIN_EXE_generate_report"), root, &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&fs::read(root.join(paths::FINAL_REPORT)).unwrap()).unwrap();
    let improvements = &report["performance_comparison"]["improvements"];
    assert!(
        improvements["weight_file_reduction_nf4_vs_fp16_pct"]
            .as_f64()
            .unwrap()
            > 0.0
    );
    assert!(improvements["latency_reduction_nf4_vs_fp16_pct"].is_number());
    // Resident memory is shown under its own name.
    assert!(improvements["vram_reduction_nf4_vs_fp16_pct"].is_number());
    assert_eq!(
        report["performance_comparison"]["nf4_quantized"]["memory_kind"],
        "resident"
    );
    let page = fs::read_to_string(root.join("docs/BENCHMARK_REPORT.md")).unwrap();
    let row = |name: &str| {
        page.lines()
            .find(|line| line.starts_with(&format!("| {name}")))
            .unwrap()
    };
    assert!(
        !row("GPU memory after loading, MiB").contains(|c: char| c.is_ascii_digit()),
        "{page}"
    );
    assert!(row("Resident memory after loading, MiB").contains(|c: char| c.is_ascii_digit()));
    assert!(page.contains("resident memory, not GPU memory"), "{page}");
}

#[test]
fn an_unreadable_baseline_or_document_set_fails_early() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let set = root.join("documents.json");
    fs::write(&set, "{\"documents\": []}").unwrap();
    let output = baseline(root, &["--documents", set.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("\"documents\" is empty"));
    assert!(!root.join(paths::BASELINE_FP16).exists());

    let nf4 = root.join("models/qwen25-vl-nano-bnb-nf4");
    fs::create_dir_all(&nf4).unwrap();
    fs::create_dir(root.join("benchmarks")).unwrap();
    fs::write(root.join(paths::BASELINE_FP16), "{\"record_version\": 9}").unwrap();
    let output = quantized(root, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("a newer program wrote it"));
    assert!(!root.join(paths::QUANTIZED_INT4).exists());
    assert_eq!(quantized(root, &["--method", "int8"]).status.code(), Some(2));
}
