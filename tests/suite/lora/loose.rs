//! Adapters as PEFT and people leave them: of the output head, with too much or too little in them.

use std::fs;
use std::path::{Path, PathBuf};

use medical_vision::checkpoint::Checkpoint;
use medical_vision::lora::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, Adapter};
use medical_vision::quant::Quantization;
use medical_vision::qwen2_5_vl::{Config, LogitsToKeep, Model, ModelOptions};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use super::peft::{load, read};
use crate::suite::fixtures;
use crate::suite::program::{ModelCopy, code, golden_page, run, stderr, text};

const TOLERANCE: f64 = 2e-4;

fn golden(name: &str) -> (Vec<i64>, Tensor) {
    let file = fixtures().join(format!("adapters/{name}.safetensors"));
    let mut all: Vec<_> = Tensor::read_safetensors(file).unwrap();
    let mut take = |name: &str| {
        all.swap_remove(all.iter().position(|(other, _)| other == name).unwrap())
            .1
    };
    (Vec::try_from(take("input_ids")).unwrap(), take("logits"))
}

/// Logits of all ids in one pass, and a token at a time.
fn both_ways(model: &Model, ids: &[i64]) -> [Tensor; 2] {
    let mut cache = model.cache(ids.len()).unwrap();
    let whole = model
        .prefill(ids, None, &[], &mut cache, LogitsToKeep::All)
        .unwrap();
    let mut cache = model.cache(ids.len()).unwrap();
    let first = model
        .prefill(&ids[..1], None, &[], &mut cache, LogitsToKeep::All)
        .unwrap();
    let mut rows = vec![model.logits(&first.hidden).unwrap()];
    rows.extend(ids[1..].iter().map(|&id| model.decode(id, &mut cache).unwrap()));
    [model.logits(&whole.hidden).unwrap(), Tensor::cat(&rows, 0)]
}

#[track_caller]
fn computes_as_peft(name: &str, model: &str, adapter: &Adapter) -> Model {
    let (ids, expected) = golden(name);
    let model = load(&fixtures().join("models").join(model), Some(adapter), Kind::Float);
    for got in both_ways(&model, &ids) {
        let worst = (got - &expected).abs().max().double_value(&[]);
        assert!(worst <= TOLERANCE, "{name}: logits differ by {worst}");
    }
    model
}

/// PEFT saves the head's weight beside an adapter of it and computes with what it saved, here another one than the base's;
/// where the embedding is tied, the embedding is it, too.
#[test]
fn an_adapter_of_the_output_head_computes_what_peft_computes() {
    for (name, model) in [
        ("head-tied", "nested-bf16"),
        ("head-untied", "untied-flat-sharded"),
    ] {
        let adapter = read(name);
        assert!(adapter.pairs.contains_key("lm_head"), "{name}");
        assert_eq!(
            adapter.replaced.keys().collect::<Vec<_>>(),
            ["lm_head.weight"],
            "{name}"
        );
        let loaded = computes_as_peft(name, model, &adapter);
        assert!(loaded.warnings().is_empty(), "{:?}", loaded.warnings());
        // Without the stored weight the logits are others: the test can fail.
        let mut without = read(name);
        without.replaced.clear();
        let (ids, expected) = golden(name);
        let base = load(
            &fixtures().join("models").join(model),
            Some(&without),
            Kind::Float,
        );
        let [whole, _] = both_ways(&base, &ids);
        assert!((whole - expected).abs().max().double_value(&[]) > 0.1, "{name}");
    }
}

/// With `ensure_weight_tying` PEFT adapts the embedding that the head is tied to, too; `target_modules` names only one of them.
#[test]
fn an_adapter_of_head_and_embedding_computes_what_peft_computes() {
    let adapter = read("head-and-embedding");
    for name in ["lm_head", "model.embed_tokens"] {
        assert!(adapter.pairs.contains_key(name), "{name}");
    }
    let loaded = computes_as_peft("head-and-embedding", "nested-bf16", &adapter);
    assert!(loaded.warnings().is_empty(), "{:?}", loaded.warnings());
    // Written and read again it is the same.
    let dir = tempfile::tempdir().unwrap();
    let again = dir.path().join("again");
    adapter.write(&again).unwrap();
    computes_as_peft(
        "head-and-embedding",
        "nested-bf16",
        &Adapter::read(&again).unwrap(),
    );
    let head = read("head-tied");
    head.write(&again).unwrap();
    computes_as_peft("head-tied", "nested-bf16", &Adapter::read(&again).unwrap());
}

/// A base in four bits keeps its head as numbers; the adapter's takes its place all the same.
#[test]
fn a_quantized_base_takes_the_head_that_the_adapter_holds() {
    let adapter = read("head-tied");
    let dir = fixtures().join("nf4/nested-bf16-nf4");
    let (ids, _) = golden("head-tied");
    let [whole, single] = both_ways(&load(&dir, Some(&adapter), Kind::Float), &ids);
    assert!((&whole - single).abs().max().double_value(&[]) < TOLERANCE);
    let mut without = read("head-tied");
    without.replaced.clear();
    let [other, _] = both_ways(&load(&dir, Some(&without), Kind::Float), &ids);
    assert!((whole - other).abs().max().double_value(&[]) > 0.1);
}

/// Tensors that `target_modules` does not name, a missing pair, two patterns for a module, keys with the adapter's name.
#[test]
fn what_is_loose_is_computed_as_by_peft_and_said() {
    let adapter = read("loose");
    let config = &adapter.config;
    let order: Vec<&str> = config.rank_pattern.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(order, ["self_attn.q_proj", "layers.0.self_attn.q_proj"]);
    let model = computes_as_peft("loose", "windows", &adapter);
    let [left_out, missing] = model.warnings() else {
        panic!("{:?}", model.warnings());
    };
    for part in [
        "2 modules",
        "model.layers.0.self_attn.v_proj",
        "model.layers.1.self_attn.v_proj",
        "left out",
    ] {
        assert!(left_out.contains(part), "{left_out}");
    }
    for part in [
        "1 module",
        "\"model.layers.1.self_attn.k_proj\"",
        "target_modules",
    ] {
        assert!(missing.contains(part), "{missing}");
    }
    for warning in model.warnings() {
        assert!(
            warning.contains(ADAPTER_WEIGHTS) && warning.contains(ADAPTER_CONFIG),
            "{warning}"
        );
    }
}

fn copied(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in [ADAPTER_CONFIG, ADAPTER_WEIGHTS] {
        fs::copy(
            fixtures().join("adapters").join(name).join(file),
            dir.path().join(file),
        )
        .unwrap();
    }
    dir
}

fn edit(dir: &Path, change: impl FnOnce(&mut Value)) {
    let path = dir.join(ADAPTER_CONFIG);
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(path, config.to_string()).unwrap();
}

fn weights(dir: &Path, change: impl Fn(&str) -> String) {
    let path = dir.join(ADAPTER_WEIGHTS);
    let all = Tensor::read_safetensors(&path).unwrap();
    let all: Vec<_> = all
        .into_iter()
        .map(|(name, tensor)| (change(&name), tensor))
        .collect();
    Tensor::write_safetensors(&all, path).unwrap();
}

#[test]
fn one_adapter_s_name_may_stand_in_the_keys() {
    let dir = copied("plain");
    weights(dir.path(), |name| name.replace(".weight", ".doctors.weight"));
    assert_eq!(
        Adapter::read(dir.path()).unwrap().pairs.len(),
        read("plain").pairs.len()
    );
    // Two adapters in one file: which one is meant?
    weights(dir.path(), |name| match name.contains("q_proj") {
        true => name.replace(".doctors.", ".default."),
        false => name.to_owned(),
    });
    let error = Adapter::read(dir.path()).unwrap_err().to_string();
    assert!(
        error.contains(ADAPTER_WEIGHTS) && error.contains("another adapter"),
        "{error}"
    );
    weights(dir.path(), |name| name.replace(".default.", ".a.b."));
    let error = Adapter::read(dir.path()).unwrap_err().to_string();
    assert!(error.contains("not a plain LoRA"), "{error}");
}

#[test]
fn layers_that_are_not_transformed_are_left_out() {
    let dir = copied("plain");
    edit(dir.path(), |config| config["layers_to_transform"] = json!([0, 1]));
    let adapter = Adapter::read(dir.path()).unwrap();
    assert!(adapter.pairs.keys().all(|name| !name.contains("layers.2.")));
    let model = Config::from_dir(&fixtures().join("models/untied-flat-sharded")).unwrap();
    let warnings = adapter.warnings(&model.adaptable_modules()).unwrap().join("\n");
    assert!(
        warnings.contains("model.layers.2.") && !warnings.contains("model.layers.1."),
        "{warnings}"
    );
    edit(dir.path(), |config| config["layers_to_transform"] = json!(["0"]));
    assert!(
        Adapter::read(dir.path())
            .unwrap_err()
            .to_string()
            .contains("layers_to_transform")
    );
}

#[test]
fn a_config_of_other_modules_is_refused() {
    let dir = copied("plain");
    edit(dir.path(), |config| config["target_modules"] = json!(["c_attn"]));
    let error = Adapter::read(dir.path()).unwrap_err().to_string();
    assert!(
        error.contains(ADAPTER_CONFIG) && error.contains("target_modules"),
        "{error}"
    );
}

/// Adapters of both spellings, whole, have nothing to warn of; `target_modules` may be written for either.
#[test]
fn whole_adapters_are_silent() {
    for (name, model) in [
        ("plain", "untied-flat-sharded"),
        ("rslora-hub-keys", "nested-bf16"),
        ("patterns", "windows"),
    ] {
        let model = Config::from_dir(&fixtures().join("models").join(model)).unwrap();
        let warnings = read(name).warnings(&model.adaptable_modules()).unwrap();
        assert!(warnings.is_empty(), "{name}: {warnings:?}");
    }
    let dir = copied("rslora-hub-keys");
    let hub = r"(model\.layers|visual\.blocks)\.\d+\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj|qkv|proj)";
    edit(dir.path(), |config| config["target_modules"] = json!(hub));
    let model = Config::from_dir(&fixtures().join("models/nested-bf16")).unwrap();
    let adapter = Adapter::read(dir.path()).unwrap();
    assert_eq!(adapter.pairs.len(), read("rslora-hub-keys").pairs.len());
    let warnings = adapter.warnings(&model.adaptable_modules()).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
}

/// A vocabulary of another size than the base's is refused by the shapes.
#[test]
fn a_resized_head_is_refused_by_its_shape() {
    let mut adapter = read("head-untied");
    let head = adapter.replaced.get_mut("lm_head.weight").unwrap();
    *head = head.narrow(0, 0, 380).copy();
    let dir = fixtures().join("models/untied-flat-sharded");
    let config = Config::from_dir(&dir).unwrap();
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let options = ModelOptions {
        adapters: &[&adapter],
        ..ModelOptions::new(Kind::Float, Device::Cpu)
    };
    let error = Model::load(&checkpoint, &config, &Quantization::None, &options);
    let error = error.err().unwrap().to_string();
    for part in ["lm_head.weight", "[380, 64]", "[384, 64]", ADAPTER_WEIGHTS] {
        assert!(error.contains(part), "{error}");
    }
}

/// A program says on standard error what is loose about an adapter, and reads the page.
#[test]
fn programs_say_what_is_loose() {
    let model = ModelCopy::new();
    let base = Config::from_dir(Path::new(model.folder())).unwrap();
    let config = medical_vision::lora::LoraConfig {
        r: 2,
        ..Default::default()
    };
    let mut adapter = Adapter::initial(config, &base.linear_modules(), 1).unwrap();
    adapter.pairs.remove("model.layers.0.self_attn.q_proj").unwrap();
    let dir: PathBuf = model.models().join("adapter");
    adapter.write(&dir).unwrap();
    edit(&dir, |config| {
        let names = config["target_modules"].as_array_mut().unwrap();
        names.retain(|name| name != "k_proj");
    });
    let page = golden_page("small_strip_rx.png");
    let read = run(&[
        "extract",
        "--device",
        "cpu",
        "--model",
        model.folder(),
        "--adapter",
        text(&dir),
        text(&page.path),
    ]);
    let said = stderr(&read);
    assert_eq!(code(&read), 0, "{said}");
    let warnings: Vec<&str> = said
        .lines()
        .filter(|line| line.starts_with("warning: "))
        .collect();
    assert_eq!(warnings.len(), 2, "{said}");
    assert!(
        warnings[0].contains("k_proj") && warnings[0].contains("left out"),
        "{said}"
    );
    assert!(warnings[1].contains("model.layers.0.self_attn.q_proj"), "{said}");
}
