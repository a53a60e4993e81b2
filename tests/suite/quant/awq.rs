//! AWQ: folders in AutoAWQ's layout against NumPy's unpacking of them (tests/fixtures/makers/awq.py).

use std::collections::HashMap;
use std::path::Path;

use medical_vision::checkpoint::Checkpoint;
use medical_vision::processing::Grid;
use medical_vision::quant::awq::{AwqWeight, Grouped};
use medical_vision::quant::{Awq, Quantization};
use medical_vision::qwen2_5_vl::{Config, LogitsToKeep, Model, ModelOptions};
use tch::{Device, Kind, Tensor};

use crate::suite::fixtures;

fn tensors(file: &str) -> HashMap<String, Tensor> {
    let tensors = Tensor::read_safetensors(fixtures().join(file)).unwrap();
    tensors.into_iter().collect()
}

fn integers(t: &Tensor) -> Vec<i64> {
    Vec::try_from(t.flatten(0, -1)).unwrap()
}

fn largest(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a.to_kind(Kind::Double) - b.to_kind(Kind::Double))
        .abs()
        .max()
        .double_value(&[])
}

/// Names of the matrices in awq.safetensors and their groups.
fn cases(golden: &HashMap<String, Tensor>) -> Vec<(String, usize)> {
    let mut cases: Vec<_> = golden
        .keys()
        .filter_map(|key| key.strip_suffix(".qweight"))
        .map(|name| (name.to_owned(), name.rsplit_once('-').unwrap().1.parse().unwrap()))
        .collect();
    cases.sort();
    assert!(cases.len() >= 9);
    cases
}

fn settings(group: usize) -> Awq {
    Awq {
        group_size: Some(group),
        modules_to_not_convert: None,
    }
}

/// A model folder, as far as weights go, of one file's tensors.
fn folder(file: &str) -> (tempfile::TempDir, Checkpoint) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(fixtures().join(file), dir.path().join("model.safetensors")).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    (dir, checkpoint)
}

#[test]
fn rounding_and_packing_equal_numpys() {
    let golden = tensors("awq.safetensors");
    for (name, group) in cases(&golden) {
        let weight = &golden[&format!("{name}.weight")];
        let made = Grouped::round(weight, group as i64).unwrap();
        let packed = made.pack().unwrap();
        for (part, made) in [
            ("qweight", &packed.qweight),
            ("qzeros", &packed.qzeros),
            ("scales", &packed.scales),
            ("dequantized", &made.values().unwrap()),
        ] {
            assert_eq!(made, &golden[&format!("{name}.{part}")], "{name}.{part}");
        }
    }
}

#[test]
fn weights_are_what_numpy_unpacks() {
    let golden = tensors("awq.safetensors");
    let (_dir, checkpoint) = folder("awq.safetensors");
    for (name, group) in cases(&golden) {
        let expected = &golden[&format!("{name}.dequantized")];
        let (rows, columns) = expected.size2().unwrap();
        let shape = [rows as usize, columns as usize];
        let load = |group: usize| {
            AwqWeight::load(
                &checkpoint,
                &settings(group),
                &format!("{name}.weight"),
                shape,
                Device::Cpu,
            )
        };
        let weight = load(group).unwrap().expect("quantized");
        assert_eq!(weight.shape(), (rows, columns));
        for kind in [Kind::Float, Kind::Half, Kind::BFloat16] {
            let mut values = Tensor::empty([rows, columns], (kind, Device::Cpu));
            weight.dequantize_into(&mut values).unwrap();
            assert_eq!(values, expected.to_kind(kind), "{name} as {kind:?}");
        }
        let error = load(group / 2).err().unwrap().to_string();
        assert!(error.contains(&format!("{name}.qzeros")), "{error}");
    }
    let none = AwqWeight::load(&checkpoint, &settings(32), "other.weight", [24, 64], Device::Cpu).unwrap();
    assert!(none.is_none());
}

/// bf16 says more small numbers than f16: both kinds of scales keep every one of theirs.
#[test]
fn scales_in_bf16_are_exact() {
    let golden = tensors("awq.safetensors");
    for shrunk in [1.0, 1e-7] {
        let dir = tempfile::tempdir().unwrap();
        let turned = golden
            .iter()
            .map(|(name, tensor)| match name.ends_with(".scales") {
                true => {
                    let scales = (tensor.to_kind(Kind::Float) * shrunk).to_kind(Kind::BFloat16);
                    (name.clone(), scales)
                }
                false => (name.clone(), tensor.shallow_clone()),
            });
        let turned: Vec<_> = turned.collect();
        Tensor::write_safetensors(&turned, dir.path().join("model.safetensors")).unwrap();
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let turned: HashMap<_, _> = turned.into_iter().collect();
        for (name, group) in cases(&golden) {
            let halves = &golden[&format!("{name}.dequantized")];
            let (rows, columns) = halves.size2().unwrap();
            let (shape, weight) = ([rows as usize, columns as usize], format!("{name}.weight"));
            let weight = AwqWeight::load(&checkpoint, &settings(group), &weight, shape, Device::Cpu);
            let weight = weight.unwrap().expect("quantized");
            // The golden's whole numbers, times the scales as they are stored now.
            let spread = |scales: &Tensor| {
                let scales = scales.to_kind(Kind::Float).tr().contiguous();
                scales.repeat_interleave_self_int(group as i64, 1, None)
            };
            let before = spread(&golden[&format!("{name}.scales")]);
            let codes = (halves / &before).nan_to_num(0.0, None, None).round();
            let expected = codes * spread(&turned[&format!("{name}.scales")]);
            let mut values = Tensor::empty([rows, columns], (Kind::Float, Device::Cpu));
            weight.dequantize_into(&mut values).unwrap();
            assert_eq!(values, expected, "{name} times {shrunk}");
            let mut halves = Tensor::empty([rows, columns], (Kind::BFloat16, Device::Cpu));
            weight.dequantize_into(&mut halves).unwrap();
            assert_eq!(halves, expected.to_kind(Kind::BFloat16), "{name} times {shrunk}");
        }
    }
}

/// A whole folder, which the prompt's pass and the CPU's kernel compute alike.
#[test]
fn a_folder_with_scales_in_bf16_computes_the_same_both_ways() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(
        fixtures().join("models/awq/config.json"),
        dir.path().join("config.json"),
    )
    .unwrap();
    let mut all = Tensor::read_safetensors(fixtures().join("models/awq/model.safetensors")).unwrap();
    for (name, tensor) in &mut all {
        if name.ends_with(".scales") {
            *tensor = tensor.to_kind(Kind::BFloat16);
        }
    }
    Tensor::write_safetensors(&all, dir.path().join("model.safetensors")).unwrap();
    let config = Config::from_dir(dir.path()).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let quantization = Quantization::from_dir(dir.path()).unwrap();
    let options = ModelOptions::new(Kind::Float, Device::Cpu);
    let model = Model::load(&checkpoint, &config, &quantization, &options).unwrap();
    let golden = tensors("goldens/awq-text.safetensors");
    let ids = integers(&golden["input_ids"]);
    let mut cache = model.cache(ids.len()).unwrap();
    let whole = model
        .prefill(&ids, None, &[], &mut cache, LogitsToKeep::All)
        .unwrap();
    let whole = model.logits(&whole.hidden).unwrap();
    // Rounded scales move the logits a little.
    let moved = largest(&whole, &golden["logits"]);
    assert!(moved > 1e-3 && moved < 1.0, "{moved}");
    let mut cache = model.cache(ids.len()).unwrap();
    let first = model
        .prefill(&ids[..1], None, &[], &mut cache, LogitsToKeep::All)
        .unwrap();
    let mut rows = vec![model.logits(&first.hidden).unwrap()];
    rows.extend(ids[1..].iter().map(|&id| model.decode(id, &mut cache).unwrap()));
    let off = largest(&Tensor::cat(&rows, 0), &whole);
    assert!(off < 2e-4, "{off}");
}

#[test]
fn a_folder_computes_what_its_unpacked_weights_do() {
    let dir = fixtures().join("models/awq");
    let config = Config::from_dir(&dir).unwrap();
    let model = Model::load(
        &Checkpoint::open(&dir).unwrap(),
        &config,
        &Quantization::from_dir(&dir).unwrap(),
        &ModelOptions::new(Kind::Float, Device::Cpu),
    )
    .unwrap();
    for case in ["ragged", "text"] {
        let golden = tensors(&format!("goldens/awq-{case}.safetensors"));
        let ids = integers(&golden["input_ids"]);
        let grids: Vec<Grid> = golden.get("image_grid_thw").map_or_else(Vec::new, |t| {
            let grid = |g: &[i64]| Grid {
                t: g[0] as usize,
                h: g[1] as usize,
                w: g[2] as usize,
            };
            integers(t).chunks(3).map(grid).collect()
        });
        let pixels = golden.get("pixel_values");
        let features = pixels.map(|pixels| model.image_features(pixels, &grids).unwrap());
        let mut cache = model.cache(ids.len() + 24).unwrap();
        let prefill = model
            .prefill(&ids, features.as_ref(), &grids, &mut cache, LogitsToKeep::All)
            .unwrap();
        let logits = model.logits(&prefill.hidden).unwrap();
        let error = largest(&logits, &golden["logits"]);
        assert!(error < 2e-4, "{case}: {error}");
        // gptqmodel computes in half precision, from the folder alone.
        let error = largest(&logits, &golden["logits_gptqmodel"]);
        let scale = logits.abs().max().double_value(&[]);
        assert!(
            error < 0.02 * scale,
            "{case}: {error} of {scale} from gptqmodel's"
        );
        let best = |logits: &Tensor| logits.select(0, -1).argmax(None, false).int64_value(&[]);
        let mut greedy = vec![best(&logits)];
        while greedy.len() < 24 {
            let next = model.decode(greedy[greedy.len() - 1], &mut cache).unwrap();
            greedy.push(best(&next));
        }
        assert_eq!(greedy, integers(&golden["greedy"]), "{case}");
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let (_dir, checkpoint) = folder("awq.safetensors");
    let load = |name: &str, group, shape| {
        let error = AwqWeight::load(&checkpoint, &settings(group), name, shape, Device::Cpu);
        error.err().expect("an error").to_string()
    };
    for (error, words) in [
        (
            load("normal-64.weight", 48, [24, 64]),
            ["normal-64.qweight", "group_size"],
        ),
        (
            load("normal-64.weight", 64, [20, 64]),
            ["normal-64.qweight", "20 x 64"],
        ),
        (
            load("normal-64.weight", 64, [32, 64]),
            ["normal-64.qweight", "[64, 4]"],
        ),
    ] {
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    // A scale that is no number.
    let dir = tempfile::tempdir().unwrap();
    let mut parts = tensors("awq.safetensors");
    let _ = parts
        .get_mut("normal-64.scales")
        .unwrap()
        .get(0)
        .get(3)
        .fill_(f64::NAN);
    let parts: Vec<_> = parts.iter().collect();
    Tensor::write_safetensors(&parts, dir.path().join("model.safetensors")).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let error = AwqWeight::load(
        &checkpoint,
        &settings(64),
        "normal-64.weight",
        [24, 64],
        Device::Cpu,
    );
    let error = error.err().expect("an error").to_string();
    assert!(
        error.contains("normal-64.scales") && error.contains("finite"),
        "{error}"
    );
}

#[test]
fn the_precision_is_told() {
    use medical_vision::engine::{LoadOptions, Reader};
    let dir = tempfile::tempdir().unwrap();
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/qwen25-vl-nano");
    for entry in std::fs::read_dir(&nano).unwrap().flatten() {
        std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let path = dir.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    config["quantization_config"] = serde_json::json!({"quant_method": "awq", "bits": 4, "group_size": 128});
    std::fs::write(&path, config.to_string()).unwrap();
    // No weight of it is quantized, and it loads: the names in the folder decide.
    let reader = Reader::load(dir.path(), &LoadOptions::default()).unwrap();
    assert_eq!(reader.info().precision, "INT4 (AWQ)");
}
