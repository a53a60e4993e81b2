//! Folders in and out, without PEFT: shapes, names, what is refused.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use medical_vision::checkpoint::{Checkpoint, JsonFile};
use medical_vision::lora::{
    ADAPTER_CONFIG, ADAPTER_EVALUATION, ADAPTER_WEIGHTS, Adapter, LoraConfig, Targets,
};
use medical_vision::quant::Quantization;
use medical_vision::qwen2_5_vl::{Config, Model, ModelOptions};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn tiny() -> PathBuf {
    root().join("tests/fixtures/models/gelu-depth3")
}

/// The published 7B model's sizes.
fn seven_billion() -> Config {
    let json = json!({
        "model_type": "qwen2_5_vl", "image_token_id": 151655, "vocab_size": 152064, "hidden_size": 3584,
        "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4,
        "hidden_act": "silu", "max_position_embeddings": 128000, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "tie_word_embeddings": false,
        "vision_config": {
            "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "hidden_act": "silu",
            "in_chans": 3, "patch_size": 14, "temporal_patch_size": 2, "spatial_merge_size": 2, "window_size": 112,
            "out_hidden_size": 3584, "fullatt_block_indexes": [7, 15, 23, 31]
        }
    });
    Config::from_json(&JsonFile::new("config.json", json).unwrap()).unwrap()
}

/// A small adapter whose B is not zero.
fn adapter(config: LoraConfig, model: &Path, seed: u64) -> Adapter {
    let config = LoraConfig { r: 4, ..config };
    let mut adapter =
        Adapter::initial(config, &Config::from_dir(model).unwrap().linear_modules(), seed).unwrap();
    for pair in adapter.pairs.values_mut() {
        let wave = Tensor::arange(pair.b.numel() as i64, (Kind::Float, Device::Cpu)).sin() * 0.1;
        pair.b = wave.view_as(&pair.b);
    }
    adapter
}

fn load(dir: &Path, adapter: Option<&Adapter>) -> medical_vision::Result<Model> {
    let config = Config::from_dir(dir)?;
    Model::load(
        &Checkpoint::open(dir)?,
        &config,
        &Quantization::from_dir(dir)?,
        &ModelOptions {
            adapters: adapter.as_slice(),
            ..ModelOptions::new(Kind::Float, Device::Cpu)
        },
    )
}

fn tensors(dir: &Path) -> HashMap<String, Tensor> {
    Tensor::read_safetensors(dir.join(ADAPTER_WEIGHTS))
        .unwrap()
        .into_iter()
        .collect()
}

fn write_tensors(dir: &Path, tensors: &[(String, Tensor)]) {
    Tensor::write_safetensors(tensors, dir.join(ADAPTER_WEIGHTS)).unwrap();
}

fn change_config(dir: &Path, key: &str, value: Value) {
    let path = dir.join(ADAPTER_CONFIG);
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    config[key] = value;
    fs::write(&path, config.to_string()).unwrap();
}

#[test]
fn the_contract_s_modules_have_its_number_of_parameters() {
    let model = seven_billion();
    assert_eq!(
        LoraConfig::default().parameters(&model.linear_modules()).unwrap(),
        190_357_504
    );
    let without_vision = LoraConfig {
        exclude_modules: Some(Targets::Pattern(r".*\.visual\..*".to_owned())),
        ..LoraConfig::default()
    };
    assert_eq!(
        without_vision.parameters(&model.linear_modules()).unwrap(),
        161_480_704
    );
    let targets = LoraConfig::default().targets(&model.linear_modules()).unwrap();
    assert_eq!(targets.len(), 28 * 7 + 32 * 3);
    assert!(targets.iter().all(|module| module.name != "lm_head"));
}

#[test]
fn every_linear_module_is_in_the_model_s_files() {
    for model in [
        "gelu-depth3",
        "nested-bf16",
        "patch8",
        "untied-flat-sharded",
        "windows",
    ] {
        let dir = root().join("tests/fixtures/models").join(model);
        let (config, checkpoint) = (Config::from_dir(&dir).unwrap(), Checkpoint::open(&dir).unwrap());
        let mut matrices: Vec<String> = checkpoint
            .stored()
            .into_iter()
            .filter(|tensor| tensor.shape.len() == 2 && tensor.canonical != "model.embed_tokens.weight")
            .map(|tensor| tensor.canonical)
            .collect();
        if config.tie_word_embeddings {
            matrices.push("lm_head.weight".to_owned());
        }
        let mut listed: Vec<String> = config
            .linear_modules()
            .into_iter()
            .map(|module| {
                let name = format!("{}.weight", module.name);
                if name != "lm_head.weight" || !config.tie_word_embeddings {
                    checkpoint
                        .mapped(&name, &[module.outputs, module.inputs])
                        .unwrap();
                }
                name
            })
            .collect();
        matrices.sort();
        listed.sort();
        assert_eq!(matrices, listed, "{model}");
    }
}

#[test]
fn convolutions_and_embeddings_are_no_targets() {
    for (name, full) in [
        ("proj", "model.visual.patch_embed.proj"),
        ("embed_tokens", "model.language_model.embed_tokens"),
    ] {
        let config = LoraConfig {
            target_modules: Targets::Suffixes(vec![name.to_owned()]),
            ..LoraConfig::default()
        };
        let error = config
            .targets(&seven_billion().linear_modules())
            .unwrap_err()
            .to_string();
        assert!(error.contains(full), "{error}");
    }
    let all = LoraConfig {
        target_modules: Targets::Pattern("all-linear".to_owned()),
        ..LoraConfig::default()
    };
    assert_eq!(
        all.targets(&seven_billion().linear_modules()).unwrap().len(),
        28 * 7 + 32 * 5 + 2
    );
}

#[test]
fn a_new_adapter_is_peft_s_beginning() {
    let model = Config::from_dir(&tiny()).unwrap();
    let adapter = Adapter::initial(LoraConfig::default(), &model.linear_modules(), 7).unwrap();
    assert_eq!(
        adapter.parameters(),
        LoraConfig::default().parameters(&model.linear_modules()).unwrap()
    );
    for pair in adapter.pairs.values() {
        assert_eq!(pair.b.abs().max().double_value(&[]), 0.0);
        let bound = 1.0 / (pair.a.size()[1] as f64).sqrt();
        let largest = pair.a.abs().max().double_value(&[]);
        assert!(largest <= bound && largest > 0.98 * bound, "{largest} of {bound}");
        // A uniform distribution's deviation.
        let deviation = pair.a.std(false).double_value(&[]);
        assert!(
            (deviation * 3f64.sqrt() / bound - 1.0).abs() < 0.05,
            "{deviation} of {bound}"
        );
    }
    let fewer = LoraConfig {
        target_modules: Targets::Suffixes(vec!["q_proj".to_owned()]),
        ..LoraConfig::default()
    };
    let fewer = Adapter::initial(fewer, &model.linear_modules(), 7).unwrap();
    for (name, pair) in &fewer.pairs {
        assert_eq!(pair.a, adapter.pairs[name].a, "{name} depends on other modules");
    }
    let q = "model.layers.0.self_attn.q_proj";
    let other = Adapter::initial(LoraConfig::default(), &model.linear_modules(), 8).unwrap();
    assert_ne!(other.pairs[q].a, adapter.pairs[q].a);
    assert_ne!(
        adapter.pairs["model.layers.1.self_attn.q_proj"].a,
        adapter.pairs[q].a
    );
}

#[test]
fn what_is_written_is_peft_s_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("models/adapter");
    let config = LoraConfig {
        base_model_name_or_path: Some("models/base".to_owned()),
        ..LoraConfig::default()
    };
    let written = adapter(config, &tiny(), 1);
    written.write(&dir).unwrap();

    let stored = tensors(&dir);
    assert_eq!(stored.len(), 2 * written.pairs.len());
    let q = "base_model.model.model.language_model.layers.0.self_attn.q_proj";
    let model = Config::from_dir(&tiny()).unwrap();
    let hidden = model.text.hidden_size as i64;
    assert_eq!(stored[&format!("{q}.lora_A.weight")].size(), [4, hidden]);
    assert_eq!(stored[&format!("{q}.lora_B.weight")].size(), [hidden, 4]);
    let gate = "base_model.model.model.visual.blocks.0.mlp.gate_proj.lora_A.weight";
    assert_eq!(stored[gate].size(), [4, model.vision.hidden_size as i64]);

    let json: Value = serde_json::from_str(&fs::read_to_string(dir.join(ADAPTER_CONFIG)).unwrap()).unwrap();
    for (key, value) in [
        ("peft_type", json!("LORA")),
        ("task_type", json!("CAUSAL_LM")),
        ("r", json!(4)),
        ("lora_alpha", json!(128)),
        ("bias", json!("none")),
        ("base_model_name_or_path", json!("models/base")),
        ("modules_to_save", Value::Null),
    ] {
        assert_eq!(json[key], value, "{key}");
    }

    let read = Adapter::read(&dir).unwrap();
    assert_eq!(read.config, written.config);
    assert_eq!(read.pairs.len(), written.pairs.len());
    for (name, pair) in &read.pairs {
        let original = &written.pairs[name];
        assert_eq!((&pair.a, &pair.b, pair.scale), (&original.a, &original.b, 32.0));
    }
    let names: Vec<_> = fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert_eq!(fs::read_dir(folder.path().join("models")).unwrap().count(), 1);
}

#[test]
fn writing_again_keeps_the_adapter_that_was_there_with_all_that_is_said_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("adapter");
    let q = "model.layers.0.self_attn.q_proj";
    let written = [1, 2, 3].map(|seed| adapter(LoraConfig::default(), &tiny(), seed));
    assert_eq!(written[0].write(&dir).unwrap(), None);
    for (round, pair) in written.windows(2).enumerate() {
        fs::write(dir.join(ADAPTER_EVALUATION), r#"{"recommended": true}"#).unwrap();
        let previous = pair[1].write(&dir).unwrap().unwrap();
        assert_eq!(previous, folder.path().join("adapter.previous"));
        assert!(!dir.join(ADAPTER_EVALUATION).exists() && previous.join(ADAPTER_EVALUATION).exists());
        assert_eq!(
            Adapter::read(&dir).unwrap().pairs[q].a,
            pair[1].pairs[q].a,
            "{round}"
        );
        assert_eq!(
            Adapter::read(&previous).unwrap().pairs[q].a,
            pair[0].pairs[q].a,
            "{round}"
        );
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn values_that_are_no_numbers_are_neither_written_nor_read() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("adapter");
    let mut broken = adapter(LoraConfig::default(), &tiny(), 1);
    broken.write(&dir).unwrap();
    let pair = broken.pairs.values_mut().next().unwrap();
    let _ = pair.b.get(0).fill_(f64::NAN);
    let unwritten = folder.path().join("other");
    assert!(broken.write(&unwritten).is_err() && !unwritten.exists());

    let whole = fs::read(dir.join(ADAPTER_WEIGHTS)).unwrap();
    for bad in [f64::NAN, f64::INFINITY] {
        fs::write(dir.join(ADAPTER_WEIGHTS), &whole).unwrap();
        let stored: Vec<_> = tensors(&dir).into_iter().collect();
        let _ = stored[0].1.get(0).get(0).fill_(bad);
        write_tensors(&dir, &stored);
        let error = Adapter::read(&dir).unwrap_err().to_string();
        assert!(
            error.contains(ADAPTER_WEIGHTS) && error.contains(&stored[0].0),
            "{error}"
        );
    }
}

/// A folder with an adapter of the tiny model.
fn written() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("adapter");
    adapter(LoraConfig::default(), &tiny(), 1).write(&dir).unwrap();
    (folder, dir)
}

#[test]
fn an_adapter_of_another_base_is_refused_by_name_and_shapes() {
    let (_folder, dir) = written();
    let attach = |model: &str| {
        let model = root().join("tests/fixtures/models").join(model);
        let adapter = Adapter::read(&dir).unwrap();
        load(&model, Some(&adapter)).err().unwrap().to_string()
    };
    let error = attach("untied-flat-sharded");
    assert!(
        error.starts_with(&dir.join(ADAPTER_WEIGHTS).display().to_string()),
        "{error}"
    );
    let config = Config::from_dir(&root().join("tests/fixtures/models/untied-flat-sharded")).unwrap();
    let own = Config::from_dir(&tiny()).unwrap();
    let shape = |c: &Config| format!("[{}, {}]", c.text.hidden_size, c.text.intermediate_size);
    assert!(
        error.contains(&shape(&config)) && error.contains(&shape(&own)) && error.contains("mlp."),
        "{error}"
    );

    // As many layers as the base has, and one more.
    let mut adapter = Adapter::read(&dir).unwrap();
    let (_, pair) = adapter.pairs.pop_last().unwrap();
    adapter
        .pairs
        .insert("model.layers.99.mlp.up_proj".to_owned(), pair);
    let error = load(&tiny(), Some(&adapter)).err().unwrap().to_string();
    assert!(
        error.contains("model.layers.99.mlp.up_proj") && error.contains("no such"),
        "{error}"
    );
}

#[test]
fn missing_and_damaged_files_are_named() {
    let (_folder, dir) = written();
    let error = |dir: &Path| Adapter::read(dir).unwrap_err().to_string();
    let weights = dir.join(ADAPTER_WEIGHTS);
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..whole.len() - 5]).unwrap();
    assert!(error(&dir).contains(ADAPTER_WEIGHTS));
    fs::write(&weights, b"PK").unwrap();
    assert!(error(&dir).contains(ADAPTER_WEIGHTS));
    fs::remove_file(&weights).unwrap();
    assert!(error(&dir).contains("is missing"));
    fs::write(dir.join("adapter_model.bin"), b"pickle").unwrap();
    assert!(error(&dir).contains("can run code"));
    fs::write(&weights, &whole).unwrap();
    for text in ["", "[]", "{", "null"] {
        fs::write(dir.join(ADAPTER_CONFIG), text).unwrap();
        assert!(error(&dir).contains(ADAPTER_CONFIG), "{text}");
    }
    fs::remove_file(dir.join(ADAPTER_CONFIG)).unwrap();
    assert!(error(&dir).contains(ADAPTER_CONFIG));
    assert!(error(Path::new("/nowhere")).contains("/nowhere"));
}

#[test]
fn what_is_not_computed_is_refused() {
    let (_folder, dir) = written();
    let whole = fs::read_to_string(dir.join(ADAPTER_CONFIG)).unwrap();
    for (key, value) in [
        ("use_dora", json!(true)),
        ("modules_to_save", json!(["lm_head"])),
        ("r", json!(8)),
        ("bias", json!("lora_only")),
    ] {
        fs::write(dir.join(ADAPTER_CONFIG), &whole).unwrap();
        change_config(&dir, key, value);
        let error = Adapter::read(&dir).unwrap_err().to_string();
        let named = if key == "r" { "rank 8" } else { key };
        assert!(error.contains(named), "{error}");
    }
    fs::write(dir.join(ADAPTER_CONFIG), &whole).unwrap();

    let stored: Vec<_> = tensors(&dir).into_iter().collect();
    let one = || Tensor::ones([4, 4], (Kind::Float, Device::Cpu));
    let module = "base_model.model.model.language_model.layers.0.self_attn.q_proj";
    for (name, reason) in [
        ("base_model.model.model.norm.weight".to_owned(), "modules_to_save"),
        (format!("{module}.lora_magnitude_vector.weight"), "DoRA"),
        (
            "base_model.model.model.other.lora_embedding_A".to_owned(),
            "embedding",
        ),
        (format!("{module}.lora_B.bias"), "not a plain LoRA"),
        (
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight".to_owned(),
            "twice",
        ),
    ] {
        let mut more: Vec<_> = stored
            .iter()
            .map(|(name, tensor)| (name.clone(), tensor.shallow_clone()))
            .collect();
        more.push((name.clone(), one()));
        write_tensors(&dir, &more);
        let error = Adapter::read(&dir).unwrap_err().to_string();
        assert!(
            error.contains(reason) && error.contains(ADAPTER_WEIGHTS),
            "{name}: {error}"
        );
    }
    write_tensors(&dir, &stored[1..]);
    let error = Adapter::read(&dir).unwrap_err().to_string();
    assert!(
        error.contains(&format!("\"{}\" is missing", stored[0].0)),
        "{error}"
    );
}

#[test]
fn a_model_computes_with_the_trainer_s_own_tensors() {
    let mut adapter = adapter(LoraConfig::default(), &tiny(), 3);
    for pair in adapter.pairs.values_mut() {
        pair.a = pair.a.set_requires_grad(true);
        pair.b = pair.b.set_requires_grad(true);
    }
    let model = load(&tiny(), Some(&adapter)).unwrap();
    let ids = [5i64, 9, 3];
    let logits = |model: &Model| {
        let mut cache = model.cache(8).unwrap();
        let prefill = model
            .prefill(
                &ids,
                None,
                &[],
                &mut cache,
                medical_vision::qwen2_5_vl::LogitsToKeep::All,
            )
            .unwrap();
        model.logits(&prefill.hidden).unwrap()
    };
    let before = logits(&model);
    tch::no_grad(|| {
        for pair in adapter.pairs.values_mut() {
            let _ = pair.b.zero_();
        }
    });
    let after = logits(&model);
    assert!((&before - &after).abs().max().double_value(&[]) > 1e-3);
    let bare = logits(&load(&tiny(), None).unwrap());
    assert_eq!(after, bare);
}
