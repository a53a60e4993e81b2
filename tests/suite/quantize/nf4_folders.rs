//! Folders that transformers and bitsandbytes wrote, and folders written as they write them (tests/fixtures/makers/nf4.py).

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use medical_vision::checkpoint::Checkpoint;
use medical_vision::fs::Manifest;
use medical_vision::processing::Grid;
use medical_vision::quant::Quantization;
use medical_vision::quant::nf4::{Nf4Weight, QuantType, WeightErrors};
use medical_vision::quantize::{
    OutputFolder, Watch,
    nf4::{Nf4Options, quantize_folder},
};
use medical_vision::qwen2_5_vl::{Config, LogitsToKeep, Model, ModelOptions};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::suite::fixtures;

/// Each folder of bitsandbytes', the model it was made from, and how.
fn folders() -> [(&'static str, &'static str, Nf4Options); 2] {
    let single = Nf4Options {
        quant_type: QuantType::Fp4,
        double_quant: false,
        skip_modules: vec!["model.visual".to_owned()],
        ..Nf4Options::default()
    };
    [
        ("nested-bf16-nf4", "nested-bf16", Nf4Options::default()),
        ("gelu-depth3-fp4-single", "gelu-depth3", single),
    ]
}

fn quantize(source: &Path, target: &Path, options: &Nf4Options) -> medical_vision::Result<OutputFolder> {
    let watch = Watch {
        stage: &|_, _, _| {},
        total: &|_| {},
        progress: &|_| {},
        stop: &AtomicBool::new(false),
    };
    quantize_folder(source, target, options, watch)
}

fn load(dir: &Path, kind: Kind) -> medical_vision::Result<Model> {
    let config = Config::from_dir(dir)?;
    Model::load(
        &Checkpoint::open(dir)?,
        &config,
        &Quantization::from_dir(dir)?,
        &ModelOptions::new(kind, Device::Cpu),
    )
}

fn tensors(file: &str) -> HashMap<String, Tensor> {
    let tensors = Tensor::read_safetensors(fixtures().join(file)).unwrap();
    tensors.into_iter().collect()
}

fn largest(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a.to_kind(Kind::Float) - b.to_kind(Kind::Float))
        .abs()
        .max()
        .double_value(&[])
}

/// A prompt's ids, patches and grids.
struct Prompt {
    ids: Vec<i64>,
    pixels: Tensor,
    grids: Vec<Grid>,
}

impl Prompt {
    fn ragged(model: &str) -> Self {
        let golden = tensors(&format!("goldens/{model}-ragged.safetensors"));
        let ids = |name: &str| Vec::<i64>::try_from(golden[name].flatten(0, -1)).unwrap();
        let grid = |g: &[i64]| Grid {
            t: g[0] as usize,
            h: g[1] as usize,
            w: g[2] as usize,
        };
        Self {
            ids: ids("input_ids"),
            pixels: golden["pixel_values"].shallow_clone(),
            grids: ids("image_grid_thw").chunks(3).map(grid).collect(),
        }
    }

    /// Logits after the prompt and `more`, `[tokens, vocab]`.
    fn logits(&self, model: &Model, more: &[i64]) -> Tensor {
        let ids = [&self.ids, more].concat();
        let features = model.image_features(&self.pixels, &self.grids).unwrap();
        let mut cache = model.cache(ids.len()).unwrap();
        let prefill = model
            .prefill(&ids, Some(&features), &self.grids, &mut cache, LogitsToKeep::All)
            .unwrap();
        model.logits(&prefill.hidden).unwrap()
    }
}

#[test]
fn folders_of_bitsandbytes_compute_what_they_compute_there() {
    for (folder, source, _) in folders() {
        let golden = tensors(&format!("nf4/{folder}-logits.safetensors"));
        let (exact, rounded) = (&golden["logits.float32"], &golden["logits.bfloat16"]);
        let rounding = largest(exact, rounded);
        let prompt = Prompt::ragged(source);
        let model = load(&fixtures().join("nf4").join(folder), Kind::Float).unwrap();
        let error = largest(&prompt.logits(&model, &[]), exact);
        assert!(error < rounding / 4.0, "{folder}: {error}, {rounding} by bf16");
        let model = load(&fixtures().join("nf4").join(folder), Kind::BFloat16).unwrap();
        let error = largest(&prompt.logits(&model, &[]), rounded);
        assert!(error < 2.0 * rounding, "{folder} in bf16: {error}, {rounding}");
        // Without quantization the logits are others: the test can fail.
        let plain = load(&fixtures().join("models").join(source), Kind::Float).unwrap();
        assert!(
            largest(&prompt.logits(&plain, &[]), exact) > 4.0 * rounding,
            "{folder}"
        );
    }
}

#[test]
fn one_token_at_a_time_computes_what_the_whole_prompt_does() {
    for (folder, source, _) in folders() {
        let prompt = Prompt::ragged(source);
        let model = load(&fixtures().join("nf4").join(folder), Kind::Float).unwrap();
        let features = model.image_features(&prompt.pixels, &prompt.grids).unwrap();
        let mut cache = model.cache(prompt.ids.len() + 4).unwrap();
        model
            .prefill(
                &prompt.ids,
                Some(&features),
                &prompt.grids,
                &mut cache,
                LogitsToKeep::Last,
            )
            .unwrap();
        let more = [5, 77, 210];
        for (i, &token) in more.iter().enumerate() {
            let one = model.decode(token, &mut cache).unwrap();
            let all = prompt.logits(&model, &more[..=i]);
            let error = largest(&one, &all.narrow(0, all.size()[0] - 1, 1));
            let scale = all.abs().max().double_value(&[]);
            assert!(error < 1e-3 * scale, "{folder}: {error} of {scale}");
        }
    }
}

/// Dtype, shape and bytes of every tensor, by the hub's names.
fn contents(dir: &Path) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
    let checkpoint = Checkpoint::open(dir).unwrap();
    let stored = checkpoint.stored().into_iter();
    stored
        .map(|tensor| {
            let (_, dtype, shape, bytes) = checkpoint.bytes(&tensor.canonical).unwrap();
            (tensor.canonical, (dtype.to_string(), shape, bytes.to_vec()))
        })
        .collect()
}

fn quantization_config(dir: &Path) -> Value {
    let config = std::fs::read(dir.join("config.json")).unwrap();
    serde_json::from_slice::<Value>(&config).unwrap()["quantization_config"].take()
}

#[test]
fn our_folders_hold_the_bytes_of_theirs() {
    for (folder, source, options) in folders() {
        let home = tempfile::tempdir().unwrap();
        let (target, theirs) = (home.path().join("made"), fixtures().join("nf4").join(folder));
        let source = fixtures().join("models").join(source);
        let made = quantize(&source, &target, &options).unwrap();
        assert!(!made.up_to_date);
        assert!(contents(&target) == contents(&theirs), "{folder}");
        let (mut ours, mut theirs) = (quantization_config(&target), quantization_config(&theirs));
        // Ours names each module, which every version of transformers understands in the same way.
        let (skipped, pattern) = (
            ours["llm_int8_skip_modules"].take(),
            theirs["llm_int8_skip_modules"].take(),
        );
        assert_eq!(skipped.is_null(), pattern.is_null());
        if let Some(skipped) = skipped.as_array() {
            let begins = |name: &str| name == "lm_head" || name.starts_with("model.visual.");
            assert!(skipped.len() > 3 && skipped.iter().all(|name| begins(name.as_str().unwrap())));
        }
        for key in theirs.as_object().unwrap().keys() {
            assert_eq!(ours[key], theirs[key], "{folder}: {key}");
        }
        let manifest = Manifest::read(&target).unwrap();
        assert!(manifest.complete && manifest.intact(&target).len() == manifest.files.len());
        assert!(quantize(&source, &target, &options).unwrap().up_to_date);
    }
}

#[test]
fn sharded_models_and_every_option_come_back() {
    let source = fixtures().join("models/untied-flat-sharded");
    let plain = Checkpoint::open(&source).unwrap();
    for (quant_type, blocksize, double_quant) in [
        (QuantType::Nf4, 32, true),
        (QuantType::Nf4, 4096, false),
        (QuantType::Fp4, 128, true),
    ] {
        let options = Nf4Options {
            quant_type,
            blocksize,
            double_quant,
            skip_modules: vec!["o_proj".to_owned()],
            file_mib: 0,
        };
        let home = tempfile::tempdir().unwrap();
        let target = home.path().join("made");
        quantize(&source, &target, &options).unwrap();
        let made = Checkpoint::open(&target).unwrap();
        let report = std::fs::read(target.join("quantization_report.json")).unwrap();
        let report: WeightErrors = serde_json::from_slice(&report).unwrap();
        let mut quantized = 0;
        for tensor in plain.stored() {
            let shape = &tensor.shape;
            let name = &tensor.canonical;
            let linear = <[usize; 2]>::try_from(shape.clone()).ok();
            let weight = linear.and_then(|shape| Nf4Weight::load(&made, name, shape, Device::Cpu).unwrap());
            let before = plain.load(name, shape, Kind::Float, Device::Cpu).unwrap();
            let Some(weight) = weight else {
                let after = made.load(name, shape, Kind::Float, Device::Cpu).unwrap();
                assert_eq!(before, after, "{name}");
                continue;
            };
            quantized += 1;
            assert!(!name.contains("o_proj") && !name.contains("lm_head"), "{name}");
            let mut after = before.empty_like();
            weight.dequantize_into(&mut after).unwrap();
            // The same by libtorch's operations, as on a GPU; bf16 rounds what f32 holds.
            let mut narrow = before.empty_like().to_kind(Kind::BFloat16);
            weight.dequantize_into(&mut narrow).unwrap();
            assert_eq!(narrow, after.to_kind(Kind::BFloat16), "{name}");
            let known = report.tensors[&tensor.name];
            let difference = &after - &before;
            let rmse = difference.square().mean(Kind::Double).sqrt().double_value(&[]);
            assert!((rmse - known.rmse).abs() < 1e-6 * rmse, "{name}: {rmse}");
            assert!((largest(&after, &before) - known.max_abs).abs() < 1e-6, "{name}");
            assert!(rmse > 0.0 && rmse < 0.25 * known.rms, "{name}: {rmse}");
            assert!(
                known.cosine > 0.96 && known.cosine < 1.0,
                "{name}: {}",
                known.cosine
            );
        }
        assert_eq!(quantized, report.tensors.len());
        let worst = report.tensors.values().map(|error| error.max_abs);
        assert_eq!(report.total.max_abs, worst.fold(0.0, f64::max));
        load(&target, Kind::Float).unwrap();
    }
}

/// A copy of a folder with something changed.
fn spoilt(folder: &str, spoil: impl FnOnce(&Path)) -> String {
    let home = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixtures().join(folder)).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, home.path().join(path.file_name().unwrap())).unwrap();
    }
    spoil(home.path());
    match load(home.path(), Kind::Float) {
        Ok(_) => "it loads".to_owned(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn an_unknown_method_is_an_error_that_names_the_known_ones() {
    let message = spoilt("nf4/nested-bf16-nf4", |dir| {
        let path = dir.join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config["quantization_config"] = json!({"quant_method": "gptq", "bits": 4});
        std::fs::write(&path, config.to_string()).unwrap();
    });
    for word in ["config.json", "\"gptq\"", "\"bitsandbytes\"", "quantize_base"] {
        assert!(message.contains(word), "{message}");
    }
}

/// Rewrites the tensors of the folder's file.
fn rewrite(dir: &Path, change: impl Fn(&str, &mut String, &mut Vec<usize>, &mut Vec<u8>) -> bool) {
    use safetensors::{Dtype, tensor::TensorView};
    let mut kept = Vec::new();
    for (name, (dtype, mut shape, mut bytes)) in contents(dir) {
        let mut dtype = dtype;
        if change(&name, &mut dtype, &mut shape, &mut bytes) {
            let dtype = match dtype.as_str() {
                "U8" => Dtype::U8,
                "F32" => Dtype::F32,
                "BF16" => Dtype::BF16,
                "I8" => Dtype::I8,
                other => panic!("{other}"),
            };
            kept.push((name, dtype, shape, bytes));
        }
    }
    let views = kept
        .iter()
        .map(|(name, dtype, shape, bytes)| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    let file = safetensors::serialize(views, None).unwrap();
    std::fs::write(dir.join("model.safetensors"), file).unwrap();
}

#[test]
fn broken_states_and_parts_are_named() {
    const WEIGHT: &str = "model.layers.0.mlp.up_proj.weight";
    type Change = fn(&str, &mut String, &mut Vec<usize>, &mut Vec<u8>) -> bool;
    let cases: [(&str, Change); 8] = [
        ("missing", |name, _, _, _| {
            name != format!("{WEIGHT}.nested_absmax")
        }),
        ("missing", |name, _, _, _| name != WEIGHT),
        ("I8", |name, dtype, _, _| {
            if name == format!("{WEIGHT}.absmax") {
                *dtype = "I8".to_owned();
            }
            true
        }),
        ("its quant_state requires", |name, _, shape, bytes| {
            if name == WEIGHT {
                bytes.pop();
                shape[0] -= 1;
            }
            true
        }),
        ("quantization state", |name, _, shape, bytes| {
            if name.starts_with(WEIGHT) && name.contains("quant_state") {
                bytes.truncate(20);
                *shape = vec![20];
            }
            true
        }),
        ("requires", |name, _, shape, bytes| {
            if name.starts_with(WEIGHT) && name.contains("quant_state") {
                let text = String::from_utf8(bytes.clone()).unwrap();
                *bytes = text.replace("\"shape\": [", "\"shape\": [1").into_bytes();
                *shape = vec![bytes.len()];
            }
            true
        }),
        ("contradicts its name", |name, _, shape, bytes| {
            if name.starts_with(WEIGHT) && name.contains("quant_state") {
                let text = String::from_utf8(bytes.clone()).unwrap();
                *bytes = text.replace("\"nf4\"", "\"fp4\"").into_bytes();
                *shape = vec![bytes.len()];
            }
            true
        }),
        ("not the table", |name, _, _, bytes| {
            if name == format!("{WEIGHT}.quant_map") {
                bytes[3] ^= 0x40;
            }
            true
        }),
    ];
    for (word, change) in cases {
        let message = spoilt("nf4/nested-bf16-nf4", |dir| rewrite(dir, change));
        assert!(
            message.contains(word) && message.contains(WEIGHT),
            "{word}: {message}"
        );
    }
    let message = spoilt("nf4/nested-bf16-nf4", |dir| rewrite(dir, |_, _, _, _| true));
    assert_eq!(message, "it loads");
}

#[test]
fn a_quantized_or_damaged_source_is_refused_and_nothing_is_left() {
    let home = tempfile::tempdir().unwrap();
    let target = home.path().join("made");
    let source = fixtures().join("nf4/nested-bf16-nf4");
    let error = quantize(&source, &target, &Nf4Options::default()).unwrap_err();
    assert!(error.to_string().contains("quantized already"), "{error}");
    assert!(!target.exists());
    for (options, word) in [
        (
            Nf4Options {
                blocksize: 48,
                ..Nf4Options::default()
            },
            "--blocksize",
        ),
        (
            Nf4Options {
                skip_modules: vec!["no_such".to_owned()],
                ..Nf4Options::default()
            },
            "--skip-modules",
        ),
    ] {
        let error = quantize(&fixtures().join("models/nested-bf16"), &target, &options).unwrap_err();
        assert!(error.to_string().contains(word), "{error}");
        assert!(!target.exists());
    }
}

#[test]
fn a_model_that_somebody_else_made_is_not_replaced() {
    let home = tempfile::tempdir().unwrap();
    let target = home.path().join("made");
    std::fs::create_dir(&target).unwrap();
    std::fs::write(target.join("model.safetensors"), b"precious").unwrap();
    let source = fixtures().join("models/nested-bf16");
    let error = quantize(&source, &target, &Nf4Options::default()).unwrap_err();
    assert!(error.to_string().contains("did not write"), "{error}");
    assert_eq!(
        std::fs::read(target.join("model.safetensors")).unwrap(),
        b"precious"
    );
}

#[test]
fn what_is_no_number_stops_the_work() {
    let home = tempfile::tempdir().unwrap();
    let source = home.path().join("source");
    std::fs::create_dir(&source).unwrap();
    for entry in std::fs::read_dir(fixtures().join("models/nested-bf16")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, source.join(path.file_name().unwrap())).unwrap();
    }
    rewrite(&source, |name, _, _, bytes| {
        if name == "model.layers.0.mlp.up_proj.weight" {
            bytes[100..102].copy_from_slice(&[0xc0, 0x7f]);
        }
        true
    });
    let target = home.path().join("made");
    let error = quantize(&source, &target, &Nf4Options::default()).unwrap_err();
    assert!(
        error.to_string().contains("up_proj") && error.to_string().contains("finite"),
        "{error}"
    );
    assert!(!target.exists());
}
