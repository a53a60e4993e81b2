//! Adapters merged into their base.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use medical_vision::Error;
use medical_vision::checkpoint::Checkpoint;
use medical_vision::engine::{LoadOptions, Reader};
use medical_vision::lora::{Adapter, LoraConfig};
use medical_vision::processing::{ImageProcessor, PREPROCESSOR_CONFIG};
use medical_vision::quant::Quantization;
use medical_vision::quantize::{MergeError, OutputFolder, Watch, merge_error, merge_folder};
use medical_vision::qwen2_5_vl::Config;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::suite::fixtures;
use crate::suite::lora::peft::{Golden, load, read};
use crate::suite::program::{
    ModelCopy, TRAINED_PROMPT, assert_failed, code, golden_page, run, stderr, stdout, text,
};

fn merge(base: &Path, adapter: &Adapter, target: &Path) -> medical_vision::Result<OutputFolder> {
    watched(base, adapter, target, &AtomicBool::new(false))
}

fn watched(
    base: &Path,
    adapter: &Adapter,
    target: &Path,
    stop: &AtomicBool,
) -> medical_vision::Result<OutputFolder> {
    let watch = Watch {
        stage: &|_, _, _| {},
        total: &|_| {},
        progress: &|_| {},
        stop,
    };
    merge_folder(base, adapter, target, watch)
}

fn error(base: &Path, adapter: &Adapter, merged: &Path) -> MergeError {
    let watch = Watch {
        stage: &|_, _, _| {},
        total: &|_| {},
        progress: &|_| {},
        stop: &AtomicBool::new(false),
    };
    merge_error(base, adapter, merged, watch).unwrap()
}

fn names(checkpoint: &Checkpoint) -> Vec<String> {
    let mut names: Vec<String> = checkpoint
        .stored()
        .into_iter()
        .map(|tensor| tensor.name)
        .collect();
    names.sort();
    names
}

#[test]
fn every_weight_is_the_exact_sum_rounded_once() {
    let (base, adapter) = (fixtures().join("models/untied-flat-sharded"), read("plain"));
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("merged");
    let outcome = merge(&base, &adapter, &target).unwrap();
    assert!(!outcome.up_to_date && outcome.bytes > 0);

    let (before, after) = (
        Checkpoint::open(&base).unwrap(),
        Checkpoint::open(&target).unwrap(),
    );
    assert_eq!(names(&after), names(&before));
    assert_eq!(after.dtypes(), ["BF16"]);
    assert_eq!(outcome.parameters, before.parameters());
    for stored in before.stored() {
        let load = |checkpoint: &Checkpoint| {
            checkpoint
                .load(&stored.canonical, &stored.shape, Kind::Double, Device::Cpu)
                .unwrap()
        };
        let mut want = load(&before);
        let module = stored.canonical.trim_end_matches(".weight");
        if let Some(pair) = adapter.pairs.get(module) {
            let [a, b] = [&pair.a, &pair.b].map(|half| half.to_kind(Kind::Double));
            want += b.matmul(&a) * pair.scale;
        }
        // bf16 has 8 bits: rounding to the nearest moves a value by at most its 256th, and the f32 sum's a little.
        let off = (load(&after) - &want).abs() - want.abs() * (1.0 / 256.0 + 1e-5);
        assert!(off.max().double_value(&[]) < 1e-6, "{}", stored.name);
    }

    let error = error(&base, &adapter, &target);
    assert_eq!(error.weights, adapter.pairs.len());
    assert!(error.rmse > 0.0 && error.rmse < error.rms / 256.0, "{error:?}");
    assert!(error.max_abs >= error.rmse && adapter.pairs.contains_key(&error.worst));
    let unmerged = self::error(&base, &adapter, &base);
    assert!(unmerged.rmse > 20.0 * error.rmse, "{unmerged:?}");

    let config: Value =
        serde_json::from_str(&fs::read_to_string(target.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["torch_dtype"], "bfloat16");
    let golden = Golden::new("plain", "untied-flat-sharded");
    let got = golden.logits(&load(&target, None, Kind::Float));
    let cosine = Tensor::cosine_similarity(&got, &golden.tensors["logits"], 1, 1e-8).mean(Kind::Double);
    assert!(cosine.double_value(&[]) > 0.999);
}

#[test]
fn a_base_in_four_bits_is_restored() {
    let (base, adapter) = (fixtures().join("nf4/nested-bf16-nf4"), read("rslora-hub-keys"));
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("merged");
    merge(&base, &adapter, &target).unwrap();
    assert_eq!(Quantization::from_dir(&target).unwrap(), Quantization::None);
    let original = Checkpoint::open(&fixtures().join("models/nested-bf16")).unwrap();
    assert_eq!(names(&Checkpoint::open(&target).unwrap()), names(&original));
    let golden = Golden::new("rslora-hub-keys", "nested-bf16");
    let got = golden.logits(&load(&target, None, Kind::Float));
    let cosine = |other: &str| {
        let cosine = Tensor::cosine_similarity(&got, &golden.tensors[other], 1, 1e-8);
        cosine.mean(Kind::Double).double_value(&[])
    };
    assert!(cosine("logits.on_nf4") > 0.999 && cosine("logits.on_nf4") > cosine("logits"));
    let error = error(&base, &adapter, &target);
    assert!(error.rmse < error.rms / 256.0, "{error:?}");
}

#[test]
fn what_was_stopped_is_finished_by_the_next_run() {
    let (base, adapter) = (fixtures().join("models/untied-flat-sharded"), read("plain"));
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("merged");
    let stop = AtomicBool::new(true);
    let stopped = watched(&base, &adapter, &target, &stop);
    assert!(matches!(stopped, Err(Error::Interrupted)) && !target.exists());
    stop.store(false, Ordering::Relaxed);
    assert!(!watched(&base, &adapter, &target, &stop).unwrap().up_to_date);
    assert!(merge(&base, &adapter, &target).unwrap().up_to_date);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    // Another adapter makes another model.
    let other = folder.path().join("adapter");
    let mut changed = read("plain");
    let pair = changed.pairs.values_mut().next().unwrap();
    pair.b = &pair.b + 1.0;
    changed.write(&other).unwrap();
    assert!(
        !merge(&base, &Adapter::read(&other).unwrap(), &target)
            .unwrap()
            .up_to_date
    );
}

#[test]
fn what_cannot_be_merged_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("merged");
    let message = |base: &Path, adapter: &Adapter| merge(base, adapter, &target).unwrap_err().to_string();
    let models = fixtures().join("models");
    let other = message(&models.join("gelu-depth3"), &read("plain"));
    assert!(
        other.contains("another model") && other.contains("model.layers.0"),
        "{other}"
    );
    let awq = models.join("awq");
    let config = LoraConfig {
        r: 2,
        ..LoraConfig::default()
    };
    let adapter = Adapter::initial(config, &Config::from_dir(&awq).unwrap().linear_modules(), 1).unwrap();
    let written = folder.path().join("adapter");
    adapter.write(&written).unwrap();
    let awq = message(&awq, &Adapter::read(&written).unwrap());
    assert!(awq.contains("AWQ"), "{awq}");
    assert!(!target.exists());
}

/// The head's own weight, which PEFT saved beside its adapter, counts; a tied embedding stays as it was.
#[test]
fn an_adapter_of_the_output_head_is_merged() {
    for (name, model) in [
        ("head-tied", "nested-bf16"),
        ("head-untied", "untied-flat-sharded"),
    ] {
        let (base, adapter) = (fixtures().join("models").join(model), read(name));
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("merged");
        merge(&base, &adapter, &target).unwrap();
        let (before, after) = (
            Checkpoint::open(&base).unwrap(),
            Checkpoint::open(&target).unwrap(),
        );
        assert!(after.contains("lm_head.weight") && after.contains("model.embed_tokens.weight"));
        let added = usize::from(!before.contains("lm_head.weight"));
        assert_eq!(names(&after).len(), names(&before).len() + added);
        let config = Config::from_dir(&target).unwrap();
        assert!(!config.tie_word_embeddings, "{name}");
        let merged = load(&target, None, Kind::Float);
        assert!(merged.warnings().is_empty(), "{:?}", merged.warnings());
        let attached = load(&base, Some(&adapter), Kind::Float);
        let ids = [5i64, 300, 7, 41, 200, 11, 90];
        let logits = |model: &medical_vision::qwen2_5_vl::Model| {
            let mut cache = model.cache(ids.len()).unwrap();
            let prefill = model.prefill(
                &ids,
                None,
                &[],
                &mut cache,
                medical_vision::qwen2_5_vl::LogitsToKeep::All,
            );
            model.logits(&prefill.unwrap().hidden).unwrap()
        };
        let (merged, attached) = (logits(&merged), logits(&attached));
        let cosine = Tensor::cosine_similarity(&merged, &attached, 1, 1e-8)
            .min()
            .double_value(&[]);
        assert!(cosine > 0.9995, "{name}: {cosine}");
        let bare = logits(&load(&base, None, Kind::Float));
        let moved = Tensor::cosine_similarity(&bare, &attached, 1, 1e-8)
            .min()
            .double_value(&[]);
        assert!(moved < 0.99, "{name}: {moved}");
        let error = error(&base, &adapter, &target);
        assert_eq!(error.weights, adapter.pairs.len());
        assert!(error.rmse < error.rms / 256.0, "{error:?}");
    }
}

/// Bounds that pages were trained with go with the adapter, and into what it is merged into.
#[test]
fn an_adapter_resizes_pages_as_it_was_trained() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("adapter");
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/qwen25-vl-nano");
    let mut first = Adapter::initial(
        LoraConfig::default(),
        &Config::from_dir(&base).unwrap().linear_modules(),
        1,
    )
    .unwrap();
    let images = ImageProcessor::from_dir(&base).unwrap();
    let enlarging = images.clone().with_pixel_bounds(Some(40_000), None).unwrap();
    first.images = Some(enlarging.with_max_enlargement(Some(1.5)).unwrap());
    first.write(&dir).unwrap();
    let read = Adapter::read(&dir).unwrap();
    let grid = |images: &ImageProcessor| {
        let grid = images.grid(60, 90).unwrap();
        (grid.h, grid.w)
    };
    let (small, large) = (grid(&images), grid(read.images.as_ref().unwrap()));
    assert!(large.0 > small.0 && large.1 > small.1, "{small:?} {large:?}");

    let load = |adapter: Option<&Path>, min_pixels, max_pixels| {
        let options = LoadOptions {
            adapter: adapter.map(Path::to_owned),
            min_pixels,
            max_pixels,
            ..LoadOptions::default()
        };
        grid(Reader::load(&base, &options).unwrap().images())
    };
    assert_eq!(load(None, None, None), small);
    assert_eq!(load(Some(&dir), None, None), large);
    // Bounds that are asked for come first.
    let lowered = load(Some(&dir), None, Some(5_000));
    assert!(lowered.0 < large.0, "{lowered:?} {large:?}");
    let raised = load(Some(&dir), Some(40_000), None);
    assert!(raised.0 > large.0, "{raised:?} {large:?}");

    let merged = folder.path().join("merged");
    merge(&base, &read, &merged).unwrap();
    assert_eq!(grid(&ImageProcessor::from_dir(&merged).unwrap()), large);

    fs::write(dir.join(PREPROCESSOR_CONFIG), r#"{"min_pixels": 0}"#).unwrap();
    let error = Adapter::read(&dir).unwrap_err().to_string();
    assert!(
        error.contains("min_pixels") && error.contains(PREPROCESSOR_CONFIG),
        "{error}"
    );
}

/// A project with the embedded model and an adapter of it that changes little.
fn project() -> (ModelCopy, PathBuf) {
    let model = ModelCopy::new();
    let config = LoraConfig {
        r: 4,
        lora_alpha: 4.0,
        base_model_name_or_path: Some("models/qwen25-vl-nano".to_owned()),
        ..LoraConfig::default()
    };
    let nano = Config::from_dir(&model.models().join("qwen25-vl-nano")).unwrap();
    let mut adapter = Adapter::initial(config, &nano.linear_modules(), 3).unwrap();
    for pair in adapter.pairs.values_mut() {
        let _ = pair.b.fill_(0.001);
    }
    let dir = model.models().join("qwen25-vl-nano-medical-lora");
    adapter.write(&dir).unwrap();
    (model, dir)
}

#[test]
fn the_command_merges_quantizes_and_says_what_it_costs() {
    let (model, adapter) = project();
    let root = text(model.models()).to_owned();
    let merge = |arguments: &[&str]| {
        let flags = [
            "merge",
            "--device",
            "cpu",
            "--root",
            &root,
            "--model",
            model.folder(),
        ];
        run(&[&flags[..], arguments].concat())
    };
    // The tests' MVP_ADAPTER says none.
    assert_failed(&merge(&[]), &["--adapter none", "--adapter DIR"]);
    let adapter = ["--adapter", text(&adapter), "--calibration-pages", "1"];
    let output = merge(&[&adapter[..], &["--requantize", "nf4"]].concat());
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let merged = model.models().join("models/qwen25-vl-nano-medical-merged");
    let said = stdout(&output);
    for part in [
        "base: ",
        "adapter: ",
        "merged: ",
        "NF4: ",
        "RMSE",
        "largest error",
        "logits compared with the attached adapter, 1 pages",
        text(&merged),
    ] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    let record = fs::read_to_string(model.models().join("benchmarks/merge_info.json")).unwrap();
    let record: Value = serde_json::from_str(&record).unwrap();
    let figure = |pointer: &str| record.pointer(pointer).and_then(Value::as_f64).unwrap();
    assert!(figure("/merged/weight_error/rmse") * 5.0 < figure("/requantized/weight_error/rmse"));
    assert!(figure("/merged/answers/output_rmse") * 2.0 < figure("/requantized/answers/output_rmse"));
    assert!(figure("/merged/answers/output_cosine") > 0.999);
    assert!(figure("/unmerged/token_accuracy_pct") > 90.0);

    let nf4 = merged.with_file_name("qwen25-vl-nano-medical-merged-bnb-nf4");
    assert_ne!(Quantization::from_dir(&nf4).unwrap(), Quantization::None);
    let page = golden_page("small_strip_rx.png");
    let read = run(&[
        "extract",
        "--device",
        "cpu",
        "--prompt",
        TRAINED_PROMPT,
        "--model",
        text(&merged),
        text(&page.path),
    ]);
    assert_eq!(stdout(&read).trim_end(), page.text.trim_end());

    let adapter = [&adapter[..2], &["--calibration-pages", "0"]].concat();
    let again = merge(&adapter);
    assert!(stdout(&again).contains("(was up to date)"), "{}", stdout(&again));
    let own = merge(&[&adapter[..], &["--out", model.folder()]].concat());
    assert_failed(&own, &["--out", "base"]);
}
