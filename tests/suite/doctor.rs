//! `medvision doctor`: what it finds, what it advises, its exit code.

use std::net::TcpListener;

use serde_json::{Value, json};

use super::program::{ModelCopy, code, run, stderr, stdout, text};

fn doctor(arguments: &[&str]) -> (i32, String) {
    let output = run(&[&["doctor", "--device", "cpu"], arguments].concat());
    assert_eq!(stderr(&output), "");
    (code(&output), stdout(&output))
}

/// The JSON report of a run that must end with `expected`.
#[track_caller]
fn report(arguments: &[&str], expected: i32) -> Value {
    let (code, text) = doctor(&[arguments, &["--json"]].concat());
    assert_eq!(code, expected, "{text}");
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["usable"], expected == 0, "{text}");
    report
}

/// The findings of one kind.
fn findings(report: &Value, status: &str) -> Vec<String> {
    let checks = report["checks"].as_array().unwrap().iter();
    checks
        .filter(|check| check["status"] == status)
        .map(|check| format!("{} {}", check["message"].as_str().unwrap(), check["hint"]))
        .collect()
}

#[test]
fn a_working_machine_passes() {
    let (code, text) = doctor(&["--model", "models/qwen25-vl-nano"]);
    assert_eq!(code, 0, "{text}");
    for part in [
        concat!("medvision ", env!("CARGO_PKG_VERSION")),
        "\nMachine\n",
        "\nLibraries\n[PASS] libtorch 2.",
        "[PASS] models/qwen25-vl-nano: 13.3M parameters in BF16, complete; takes about",
        "\nSummary\nReady to read pages",
    ] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    assert!(!text.contains("[ERROR]"), "{text}");
}

#[test]
fn the_json_report_has_the_same_findings() {
    let report = report(&["--model", "models/qwen25-vl-nano"], 0);
    assert!(report["machine"]["threads"].as_u64().unwrap() >= 1);
    assert!(report["machine"]["disk_free_bytes"].as_u64().unwrap() > 0);
    assert!(report["libtorch"]["version"].as_str().unwrap().starts_with("2."));
    let model = &report["models"][0];
    assert_eq!(model["selected"], true);
    assert_eq!(model["usable"], true);
    assert_eq!(model["problem"], Value::Null);
    assert_eq!(model["sizes"]["dtypes"], json!(["BF16"]));
    assert_eq!(model["sizes"]["context_tokens"], 4096);
    let on_disk = std::fs::metadata("models/qwen25-vl-nano/model.safetensors")
        .unwrap()
        .len();
    let weights = model["sizes"]["weight_bytes"].as_u64().unwrap();
    assert!(weights < on_disk && weights > on_disk * 99 / 100);
    assert_eq!(weights, 2 * model["sizes"]["parameters"].as_u64().unwrap());
    assert!(findings(&report, "error").is_empty());
}

#[test]
fn a_missing_model_is_an_error_with_a_hint() {
    let (code, text) = doctor(&["--model", "models/absent"]);
    assert_eq!(code, 1, "{text}");
    for part in [
        "[ERROR] models/absent: no such folder",
        "download_model",
        "Not ready: 1 error above.",
    ] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
}

#[test]
fn a_damaged_model_is_an_error_that_names_file_and_cause() {
    type Case<'a> = (&'a dyn Fn(&ModelCopy), &'a [&'a str]);
    let cases: [Case; 6] = [
        (
            &|model| {
                model.edit("config.json", |config| {
                    drop(config.as_object_mut().unwrap().remove("hidden_size"))
                })
            },
            &["config.json", "left out", "\"hidden_size\" (8192)"],
        ),
        (
            &|model| model.write("config.json", b"{"),
            &["config.json", "not valid JSON"],
        ),
        (
            &|model| model.remove("tokenizer.json"),
            &["tokenizer.json", "no such file"],
        ),
        (
            &|model| model.write("preprocessor_config.json", b"[]"),
            &["preprocessor_config.json"],
        ),
        (
            &|model| model.write("model.safetensors", b"{}"),
            &["model.safetensors", "not a safetensors file"],
        ),
        (
            &|model| model.remove("model.safetensors"),
            &["model.safetensors", "download complete"],
        ),
    ];
    for (breaks, parts) in cases {
        let model = ModelCopy::new();
        breaks(&model);
        let report = report(&["--model", model.folder()], 1);
        assert_eq!(report["models"][0]["usable"], false);
        assert_eq!(report["models"][0]["selected"], true);
        let problem = report["models"][0]["problem"].as_str().unwrap();
        let errors = findings(&report, "error");
        assert_eq!(errors.len(), 1, "{errors:?}");
        for part in parts {
            assert!(
                problem.contains(part) && errors[0].contains(part),
                "{part} is not in: {problem}"
            );
        }
    }
}

#[test]
fn a_damaged_model_that_is_not_used_is_a_warning() {
    let root = tempfile::tempdir().unwrap();
    let broken = root.path().join("models/broken");
    std::fs::create_dir_all(&broken).unwrap();
    std::fs::write(broken.join("config.json"), "{}").unwrap();
    let report = report(
        &["--root", text(root.path()), "--model", ModelCopy::new().folder()],
        0,
    );
    let warnings = findings(&report, "warn");
    assert!(
        warnings.iter().any(|warning| warning.contains(text(&broken))),
        "{warnings:?}"
    );
    let models = report["models"].as_array().unwrap();
    assert_eq!(models.len(), 2);
    assert_eq!(models[1]["selected"], false);
}

#[test]
fn using_the_embedded_model_by_default_is_a_warning() {
    let root = tempfile::tempdir().unwrap();
    let report = report(&["--root", text(root.path())], 0);
    let warnings = findings(&report, "warn");
    assert!(
        warnings
            .iter()
            .any(|warning| warning.contains("embedded model") && warning.contains("download_model")),
        "{warnings:?}"
    );
    assert!(
        report["models"][0]["path"]
            .as_str()
            .unwrap()
            .ends_with("models/qwen25-vl-nano")
    );
}

#[test]
fn a_missing_device_is_an_error() {
    let output = run(&["doctor", "--device", "cuda:99", "--json"]);
    assert_eq!(code(&output), 1);
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    let errors = findings(&report, "error");
    assert!(
        errors
            .iter()
            .any(|error| error.contains("cuda:99") && error.contains("--device auto")),
        "{errors:?}"
    );
}

#[test]
fn a_port_in_use_and_a_read_only_folder_are_warnings() {
    // Where somebody else has the port already, it is taken as well.
    let _taken = TcpListener::bind("127.0.0.1:8000");
    let report = report(&["--root", "/proc", "--model", ModelCopy::new().folder()], 0);
    assert_eq!(report["machine"]["port_8000_in_use"], true);
    let warnings = findings(&report, "warn").join("\n");
    assert!(warnings.contains("--port 8001"), "{warnings}");
    assert!(
        warnings.contains("/proc") && warnings.contains("not writable"),
        "{warnings}"
    );
}

#[test]
fn missing_project_folders_and_invalid_flags_are_errors() {
    let output = run(&["doctor", "--root", "/does/not/exist"]);
    assert_eq!(code(&output), 1);
    assert!(
        stderr(&output).contains("/does/not/exist: no such folder"),
        "{}",
        stderr(&output)
    );
    let output = run(&["doctor", "--repair"]);
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("--repair"), "{}", stderr(&output));
}
