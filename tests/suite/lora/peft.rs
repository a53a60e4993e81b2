//! Adapters that PEFT wrote: the models compute with them what PEFT computes.

use std::collections::HashMap;
use std::path::Path;

use medical_vision::checkpoint::Checkpoint;
use medical_vision::lora::{Adapter, LoraConfig};
use medical_vision::processing::Grid;
use medical_vision::quant::Quantization;
use medical_vision::qwen2_5_vl::{Config, LogitsToKeep, Model, ModelOptions};
use tch::{Device, Kind, Tensor};

use crate::suite::fixtures;

const TOLERANCE: f64 = 2e-4;

/// Tokens at the end of a golden's ids that are fed one at a time.
const MORE: usize = 6;

/// Adapter and base.
const CASES: [(&str, &str); 3] = [
    ("plain", "untied-flat-sharded"),
    ("rslora-hub-keys", "nested-bf16"),
    ("patterns", "windows"),
];

fn tensors(file: &str) -> HashMap<String, Tensor> {
    Tensor::read_safetensors(fixtures().join(file))
        .unwrap()
        .into_iter()
        .collect()
}

fn integers(tensor: &Tensor) -> Vec<i64> {
    Vec::try_from(tensor.flatten(0, -1)).unwrap()
}

fn largest(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a.to_kind(Kind::Float) - b.to_kind(Kind::Float))
        .abs()
        .max()
        .double_value(&[])
}

pub fn read(name: &str) -> Adapter {
    Adapter::read(&fixtures().join("adapters").join(name)).unwrap()
}

pub fn load(dir: &Path, adapter: Option<&Adapter>, kind: Kind) -> Model {
    let config = Config::from_dir(dir).unwrap();
    Model::load(
        &Checkpoint::open(dir).unwrap(),
        &config,
        &Quantization::from_dir(dir).unwrap(),
        &ModelOptions {
            adapters: adapter.as_slice(),
            ..ModelOptions::new(kind, Device::Cpu)
        },
    )
    .unwrap()
}

/// A golden's prompt and logits.
pub struct Golden {
    ids: Vec<i64>,
    pixels: Tensor,
    grids: Vec<Grid>,
    pub tensors: HashMap<String, Tensor>,
}

impl Golden {
    pub fn new(adapter: &str, model: &str) -> Self {
        let tensors = tensors(&format!("adapters/{adapter}.safetensors"));
        let page = self::tensors(&format!("goldens/{model}-ragged.safetensors"));
        let grid = |g: &[i64]| Grid {
            t: g[0] as usize,
            h: g[1] as usize,
            w: g[2] as usize,
        };
        Self {
            ids: integers(&tensors["input_ids"]),
            pixels: page["pixel_values"].shallow_clone(),
            grids: integers(&page["image_grid_thw"]).chunks(3).map(grid).collect(),
            tensors,
        }
    }

    /// Logits of all ids; the last ones go through `decode`, one at a time.
    pub fn logits(&self, model: &Model) -> Tensor {
        let features = model.image_features(&self.pixels, &self.grids).unwrap();
        let mut cache = model.cache(self.ids.len()).unwrap();
        let (prompt, more) = self.ids.split_at(self.ids.len() - MORE);
        let prefill = model.prefill(
            prompt,
            Some(&features),
            &self.grids,
            &mut cache,
            LogitsToKeep::All,
        );
        let mut all = vec![model.logits(&prefill.unwrap().hidden).unwrap()];
        for &token in more {
            all.push(model.decode(token, &mut cache).unwrap());
        }
        Tensor::cat(&all, 0)
    }
}

#[test]
fn models_compute_with_peft_s_adapters_what_peft_computes() {
    for (name, model) in CASES {
        let golden = Golden::new(name, model);
        let dir = fixtures().join("models").join(model);
        let got = golden.logits(&load(&dir, Some(&read(name)), Kind::Float));
        let worst = largest(&got, &golden.tensors["logits"]);
        assert!(worst <= TOLERANCE, "{name}: logits differ by {worst}");
        // Without the adapter they are others: the test can fail.
        let bare = golden.logits(&load(&dir, None, Kind::Float));
        assert!(largest(&bare, &golden.tensors["logits"]) > 1.0, "{name}");
    }
}

#[test]
fn a_quantized_base_carries_an_adapter_unmerged() {
    let golden = Golden::new("rslora-hub-keys", "nested-bf16");
    let dir = fixtures().join("nf4/nested-bf16-nf4");
    let got = golden.logits(&load(&dir, Some(&read("rslora-hub-keys")), Kind::Float));
    let worst = largest(&got, &golden.tensors["logits.on_nf4"]);
    assert!(worst <= TOLERANCE, "logits differ by {worst}");
    assert!(largest(&golden.tensors["logits"], &golden.tensors["logits.on_nf4"]) > 0.01);
}

#[test]
fn half_precision_computes_about_the_same() {
    let golden = Golden::new("plain", "untied-flat-sharded");
    let dir = fixtures().join("models/untied-flat-sharded");
    let model = load(&dir, Some(&read("plain")), Kind::BFloat16);
    let (got, want) = (golden.logits(&model), &golden.tensors["logits"]);
    let cosine = Tensor::cosine_similarity(&got, want, 1, 1e-8)
        .min()
        .double_value(&[]);
    assert!(cosine > 0.99, "cosine {cosine}");
}

#[test]
fn an_awq_base_computes_the_adapter_in_both_ways() {
    let dir = fixtures().join("models/awq");
    let config = LoraConfig {
        r: 4,
        ..LoraConfig::default()
    };
    let mut adapter = Adapter::initial(config, &Config::from_dir(&dir).unwrap().linear_modules(), 5).unwrap();
    for pair in adapter.pairs.values_mut() {
        let wave = Tensor::arange(pair.b.numel() as i64, (Kind::Float, Device::Cpu)).sin() * 0.05;
        pair.b = wave.view_as(&pair.b);
    }
    let model = load(&dir, Some(&adapter), Kind::Float);
    let ids: Vec<i64> = (0..12).map(|i| 7 + 13 * i).collect();
    let mut cache = model.cache(ids.len()).unwrap();
    let whole = model
        .prefill(&ids, None, &[], &mut cache, LogitsToKeep::All)
        .unwrap();
    let whole = model.logits(&whole.hidden).unwrap();
    let mut cache = model.cache(ids.len()).unwrap();
    let first = model
        .prefill(&ids[..1], None, &[], &mut cache, LogitsToKeep::All)
        .unwrap();
    let mut steps = vec![model.logits(&first.hidden).unwrap()];
    for &token in &ids[1..] {
        steps.push(model.decode(token, &mut cache).unwrap());
    }
    let worst = largest(&whole, &Tensor::cat(&steps, 0));
    assert!(worst <= TOLERANCE, "logits differ by {worst}");

    let bare = load(&dir, None, Kind::Float);
    let mut cache = bare.cache(ids.len()).unwrap();
    let other = bare
        .prefill(&ids, None, &[], &mut cache, LogitsToKeep::All)
        .unwrap();
    assert!(largest(&whole, &bare.logits(&other.hidden).unwrap()) > 0.1);
}

#[test]
fn ranks_and_scales_are_the_settings() {
    let patterns = read("patterns");
    let of = |name: &str| {
        let pair = &patterns.pairs[name];
        (pair.sizes().0, pair.scale)
    };
    assert_eq!(of("model.layers.0.self_attn.q_proj"), (4, 1.5));
    assert_eq!(of("model.layers.1.self_attn.q_proj"), (2, 3.0));
    assert_eq!(of("model.layers.0.mlp.down_proj"), (4, 2.25));
    assert_eq!(of("visual.blocks.0.attn.qkv"), (3, 2.0));
    assert_eq!(of("lm_head"), (4, 1.5));
    let rslora = read("rslora-hub-keys");
    assert_eq!(rslora.config.scale(), 7.0 / 5f64.sqrt());
    for (name, model) in CASES {
        let adapter = read(name);
        let config = Config::from_dir(&fixtures().join("models").join(model)).unwrap();
        let targets = adapter.config.targets(&config.linear_modules()).unwrap();
        let mut names: Vec<String> = targets.into_iter().map(|module| module.name).collect();
        names.sort();
        let read: Vec<String> = adapter.pairs.keys().cloned().collect();
        assert_eq!(read, names, "{name}: PEFT means other modules");
        assert_eq!(
            adapter.parameters(),
            adapter.config.parameters(&config.linear_modules()).unwrap()
        );
    }
}
