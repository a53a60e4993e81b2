//! `evaluate_finetuned` as a user runs it, and the regression gate.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::AtomicBool;

use crate::suite::program::without_variables;
use medical_vision::device::Precision;
use medical_vision::device::{DeviceChoice, select};
use medical_vision::evaluation::{
    AnswerScore, FinetunedRun, HeldOut, HeldOutMetrics, HeldOutSplit, Scores, evaluate, regression_gate,
};
use medical_vision::lora::{Adapter, LoraConfig, Recommendation};
use medical_vision::project::Project;
use medical_vision::qwen2_5_vl::Config;
use medical_vision::records::{self, Benchmark, EvaluationFinetuned, paths};
use medical_vision::test_documents::DocumentSet;
use serde_json::json;
use tch::Kind;

fn nano() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/qwen25-vl-nano")
}

/// A rank-4 adapter whose B is `strength` times noise: 0 changes nothing.
fn adapter(strength: f64) -> Adapter {
    let config = LoraConfig {
        r: 4,
        lora_alpha: 8.0,
        base_model_name_or_path: Some("models/qwen25-vl-nano".to_owned()),
        ..LoraConfig::default()
    };
    let mut adapter =
        Adapter::initial(config, &Config::from_dir(&nano()).unwrap().linear_modules(), 1).unwrap();
    tch::manual_seed(5);
    for pair in adapter.pairs.values_mut() {
        pair.b = pair.b.randn_like().to_kind(Kind::Float) * strength;
    }
    adapter
}

fn sign_flipped(mut adapter: Adapter) -> Adapter {
    for pair in adapter.pairs.values_mut() {
        pair.b = -&pair.b;
    }
    adapter
}

/// One short document: the run is about the records, not about the reading.
fn documents(folder: &Path) -> PathBuf {
    let set = json!({"documents": [{
        "id": "first", "filename": "first.png", "title": "NOTE",
        "content": ["Essential hypertension, BP 148/92 mmHg", "Losartan 50 mg PO daily"],
        "prompt": "Extract all medical terms, diagnoses, and clinical findings from this image.",
        "expected_terms": ["hypertension", "losartan"], "expected_values": ["148/92", "50 mg"],
    }]});
    let path = folder.join("documents.json");
    fs::write(&path, set.to_string()).unwrap();
    path
}

#[test]
fn harmful_adapters_are_not_recommended_and_a_neutral_one_is() {
    let folder = tempfile::tempdir().unwrap();
    let cases = DocumentSet::load(&documents(folder.path())).unwrap().documents;
    let selected = select(DeviceChoice::Cpu).unwrap();
    let (base, stop) = (nano(), AtomicBool::new(false));
    let recommendation = |name: &str, adapter: Adapter| {
        let dir = folder.path().join(name);
        adapter.write(&dir).unwrap();
        let evaluation = evaluate(&FinetunedRun {
            base: &base,
            adapter: Some(dir),
            selected: &selected,
            precision: Precision::Auto,
            cases: &cases,
            held_out: None,
            max_new_tokens: Some(40),
            progress: &|_, _| (),
            stop: &stop,
        });
        let evaluation = evaluation.unwrap();
        let found = evaluation.record.base_model.eval_results[0]
            .accuracy
            .clone()
            .unwrap();
        assert_eq!(found.combined_accuracy, 100.0, "the base reads the page");
        evaluation.recommendation.unwrap()
    };
    let zeroed = recommendation("zeroed", adapter(0.0));
    assert!(
        zeroed.recommended && zeroed.reason.contains("100.00 -> 100.00 %"),
        "{}",
        zeroed.reason
    );
    for (name, harmful) in [("noise", adapter(2.0)), ("flipped", sign_flipped(adapter(2.0)))] {
        let refused = recommendation(name, harmful);
        assert!(!refused.recommended, "{name}: {}", refused.reason);
        assert!(
            refused.reason.contains("accuracy on 1 evaluation cases"),
            "{}",
            refused.reason
        );
    }
}

/// The regression gate on held-out answers, without a model: answers of a good, a forgetful and a hallucinating adapter.
#[test]
fn held_out_answers_count_for_the_recommendation() {
    let folder = tempfile::tempdir().unwrap();
    let project = Project::open(Some(folder.path())).unwrap();
    let held_out = HeldOut::read(&project, HeldOutSplit::Test, 40).unwrap().unwrap();
    let answered = |answer: &dyn Fn(usize, &medical_vision::evaluation::HeldOutQuestion) -> String| {
        let questions = held_out.questions.iter().enumerate();
        questions
            .map(|(index, question)| AnswerScore::of(question, &answer(index, question)))
            .collect::<Vec<_>>()
    };
    // As the embedded model does: the whole page, whatever is asked.
    let base = answered(&|_, question| question.page.clone());
    let right = answered(&|_, question| question.expected.clone());
    let scores = |held_out| Scores {
        cases: &[99.0, 100.0],
        values: &[100.0, 100.0],
        held_out,
    };
    let good = regression_gate(scores(&base), scores(&right));
    assert!(good.recommended, "{}", good.reason);
    let metrics = HeldOutMetrics::of(&right);
    assert_eq!(
        (
            metrics.mean_score_pct,
            metrics.reading.unwrap().character_error_rate_pct
        ),
        (100.0, 0.0)
    );
    let instructions = metrics.instructions.unwrap();
    assert_eq!(
        (instructions.f1_pct, instructions.invented_items_pct),
        (Some(100.0), Some(0.0))
    );
    assert_eq!(instructions.nothing_expected, instructions.nothing_answered);
    let whole = HeldOutMetrics::of(&base).instructions.unwrap();
    assert!(
        whole.f1_pct.unwrap() < 50.0 && whole.invented_items_pct == Some(0.0),
        "{whole:?}"
    );

    let forgetful = answered(&|_, question| question.expected.lines().next().unwrap_or_default().to_owned());
    assert!(!regression_gate(scores(&right), scores(&forgetful)).recommended);
    let hallucinating =
        answered(&|_, question| format!("{}\nZorbamycin 7777 mg IV hourly", question.expected));
    let refused = regression_gate(scores(&right), scores(&hallucinating));
    assert!(!refused.recommended, "{}", refused.reason);
    let hallucinated = HeldOutMetrics::of(&hallucinating).instructions.unwrap();
    assert!(
        hallucinated.invented_items_pct.unwrap() > 5.0 && hallucinated.hallucinated_numbers > 0,
        "{hallucinated:?}"
    );
    // Better at questions, worse at what the base does well: clean pages.
    let careless = answered(&|_, question| match question.items {
        Some(_) => question.expected.clone(),
        None => question.expected.replace('e', "c"),
    });
    let refused = regression_gate(scores(&base), scores(&careless));
    assert!(
        !refused.recommended && refused.reason.contains("clean pages"),
        "{}",
        refused.reason
    );
}

fn run(binary: &str, root: &Path, arguments: &[&str]) -> Output {
    let mut command = without_variables(binary);
    command
        .args(["--device", "cpu", "--root"])
        .arg(root)
        .args(arguments)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn records_tables_and_recommendation_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let evaluate = |arguments: &[&str]| run(env!("CARGO_BIN_EXE_evaluate_finetuned"), root, arguments);
    let made = run(env!("CARGO_BIN_EXE_quantize_base"), root, &["--method", "nf4"]);
    assert_eq!(made.status.code(), Some(0), "{}", text(&made.stderr));
    let documents = documents(root);
    let flags = [
        "--model",
        "qwen25-vl-nano-bnb-nf4",
        "--documents",
        documents.to_str().unwrap(),
        "--max-new-tokens",
        "32",
        "--limit",
        "2",
    ];
    // Under another name the model has no adapter that comes with the program.
    let renamed = root.join("models/other-bnb-nf4");
    symlink(root.join("models/qwen25-vl-nano-bnb-nf4"), &renamed).unwrap();
    let absent = evaluate(&[&["--model", "other-bnb-nf4"], &flags[2..]].concat());
    assert_eq!(absent.status.code(), Some(1));
    let message = text(&absent.stderr);
    assert!(
        message.contains("models/other-medical-lora") && message.contains("train one with finetune_lora"),
        "{message}"
    );
    assert!(!root.join(paths::EVALUATION_FINETUNED).exists());

    let dir = root.join("models/qwen25-vl-nano-medical-lora");
    adapter(0.0).write(&dir).unwrap();
    let output = evaluate(&flags);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let printed = text(&output.stdout);
    for said in [
        "all cases",
        "held-out pages",
        "FP16",
        "NF4 + LoRA",
        "recommended: accuracy on 1",
    ] {
        assert!(printed.contains(said), "{said} is missing in {printed}");
    }
    assert!(!printed.contains('\u{1b}'), "colours are for terminals");
    let record: EvaluationFinetuned = records::read(&root.join(paths::EVALUATION_FINETUNED)).unwrap();
    assert_eq!(record.eval_test_cases, Some(1));
    let tuned = record.finetuned_model.unwrap();
    assert_eq!(tuned.adapter_path.as_deref(), dir.to_str());
    assert_eq!(
        tuned.eval_results[0].response,
        record.base_model.eval_results[0].response
    );
    assert_eq!(
        record.accuracy_delta.unwrap().combined_accuracy_delta_pct,
        Some(0.0)
    );
    for key in [
        "character_error_rate_pct",
        "exact_number_recall_pct",
        "hallucinated_numbers",
        "repetition_rate_pct",
    ] {
        assert!(tuned.eval_results[0].extra[key].is_number(), "{key}");
    }
    assert_eq!(record.extra["held_out"]["samples"], 2);
    assert_eq!(record.extra["held_out"]["source"], "generated");
    assert_eq!(record.extra["held_out_score_difference"]["mean"], 0.0);
    let held_out: HeldOutMetrics = serde_json::from_value(tuned.extra["held_out"].clone()).unwrap();
    assert!(held_out.reading.is_some() || held_out.instructions.is_some());
    let bench: Benchmark = records::read(&root.join(paths::FINETUNED_STANDARD_BENCH)).unwrap();
    assert_eq!(
        (bench.inference_results.len(), bench.adapter_path.as_deref()),
        (1, dir.to_str())
    );
    assert_eq!(bench.quantization_method.as_deref(), Some("bitsandbytes_NF4"));
    assert!(Recommendation::read(&dir).unwrap().unwrap().recommended);
    assert!(root.join("datasets/eval_images/first.png").is_file());
}
