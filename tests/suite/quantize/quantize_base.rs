//! `quantize_base` as a program: both methods, one that fails, and which one is used.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// One short page, of which one term is not there.
const DOCUMENTS: &str = r#"{"documents": [{"id": "short", "filename": "short.png", "title": "LABORATORY",
 "content": ["Sodium 139 mmol/L", "Potassium 4.1 mmol/L"], "prompt": "Read the page.",
 "expected_terms": ["Sodium", "Magnesium"], "expected_values": ["4.1 mmol/L"]}]}"#;

/// A project without a model of its own, and the binary run in it on the embedded model.
struct Project(tempfile::TempDir);

impl Project {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn run(&self, more: &[&str]) -> Output {
        self.run_with_pages("1", more)
    }

    fn run_with_pages(&self, pages: &str, more: &[&str]) -> Output {
        let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/qwen25-vl-nano");
        let documents = self.0.path().join("documents.json");
        std::fs::write(&documents, DOCUMENTS).unwrap();
        Command::new(env!("CARGO_BIN_EXE_quantize_base"))
            .arg("--root")
            .arg(self.0.path())
            .arg("--model")
            .arg(nano)
            .arg("--documents")
            .arg(documents)
            .args([
                "--device",
                "cpu",
                "--calibration-pages",
                pages,
                "--calibration-rows",
                "192",
            ])
            .args(more)
            .output()
            .unwrap()
    }

    /// The record after a run that must succeed, what the run said, and what it told on standard error.
    fn told(&self, more: &[&str]) -> (Value, String, String) {
        let output = self.run(more);
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success(),
            "{said}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let path = self.0.path().join("benchmarks/quantization_info.json");
        (
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap(),
            said,
            String::from_utf8(output.stderr).unwrap(),
        )
    }

    fn folder(&self, suffix: &str) -> PathBuf {
        self.0
            .path()
            .join("models")
            .join(format!("qwen25-vl-nano-{suffix}"))
    }
}

#[test]
fn both_are_made_measured_and_one_failing_costs_the_other_nothing() {
    let project = Project::new();
    let (both, said, told) = project.told(&[]);
    // Standard error is a pipe here: every stage says that it begins and what came of it.
    for stage in [
        "checking the model's files: started",
        "quantizing to NF4: started, 25 MiB",
        "quantizing to NF4: 25/25 MiB, ended after ",
        "reading the calibration pages: 1/1 page, ended after ",
        "quantizing to AWQ: 25/25 MiB, ended after ",
        "loading AWQ_INT4: ended after ",
        "measuring the original: started, 1 page",
        "measuring the original: 1/1 page, ended after ",
        "the original reads the documents: 1/1 document, ended after ",
        "measuring bitsandbytes_NF4: 1/1 page, ended after ",
        "comparing the layers' outputs: 1/1 page, ended after ",
        "AWQ_INT4 reads the documents: 1/1 document, ended after ",
    ] {
        assert!(
            told.lines().any(|line| line.starts_with(stage)),
            "{stage}\n{told}"
        );
    }
    let (nf4, awq) = (&both["bnb_setup"], &both["awq_attempt"]);
    assert_eq!(
        (&nf4["success"], &awq["success"]),
        (&true.into(), &true.into()),
        "{both:#}"
    );
    assert!(nf4["error"].is_null() && awq["error"].is_null());
    let figure = |part: &Value, key: &str| part["calibration"][key].as_f64().unwrap();
    let base = &both["calibration"]["base"];
    assert!(base["token_accuracy_pct"].as_f64().unwrap() > 90.0, "{both:#}");
    let documents = |part: &Value| part["avg_combined_accuracy_pct"].as_f64();
    assert_eq!(
        documents(&both["calibration"]["base_documents"]),
        Some(75.0),
        "{both:#}"
    );
    assert!(said.contains("before quantization: 75.00 %"), "{said}");
    let layers = &nf4["layer_outputs"];
    assert_eq!(layers["layers"].as_object().unwrap().len(), 74);
    assert!(layers["mean_cosine"].as_f64().unwrap() > 0.99 && awq.get("layer_outputs").is_none());
    for part in [nf4, awq] {
        assert_eq!(documents(&part["documents"]), Some(75.0), "{both:#}");
        assert!(
            figure(part, "output_cosine") > 0.97 && figure(part, "output_rmse") > 0.0,
            "{both:#}"
        );
    }
    // The chosen one is the better by the record's own figures: fewer wrong tokens, by more than chance, or else the logits.
    let tokens = figure(awq, "tokens");
    let wrong = |part: &Value| (1.0 - figure(part, "token_accuracy_pct") / 100.0) * tokens;
    let better = match wrong(nf4) - wrong(awq) {
        fewer if fewer.abs() > (wrong(nf4) + wrong(awq)).sqrt() && fewer > 0.0 => awq,
        fewer if fewer.abs() > (wrong(nf4) + wrong(awq)).sqrt() => nf4,
        _ if figure(awq, "output_rmse") < figure(nf4, "output_rmse") => awq,
        _ => nf4,
    };
    assert_eq!(both["active_method"], better["method"], "{both:#}");
    assert_eq!(both["calibration"]["measured_pages"], 1);
    let reason = both["active_reason"].as_str().unwrap();
    assert!(
        reason.contains("1 calibration page") && said.contains(reason),
        "{said}"
    );
    assert!(project.folder("awq-int4").join("config.json").is_file());

    // --method decides, and the other's results stay.
    let (asked, _, told) = project.told(&["--method", "awq", "--quiet"]);
    assert_eq!(told, "");
    assert_eq!(asked["active_method"], "AWQ_INT4");
    assert!(asked["active_reason"].as_str().unwrap().contains("--method"));
    assert_eq!(asked["bnb_setup"], *nf4);
    assert_eq!(asked["awq_attempt"]["up_to_date"], true);
    for key in ["calibration", "documents"] {
        assert_eq!(asked["awq_attempt"][key], awq[key]);
    }

    // Somebody else's folder is in a method's way.
    for (suffix, failed, other, active) in [
        ("awq-int4", "awq_attempt", "bnb_setup", "bitsandbytes_NF4"),
        ("bnb-nf4", "bnb_setup", "awq_attempt", "AWQ_INT4"),
    ] {
        let manifest = project.folder(suffix).join("manifest.json");
        let hidden = project.0.path().join("hidden");
        std::fs::rename(&manifest, &hidden).unwrap();
        let (record, said, told) = project.told(&["--log-format", "json"]);
        let lines: Vec<Value> = told
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let stage = lines
            .iter()
            .find(|line| line["stage"] == "checking the model's files");
        assert_eq!(stage.unwrap()["moment"], "begin", "{told}");
        let error = record[failed]["error"].as_str().unwrap();
        assert!(
            error.contains("did not write") && said.contains(error),
            "{error}\n{said}"
        );
        assert_eq!(record[failed]["success"], false);
        assert_eq!(record[other]["success"], true, "{record:#}");
        assert_eq!(record["active_method"], active);
        assert!(record["active_reason"].as_str().unwrap().contains("only one"));
        std::fs::rename(&hidden, &manifest).unwrap();
    }
}

#[test]
fn awq_without_calibration_pages_costs_nf4_nothing() {
    let project = Project::new();
    let output = project.run_with_pages("0", &[]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let path = project.0.path().join("benchmarks/quantization_info.json");
    let record: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(record["bnb_setup"]["success"], true, "{record:#}");
    let error = record["awq_attempt"]["error"].as_str().expect("an error");
    assert!(error.contains("at least one calibration page"), "{error}");

    // Nothing was made where AWQ alone was asked for.
    let project = Project::new();
    let output = project.run_with_pages("0", &["--method", "awq"]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn a_kept_folder_keeps_the_time_that_it_took() {
    let project = Project::new();
    let (made, ..) = project.told(&["--method", "nf4"]);
    let (kept, said, _) = project.told(&["--method", "nf4"]);
    assert!(said.contains("was up to date"), "{said}");
    for key in ["time_seconds", "peak_memory_mb"] {
        assert!(made["bnb_setup"][key].is_number(), "{made:#}");
        assert_eq!(kept["bnb_setup"][key], made["bnb_setup"][key]);
    }
}
