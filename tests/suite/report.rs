//! `generate_report` as a user runs it: records of the original project; missing, unreadable, newer and unknown ones.

use std::fs;
use std::path::Path;
use std::process::Output;

use medical_vision::records::{self, FinalReport, paths};
use serde_json::{Value, json};

use super::records::original;
use crate::suite::program::without_variables;

/// A project folder with records of the original project.
fn project() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    copy(&original(), folder.path());
    folder
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn generate(root: &Path) -> Output {
    let mut command = without_variables(env!("CARGO_BIN_EXE_generate_report"));
    command.arg("--root").arg(root).output().unwrap()
}

/// Runs it and expects exit code `code`; returns the report and standard error.
fn report(root: &Path, code: i32) -> (Value, String) {
    let output = generate(root);
    let messages = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{messages}");
    let path = root.join(paths::FINAL_REPORT);
    // It deserializes.
    records::read::<FinalReport>(&path).unwrap();
    (
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap(),
        messages,
    )
}

fn text(root: &Path, name: &str) -> String {
    fs::read_to_string(root.join(name)).unwrap()
}

fn replace(root: &Path, file: &str, pointer: &str, value: Value) {
    let path = root.join(file);
    let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    record.pointer_mut(parent).unwrap()[key] = value;
    fs::write(&path, record.to_string()).unwrap();
}

/// Every figure that the original project's records contain, taken by hand from its README and records.
fn figures_of_the_original() -> Value {
    json!({
        "environment": {
            "gpu": "NVIDIA GB10", "gpu_count": 1, "total_vram_gb": 119.7, "cuda_version": "12.8",
            "pytorch_version": "2.11.0.dev20260206+cu128", "python_version": "3.10.19",
            "platform": "Linux-6.11.0-1016-nvidia-aarch64-with-glibc2.39",
        },
        "model": {
            "name": "Qwen/Qwen2.5-VL-7B-Instruct", "source": "https://huggingface.co/Qwen/Qwen2.5-VL-7B-Instruct",
            "size_gb": 15.46, "download_time_seconds": 1384.27, "total_parameters": 4692876288u64,
        },
        "quantization": {
            "method": "bitsandbytes_NF4", "details": "4 bit, nf4, double quantization, computed in bfloat16",
            "awq_attempted": true,
            "awq_failed_reason": "cannot import name 'PytorchGELUTanh' from 'transformers.activations'",
            "fallback": "bitsandbytes_NF4",
        },
        "fine_tuning": {
            "method": "QLoRA", "lora_rank": 64, "lora_alpha": 128.0, "trainable_params": 190357504,
            "trainable_pct": 3.8982, "training_samples": 1000, "epochs": 2.0, "effective_batch_size": 16,
            "learning_rate": 0.0002, "training_time_minutes": 128.4, "final_loss": 0.7312,
            // The original project's records have no initial loss.
            "initial_loss": null, "loss_reduction_pct": null,
        },
        "performance_comparison": {
            "fp16_baseline": {
                "vram_post_load_mb": 15820.1, "load_time_seconds": 71.52, "avg_latency_seconds": 31.1,
                "min_latency_seconds": 28.4127, "max_latency_seconds": 33.6942,
            },
            "nf4_quantized": {
                "vram_post_load_mb": 5664.02, "load_time_seconds": 38.94, "avg_latency_seconds": 15.24,
                "min_latency_seconds": 13.9021, "max_latency_seconds": 16.5977,
            },
            "finetuned_nf4_lora": {
                "vram_post_load_mb": 11318.44, "load_time_seconds": 52.1, "avg_latency_seconds": 24.8,
                "min_latency_seconds": 22.1038, "max_latency_seconds": 27.0166,
            },
            "improvements": {
                "vram_reduction_nf4_vs_fp16_pct": 64.2, "latency_reduction_nf4_vs_fp16_pct": 51.0,
                "vram_reduction_ft_vs_fp16_pct": 28.46, "latency_reduction_ft_vs_fp16_pct": 20.26,
            },
        },
        "medical_accuracy": {
            "test_cases": 5,
            "test_types": [
                "eval_medication_reconciliation", "eval_icu_flowsheet", "eval_cardiology_consult",
                "eval_complex_lab_panel", "eval_surgical_op_note",
            ],
            "base_nf4": {
                "avg_term_accuracy_pct": 86.0, "avg_value_accuracy_pct": 81.6, "avg_combined_accuracy_pct": 83.49,
            },
            "finetuned": {
                "avg_term_accuracy_pct": 75.0, "avg_value_accuracy_pct": 72.0, "avg_combined_accuracy_pct": 73.7,
            },
            "accuracy_delta": {
                "term_accuracy_delta_pct": -11.0, "value_accuracy_delta_pct": -9.6,
                "combined_accuracy_delta_pct": -9.79,
            },
        },
        "datasets": {
            "pathvqa_formatted": 431, "mtsamples_formatted": 4465, "total_formatted": 4896, "train_split": 3916,
            "val_split": 490, "test_split": 490, "split_ratio": "80/10/10",
        },
        "api_deployment": {
            "endpoints": [
                "GET /benchmark", "GET /health", "GET /health/live", "GET /health/ready", "GET /metrics", "GET /v1/models", "GET /v1/models/{id}", "POST /analyze", "POST /extract",
                "POST /v1/chat/completions",
            ],
            "tests_passed": null, "tests_total": null,
        },
    })
}

/// Everything in `expected` is in `found`.
fn holds(expected: &Value, found: &Value, at: &str) {
    match expected {
        Value::Object(expected) => expected
            .iter()
            .for_each(|(key, value)| holds(value, &found[key], &format!("{at}.{key}"))),
        expected => assert_eq!(expected, found, "{at}"),
    }
}

#[test]
fn records_of_the_original_project_are_reported_completely() {
    let project = project();
    let root = project.path();
    let (report, _) = report(root, 0);
    holds(&figures_of_the_original(), &report, "report");
    let sources = &report["report_metadata"]["source_files"];
    assert_eq!(sources.as_array().unwrap().len(), 11, "{sources}");
    assert_eq!(report["environment"]["key_packages"]["bitsandbytes"], "0.49.1");

    let markdown = text(root, "docs/BENCHMARK_REPORT.md");
    for figure in [
        "| GPU memory after loading, MiB | 15,820.1 | 5,664.0 | 11,318.4 |",
        "| Latency, mean, s | 31.10 | 15.24 | 24.80 |",
        "| NF4 | 64.2 % | 51.0 % | n/a | n/a |",
        "| Evaluation cases, base NF4 | 86.00 % | 81.60 % | 83.49 % |",
        "| Evaluation cases, NF4 + LoRA | 75.00 % | 72.00 % | 73.70 % |",
        "| Initial loss | n/a |",
        "| patient_diagnosis.png | 28.41 | 13.90 | 22.10 |",
        "failed: cannot import name 'PytorchGELUTanh'",
        "pubmedvision could not be downloaded: no image column",
        "![Memory of each model, MiB](plots/memory.svg)",
    ] {
        assert!(markdown.contains(figure), "{figure} is missing in\n{markdown}");
    }
    // Answers are document text and must not be in a report.
    let html = text(root, "docs/BENCHMARK_REPORT.html");
    for page in [&markdown, &html] {
        assert!(!page.contains("essential hypertension"), "{page}");
    }
}

#[test]
fn plots_are_written_and_embedded_in_the_html_page() {
    let project = project();
    let root = project.path();
    replace(
        root,
        paths::TRAINING_METRICS,
        "/loss_history",
        json!([{"step": 1, "loss": 2.0}, {"step": 10, "loss": 1.0}, {"step": 20, "loss": 0.5}]),
    );
    let (first, _) = report(root, 0);
    assert_eq!(first["fine_tuning"]["initial_loss"], 2.0);
    assert_eq!(first["fine_tuning"]["loss_reduction_pct"], 63.44);
    let html = text(root, "docs/BENCHMARK_REPORT.html");
    for name in ["memory", "latency", "accuracy", "loss"] {
        let svg = text(root, &format!("docs/plots/{name}.svg"));
        assert!(
            svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"),
            "{name}"
        );
        assert!(html.contains(svg.trim()), "{name} is not in the page");
    }
    // Self-contained: nothing is loaded from anywhere.
    for outside in ["src=", "href=", "url(", "<script", "@import"] {
        assert!(!html.contains(outside), "{outside}");
    }
    // A plot without figures is removed.
    fs::remove_file(root.join(paths::TRAINING_METRICS)).unwrap();
    report(root, 0);
    assert!(!root.join("docs/plots/loss.svg").exists());
    assert!(root.join("docs/plots/memory.svg").exists());
    assert!(!text(root, "docs/BENCHMARK_REPORT.md").contains("loss.svg"));
}

/// Numbers and texts that remain without any record.
fn figures(value: &Value, at: String, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => map
            .iter()
            .for_each(|(key, value)| figures(value, format!("{at}/{key}"), found)),
        Value::Array(list) => list.iter().for_each(|value| figures(value, at.clone(), found)),
        Value::Null => {}
        value => found.push(format!("{at}: {value}")),
    }
}

#[test]
fn without_records_every_figure_is_null() {
    let folder = tempfile::tempdir().unwrap();
    let (mut report, _) = report(folder.path(), 0);
    let report = report.as_object_mut().unwrap();
    assert_eq!(
        report["report_metadata"]["missing_files"]
            .as_array()
            .unwrap()
            .len(),
        11
    );
    for key in ["report_metadata", "record_version"] {
        report.remove(key).unwrap();
    }
    let mut found = Vec::new();
    figures(&Value::Object(report.clone()), String::new(), &mut found);
    found.retain(|figure| !figure.starts_with("/api_deployment"));
    assert_eq!(found, [] as [String; 0]);
    // The original project's keys are present.
    holds_keys(
        &figures_of_the_original(),
        &Value::Object(report.clone()),
        "report",
    );
    assert!(text(folder.path(), "docs/BENCHMARK_REPORT.md").contains("| n/a |"));
}

fn holds_keys(expected: &Value, found: &Value, at: &str) {
    if let Value::Object(expected) = expected {
        for (key, value) in expected {
            let there = found.get(key).unwrap_or_else(|| panic!("{at}.{key} is missing"));
            holds_keys(value, there, &format!("{at}.{key}"));
        }
    }
}

#[test]
fn a_missing_record_affects_only_its_own_figures() {
    let complete = project();
    let (whole, _) = report(complete.path(), 0);
    for (file, pointer) in [
        (paths::ENVIRONMENT, "/environment/gpu"),
        (paths::DOWNLOAD_INFO, "/model/size_gb"),
        (
            paths::BASELINE_FP16,
            "/performance_comparison/fp16_baseline/avg_latency_seconds",
        ),
        (paths::QUANTIZATION_INFO, "/quantization/method"),
        (
            paths::QUANTIZED_INT4,
            "/performance_comparison/nf4_quantized/vram_post_load_mb",
        ),
        (paths::TRAINING_METRICS, "/fine_tuning/lora_rank"),
        (
            paths::EVALUATION_FINETUNED,
            "/medical_accuracy/base_nf4/avg_combined_accuracy_pct",
        ),
        (
            paths::FINETUNED_STANDARD_BENCH,
            "/performance_comparison/finetuned_nf4_lora/load_time_seconds",
        ),
        (paths::DATA_SUMMARY, "/datasets/total_formatted"),
    ] {
        let project = project();
        let root = project.path();
        fs::remove_file(root.join(file)).unwrap();
        let (partial, messages) = report(root, 0);
        assert_eq!(messages, "", "{file}");
        assert!(!whole.pointer(pointer).unwrap().is_null(), "{file}");
        assert!(partial.pointer(pointer).unwrap().is_null(), "{file}");
        let missing = partial["report_metadata"]["missing_files"].as_array().unwrap();
        assert!(missing.contains(&json!(file)), "{missing:?}");
        let unaffected = if file == paths::DATA_SUMMARY {
            "/fine_tuning"
        } else {
            "/datasets"
        };
        assert_eq!(whole.pointer(unaffected), partial.pointer(unaffected), "{file}");
    }
}

#[test]
fn a_comparison_needs_both_sides() {
    let project = project();
    let root = project.path();
    fs::remove_file(root.join(paths::BASELINE_FP16)).unwrap();
    let (report, _) = report(root, 0);
    let improvements = &report["performance_comparison"]["improvements"];
    let mut found = Vec::new();
    figures(improvements, String::new(), &mut found);
    assert_eq!(found, [] as [String; 0]);
    // The name is known from the download.
    assert_eq!(report["model"]["name"], "Qwen/Qwen2.5-VL-7B-Instruct");
}

#[test]
fn an_unreadable_record_is_named_and_the_others_are_reported() {
    for (content, reason) in [
        ("{\"model_name\": \"x\"", "not valid JSON"),
        ("", "not valid JSON"),
        ("[]", "invalid type: sequence"),
        ("{}", "missing field `model_name`"),
        ("{\"record_version\": 2}", "a newer program wrote it"),
    ] {
        let project = project();
        let root = project.path();
        fs::write(root.join(paths::BASELINE_FP16), content).unwrap();
        let (report, messages) = report(root, 1);
        assert!(
            messages.contains(&format!("error: {}: ", paths::BASELINE_FP16)) && messages.contains(reason),
            "{messages}"
        );
        assert!(report["performance_comparison"]["fp16_baseline"]["avg_latency_seconds"].is_null());
        assert_eq!(
            report["performance_comparison"]["nf4_quantized"]["avg_latency_seconds"],
            15.24
        );
        let unreadable = &report["report_metadata"]["unreadable_files"][0];
        assert_eq!(unreadable["file"], paths::BASELINE_FP16);
        assert!(unreadable["reason"].as_str().unwrap().contains(reason));
        assert!(text(root, "docs/BENCHMARK_REPORT.md").contains("baseline_fp16.json: not used: "));
    }
}

#[test]
fn unknown_records_and_keys_are_ignored() {
    let project = project();
    let root = project.path();
    fs::write(root.join("benchmarks/my_own.json"), "no JSON at all").unwrap();
    replace(root, paths::BASELINE_FP16, "/vram/driver", json!({"a": [1]}));
    let (report, _) = report(root, 0);
    assert_eq!(
        report["report_metadata"]["other_files"],
        json!(["benchmarks/my_own.json"])
    );
    holds(&figures_of_the_original(), &report, "report");
}

#[test]
fn benchmarks_of_different_models_are_not_compared() {
    let project = project();
    let root = project.path();
    replace(
        root,
        paths::QUANTIZED_INT4,
        "/model_name",
        json!("qwen25-vl-nano-bnb-nf4"),
    );
    let (report, _) = report(root, 0);
    let improvements = &report["performance_comparison"]["improvements"];
    assert!(improvements["vram_reduction_nf4_vs_fp16_pct"].is_null());
    assert_eq!(improvements["vram_reduction_ft_vs_fp16_pct"], 28.46);
    assert!(text(root, "docs/BENCHMARK_REPORT.md").contains("NF4 was measured on qwen25-vl-nano-bnb-nf4"),);
}

#[test]
fn hostile_text_in_a_record_is_escaped() {
    let project = project();
    let root = project.path();
    let hostile = "<script>alert(1)</script> | x\n## Heading";
    replace(
        root,
        paths::QUANTIZATION_INFO,
        "/awq_attempt/error",
        json!(hostile),
    );
    replace(
        root,
        paths::QUANTIZED_INT4,
        "/inference_results/0/image",
        json!(hostile),
    );
    let (report, _) = report(root, 0);
    assert_eq!(report["quantization"]["awq_failed_reason"], hostile);
    for file in [
        "docs/BENCHMARK_REPORT.md",
        "docs/BENCHMARK_REPORT.html",
        "docs/plots/latency.svg",
    ] {
        let page = text(root, file);
        assert!(!page.contains("<script"), "{file}");
        assert!(page.lines().all(|line| line != "## Heading"), "{file}");
    }
}

#[test]
fn a_failed_write_keeps_the_old_report() {
    let project = project();
    let root = project.path();
    report(root, 0);
    let old = text(root, paths::FINAL_REPORT);
    fs::remove_file(root.join("docs/BENCHMARK_REPORT.md")).unwrap();
    fs::create_dir(root.join("docs/BENCHMARK_REPORT.md")).unwrap();
    let output = generate(root);
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        message.contains("BENCHMARK_REPORT.md: not a regular file"),
        "{message}"
    );
    assert_eq!(text(root, paths::FINAL_REPORT), old);
}
