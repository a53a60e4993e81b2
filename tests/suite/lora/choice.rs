//! Which adapter a run attaches, and what the programs say about it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use medical_vision::engine::{LoadOptions, Reader, UNSAVED_ADAPTER};
use medical_vision::lora::{
    ADAPTER_EVALUATION, ADAPTER_WEIGHTS, Adapter, FoundAdapter, LoraConfig, Recommendation, find_adapter,
};
use medical_vision::project::Project;
use medical_vision::qwen2_5_vl::Config;
use serde_json::Value;
use tch::{Kind, Tensor};

use crate::suite::program::{
    ModelCopy, TRAINED_PROMPT, assert_failed, code, golden_page, medvision, run, stderr, stdout, text,
};

/// An adapter of the embedded model that changes its logits a little.
fn adapter(base: &str) -> Adapter {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/qwen25-vl-nano");
    let config = LoraConfig {
        r: 2,
        lora_alpha: 2.0,
        base_model_name_or_path: Some(base.to_owned()),
        ..LoraConfig::default()
    };
    let mut adapter = Adapter::initial(config, &Config::from_dir(&dir).unwrap().linear_modules(), 3).unwrap();
    for pair in adapter.pairs.values_mut() {
        let _ = pair.b.fill_(0.004);
    }
    adapter
}

/// A copy of the embedded model with an adapter where fine-tuning puts it.
fn beside(base: &str) -> (ModelCopy, PathBuf) {
    let model = ModelCopy::new();
    let dir = model.models().join("qwen25-vl-nano-medical-lora");
    adapter(base).write(&dir).unwrap();
    (model, dir)
}

/// `medvision` without the tests' `MVP_ADAPTER`.
fn unasked(arguments: &[&str]) -> Output {
    medvision(arguments).env_remove("MVP_ADAPTER").output().unwrap()
}

#[test]
fn the_model_s_own_adapter_is_found_by_its_name() {
    let root = tempfile::tempdir().unwrap();
    let project = Project::open(Some(root.path())).unwrap();
    let models = root.path().join("models");
    let own = models.join("big-medical-lora");
    assert_eq!(
        find_adapter(&project, &models.join("big-base")).unwrap(),
        FoundAdapter::Missing
    );
    adapter("big-base").write(&own).unwrap();
    for model in ["big-base", "big", "big-bnb-nf4", "big-awq-int4"] {
        let found = find_adapter(&project, &models.join(model)).unwrap();
        assert_eq!(found, FoundAdapter::Recommended(own.clone()), "{model}");
    }
    assert_eq!(
        find_adapter(&project, &models.join("bigger")).unwrap(),
        FoundAdapter::Missing
    );
    // Beside a model that lies elsewhere.
    let elsewhere = tempfile::tempdir().unwrap();
    let theirs = elsewhere.path().join("other-medical-lora");
    adapter("someone/other-base").write(&theirs).unwrap();
    let found = find_adapter(&project, &elsewhere.path().join("other-bnb-nf4")).unwrap();
    assert_eq!(found, FoundAdapter::Recommended(theirs));
}

/// What quantize_base makes of the embedded model lies in the project; the embedded model and its adapter may not.
#[test]
fn the_embedded_model_s_adapter_is_found_where_it_comes_with_the_program() {
    let root = tempfile::tempdir().unwrap();
    let project = Project::open(Some(root.path())).unwrap();
    let found = find_adapter(&project, &root.path().join("models/qwen25-vl-nano-bnb-nf4")).unwrap();
    let FoundAdapter::Recommended(dir) = found else {
        panic!("{found:?}")
    };
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/qwen25-vl-nano-medical-lora");
    assert_eq!(dir.canonicalize().unwrap(), shipped.canonicalize().unwrap());
}

#[test]
fn an_adapter_of_another_model_or_without_merit_is_excluded() {
    let root = tempfile::tempdir().unwrap();
    let project = Project::open(Some(root.path())).unwrap();
    let dir = root.path().join("models/big-medical-lora");
    let model = root.path().join("models/big-base");
    let reason = || match find_adapter(&project, &model).unwrap() {
        FoundAdapter::NotRecommended { dir: found, reason } => {
            assert_eq!(found, dir);
            reason
        }
        other => panic!("{other:?}"),
    };
    adapter("models/small").write(&dir).unwrap();
    assert!(reason().contains("models/small"));
    adapter("models/big-bnb-nf4").write(&dir).unwrap();
    assert_eq!(
        find_adapter(&project, &model).unwrap(),
        FoundAdapter::Recommended(dir.clone())
    );
    let mut recommendation = Recommendation {
        recommended: false,
        reason: "accuracy fell by 9.8 points".to_owned(),
    };
    recommendation.write(&dir).unwrap();
    assert!(reason().contains("accuracy fell by 9.8 points"));
    recommendation.recommended = true;
    recommendation.write(&dir).unwrap();
    assert_eq!(Recommendation::read(&dir).unwrap(), Some(recommendation));
    assert_eq!(
        find_adapter(&project, &model).unwrap(),
        FoundAdapter::Recommended(dir.clone())
    );
    fs::write(dir.join(ADAPTER_EVALUATION), r#"{"recommended": "yes"}"#).unwrap();
    assert!(reason().contains(ADAPTER_EVALUATION));
    fs::write(dir.join("adapter_config.json"), "{").unwrap();
    let error = find_adapter(&project, &model).unwrap_err().to_string();
    assert!(error.contains("--adapter none"), "{error}");
}

#[test]
fn the_model_metadata_names_an_adapter_in_memory() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/qwen25-vl-nano");
    let name = |adapter: &Adapter| {
        let reader = Reader::load_with(&dir, &LoadOptions::default(), adapter).unwrap();
        reader.info().lora_adapter.clone()
    };
    let new = adapter("models/qwen25-vl-nano");
    assert_eq!(name(&new).as_deref(), Some(UNSAVED_ADAPTER));
    let folder = tempfile::tempdir().unwrap();
    let saved = folder.path().join("my-lora");
    new.write(&saved).unwrap();
    assert_eq!(name(&Adapter::read(&saved).unwrap()).as_deref(), Some("my-lora"));
}

#[test]
fn extract_says_and_records_what_is_attached() {
    let (model, dir) = beside("models/qwen25-vl-nano");
    let page = golden_page("small_strip_rx.png");
    let flags = [
        "extract",
        "--json",
        "--device",
        "cpu",
        "--prompt",
        TRAINED_PROMPT,
        "--root",
        text(model.models()),
        "--model",
        model.folder(),
    ];
    let arguments = [&flags[..], &[text(&page.path)]].concat();
    let attached = |output: &Output| -> Value {
        assert_eq!(code(output), 0, "{}", stderr(output));
        let record: Value = serde_json::from_str(&stdout(output)).unwrap();
        record["model_info"]["lora_adapter"].clone()
    };
    let found = unasked(&arguments);
    assert_eq!(attached(&found), "qwen25-vl-nano-medical-lora");
    assert!(
        stderr(&found).contains(&format!("adapter: {}", text(&dir))),
        "{}",
        stderr(&found)
    );

    let none = unasked(&[&arguments[..], &["--adapter", "none"]].concat());
    assert_eq!(attached(&none), Value::Null);
    let record: Value = serde_json::from_str(&stdout(&none)).unwrap();
    assert_eq!(record["extracted_content"], page.text);

    let recommendation = Recommendation {
        recommended: false,
        reason: "it invents items".to_owned(),
    };
    recommendation.write(&dir).unwrap();
    let left_out = unasked(&arguments);
    assert_eq!(attached(&left_out), Value::Null);
    let message = stderr(&left_out);
    assert!(
        message.contains("not attached") && message.contains("it invents items"),
        "{message}"
    );
    let named = unasked(&[&arguments[..], &["--adapter", text(&dir)]].concat());
    assert_eq!(attached(&named), "qwen25-vl-nano-medical-lora");
}

#[test]
fn trace_attaches_what_it_is_told_to() {
    let (model, dir) = beside("models/qwen25-vl-nano");
    let logits = |arguments: &[&str]| {
        let out = model.models().join("trace.safetensors");
        let flags = [
            "trace",
            "--device",
            "cpu",
            "--prompt",
            "Blood pressure",
            "--model",
            model.folder(),
        ];
        let output = unasked(&[&flags[..], &["--out", text(&out)], arguments].concat());
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        let tensors = Tensor::read_safetensors(&out).unwrap();
        tensors.into_iter().find(|(name, _)| name == "logits").unwrap().1
    };
    let (bare, none) = (logits(&[]), logits(&["--adapter", "none"]));
    assert_eq!(bare, none);
    let with = logits(&["--adapter", text(&dir)]);
    assert!((with - bare).abs().max().to_kind(Kind::Double).double_value(&[]) > 1e-3);
}

#[test]
fn a_wrong_adapter_ends_the_run_with_its_name() {
    let page = golden_page("small_strip_rx.png");
    let extract = |adapter: &str| {
        run(&[
            "extract",
            "--device",
            "cpu",
            "--model",
            "models/qwen25-vl-nano",
            "--adapter",
            adapter,
            text(&page.path),
        ])
    };
    assert_failed(
        &extract("models/no-such-adapter"),
        &["models/no-such-adapter", "--adapter"],
    );
    // Made for another model.
    let other = "tests/fixtures/adapters/plain";
    assert_failed(
        &extract(other),
        &[
            "tests/fixtures/adapters/plain",
            ADAPTER_WEIGHTS,
            "[64, 112]",
            "model.layers.0",
        ],
    );
    let (_model, dir) = beside("models/qwen25-vl-nano");
    fs::write(dir.join(ADAPTER_WEIGHTS), b"no tensors").unwrap();
    assert_failed(&extract(text(&dir)), &[text(&dir), ADAPTER_WEIGHTS]);
}

#[test]
fn doctor_lists_adapters() {
    let (model, dir) = beside("models/qwen25-vl-nano");
    let root = text(model.models());
    let doctor = || {
        stdout(&unasked(&[
            "doctor",
            "--device",
            "cpu",
            "--root",
            root,
            "--model",
            model.folder(),
        ]))
    };
    let report = doctor();
    let line = format!(
        "[INFO] {}: LoRA adapter of models/qwen25-vl-nano, rank 2, 0.1M parameters, not evaluated",
        text(&dir)
    );
    assert!(
        report.contains(&line) && report.contains("used unless --adapter"),
        "{report}"
    );
    let recommendation = Recommendation {
        recommended: false,
        reason: "accuracy fell".to_owned(),
    };
    recommendation.write(&dir).unwrap();
    let report = doctor();
    assert!(
        report.contains("not recommended by its evaluation (accuracy fell)"),
        "{report}"
    );
    fs::write(dir.join(ADAPTER_WEIGHTS), b"no").unwrap();
    let report = doctor();
    assert!(
        report.contains(&format!("{} cannot be used", text(&dir))),
        "{report}"
    );
}
