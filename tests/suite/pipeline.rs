//! `medvision pipeline` as a user runs it, on the embedded model and without network.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use medical_vision::records::{self, paths};
use serde_json::{Value, json};

/// The pipeline on the project `root`, with no variables of the caller but these: short answers to one short document.
fn pipeline(root: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_medvision"));
    for (name, _) in std::env::vars_os() {
        if ["MVP_", "HF_"]
            .iter()
            .any(|prefix| name.as_encoded_bytes().starts_with(prefix.as_bytes()))
        {
            command.env_remove(name);
        }
    }
    let documents = root.join("documents.json");
    let document = json!({
        "id": "note", "filename": "note.png", "title": "NOTE", "content": ["Essential hypertension, BP 148/92 mmHg"],
        "prompt": "Extract all medical terms, diagnoses, and clinical findings from this image.",
        "expected_terms": ["hypertension"], "expected_values": ["148/92"],
    });
    if !documents.exists() {
        fs::write(&documents, json!({"documents": [document]}).to_string()).unwrap();
    }
    command
        .args(["pipeline", "--device", "cpu", "--offline", "--root"])
        .arg(root)
        .args(arguments)
        .env("MVP_DOCUMENTS", documents)
        .env("MVP_MAX_NEW_TOKENS", "24")
        .env("MVP_NO_WARM_UP", "1")
        .env("MVP_LIMIT", "2")
        .env("MVP_CALIBRATION_PAGES", "1")
        .env("MVP_CALIBRATION_ROWS", "96")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run(root: &Path, arguments: &[&str]) -> Output {
    pipeline(root, arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// How each phase ended, as the last lines of standard output say.
fn ended(output: &Output, phase: &str) -> String {
    let printed = text(&output.stdout);
    let line = printed
        .lines()
        .rev()
        .find(|line| line.starts_with(&format!("{phase} ")))
        .unwrap_or_else(|| panic!("{phase} is missing in {printed}\n{}", text(&output.stderr)));
    line[24..38].trim().to_owned()
}

fn record(root: &Path, file: &str) -> Value {
    serde_json::from_slice(&fs::read(root.join(file)).unwrap()).unwrap()
}

/// The whole chain once; then again with nothing to do; then with one output gone and one input changed.
#[test]
fn the_whole_chain_without_network() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    // Evaluating writes beside the adapter: a copy is evaluated.
    let adapter = root.join("models/qwen25-vl-nano-medical-lora");
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/qwen25-vl-nano-medical-lora");
    fs::create_dir_all(&adapter).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(shipped.join(file), adapter.join(file)).unwrap();
    }
    let output = run(root, &["--to", "report"]);
    let messages = text(&output.stderr);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{messages}\n{}",
        text(&output.stdout)
    );
    for said in [
        "using the small model that ships with the program",
        "using a few synthetic reports instead of the datasets",
        "[8/10] finetune_lora: skipped: an adapter that was not trained here",
    ] {
        assert!(messages.contains(said), "{said} is missing in {messages}");
    }
    for (phase, how) in [
        ("validate_environment", "done"),
        ("download_model", "nothing to do"),
        ("benchmark_baseline", "done"),
        ("quantize_base", "done"),
        ("benchmark_quantized", "done"),
        ("download_datasets", "done"),
        ("prepare_training_data", "done"),
        ("finetune_lora", "nothing to do"),
        ("evaluate_finetuned", "done"),
        ("generate_report", "done"),
    ] {
        assert_eq!(ended(&output, phase), how, "{phase}");
    }
    let report = record(root, paths::FINAL_REPORT);
    for figure in [
        "/environment/platform",
        "/model/name",
        "/model/size_gb",
        "/model/total_parameters",
        "/quantization/method",
        "/performance_comparison/fp16_baseline/avg_latency_seconds",
        "/performance_comparison/nf4_quantized/load_time_seconds",
        "/performance_comparison/improvements/latency_reduction_nf4_vs_fp16_pct",
        "/performance_comparison/improvements/weight_file_reduction_nf4_vs_fp16_pct",
        "/medical_accuracy/test_documents/nf4_quantized/avg_combined_accuracy_pct",
        "/medical_accuracy/test_documents/finetuned_nf4_lora/avg_combined_accuracy_pct",
        "/datasets/mtsamples_formatted",
        "/datasets/train_split",
    ] {
        let found = report.pointer(figure);
        assert!(found.is_some_and(|found| !found.is_null()), "{figure}: {found:?}");
    }
    assert_eq!(report["report_metadata"]["unreadable_files"], json!([]));
    let notes = report["report_metadata"]["notes"].to_string();
    assert!(notes.contains("synthetic reports"), "{notes}");

    skips_what_is_up_to_date(root);
    trains_as_long_as_it_is_told_to(root);
}

fn trains_as_long_as_it_is_told_to(root: &Path) {
    let output = pipeline(root, &["--from", "finetune_lora", "--to", "finetune_lora"])
        .envs([
            ("MVP_MAX_STEPS", "1"),
            ("MVP_BATCH_SIZE", "1"),
            ("MVP_GRAD_ACCUM_STEPS", "1"),
            ("MVP_MAX_VAL_SAMPLES", "0"),
        ])
        .output()
        .unwrap();
    assert_eq!(
        ended(&output, "finetune_lora"),
        "done",
        "{}",
        text(&output.stderr)
    );
    assert!(record(root, paths::TRAINING_METRICS)["final_loss"].is_f64());
    let weights =
        |folder: &str| fs::read(root.join("models").join(folder).join("adapter_model.safetensors")).unwrap();
    let (new, kept) = (
        weights("qwen25-vl-nano-medical-lora"),
        weights("qwen25-vl-nano-medical-lora.previous"),
    );
    assert!(new.len() != kept.len(), "the adapter that was there is kept");
}

#[test]
fn a_training_that_takes_hours_is_excluded_unless_it_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("models/other-base");
    fs::create_dir_all(&other).unwrap();
    let arguments = ["--from", "finetune_lora", "--to", "finetune_lora", "--model"];
    let output = pipeline(folder.path(), &arguments).arg(&other).output().unwrap();
    assert_eq!(ended(&output, "finetune_lora"), "nothing to do");
    let messages = text(&output.stderr);
    assert!(
        messages.contains("full training takes hours on a CPU"),
        "{messages}"
    );
}

fn skips_what_is_up_to_date(root: &Path) {
    const KEPT: [&str; 5] = [
        "benchmark_baseline",
        "quantize_base",
        "benchmark_quantized",
        "download_datasets",
        "prepare_training_data",
    ];
    let again = run(root, &[]);
    assert_eq!(again.status.code(), Some(0), "{}", text(&again.stderr));
    for phase in KEPT {
        assert_eq!(
            ended(&again, phase),
            "up to date",
            "{phase}\n{}",
            text(&again.stderr)
        );
    }
    assert_eq!(ended(&again, "generate_report"), "done");

    // A record that is gone is made again, and what was made from it.
    fs::remove_file(root.join(paths::BASELINE_FP16)).unwrap();
    let mended = run(
        root,
        &["--from", "benchmark_baseline", "--to", "benchmark_quantized"],
    );
    assert_eq!(mended.status.code(), Some(0), "{}", text(&mended.stderr));
    assert_eq!(ended(&mended, "benchmark_baseline"), "done");
    assert_eq!(ended(&mended, "quantize_base"), "up to date");
    assert_eq!(ended(&mended, "benchmark_quantized"), "done");
    assert!(!text(&mended.stdout).contains("generate_report"));

    // Other documents are other measurements.
    let set = fs::read_to_string(root.join("documents.json")).unwrap();
    fs::write(root.join("documents.json"), set.replace("148/92", "150/95")).unwrap();
    let changed = run(
        root,
        &["--from", "benchmark_baseline", "--to", "benchmark_baseline"],
    );
    assert_eq!(
        ended(&changed, "benchmark_baseline"),
        "done",
        "{}",
        text(&changed.stderr)
    );
    let response = record(root, paths::BASELINE_FP16)["inference_results"][0]["response"].clone();
    assert!(response.as_str().unwrap().contains("150/95"), "{response}");
}

fn wait_for(child: &mut Child, file: &Path) {
    let start = Instant::now();
    while !file.exists() {
        assert!(
            start.elapsed() < Duration::from_secs(120),
            "{} never came",
            file.display()
        );
        assert!(
            child.try_wait().unwrap().is_none(),
            "ended before {}",
            file.display()
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_killed_run_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let mut child = pipeline(root, &["--to", "quantize_base"]).spawn().unwrap();
    // The state with the first measurement, then in the middle of the next phase.
    wait_for(&mut child, &root.join("benchmarks/.pipeline_state.json"));
    child.kill().unwrap();
    child.wait().unwrap();
    // Nothing half-written lies there, whatever was cut off.
    for entry in fs::read_dir(root.join("benchmarks")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "json") {
            records::read::<Value>(&path).unwrap();
        }
    }
    let output = run(root, &["--to", "benchmark_baseline"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(ended(&output, "benchmark_baseline"), "up to date");
}

#[test]
fn a_phase_that_fails_ends_the_run_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::write(root.join("documents.json"), "{\"documents\": []}").unwrap();
    let output = run(root, &[]);
    let messages = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{messages}");
    assert!(messages.contains("\"documents\" is empty"), "{messages}");
    assert!(
        messages.contains("benchmark_baseline failed (exit code 1)"),
        "{messages}"
    );
    assert_eq!(ended(&output, "benchmark_baseline"), "failed");
    assert!(!text(&output.stdout).contains("quantize_base"));
}

#[test]
fn phases_that_are_none_or_in_the_wrong_order_are_usage_errors() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [
        &["--from", "no_such_phase"][..],
        &["--from", "report", "--to", "quantize_base"],
    ] {
        let output = run(folder.path(), arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn ctrl_c_is_passed_on_once() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let mut child = pipeline(root, &["--to", "benchmark_baseline"])
        .env("MVP_MAX_NEW_TOKENS", "100000")
        .spawn()
        .unwrap();
    wait_for(&mut child, &root.join("datasets/test_images/note.png"));
    // SAFETY: the child has not been waited for, so that the number is its own.
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) };
    let output = child.wait_with_output().unwrap();
    let code = output.status.code();
    // It may have finished the page before it heard.
    assert!(matches!(code, Some(130 | 0)), "{code:?} {}", text(&output.stderr));
    if code == Some(130) {
        assert!(!root.join(paths::BASELINE_FP16).exists());
        assert_eq!(ended(&output, "benchmark_baseline"), "interrupted");
    }
}
