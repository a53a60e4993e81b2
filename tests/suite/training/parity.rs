//! Parity of losses, gradients and optimizer steps with PEFT.

use std::collections::HashMap;
use std::path::Path;

use medical_vision::checkpoint::{Checkpoint, canonical_name};
use medical_vision::lora::Adapter;
use medical_vision::processing::Grid;
use medical_vision::quant::Quantization;
use medical_vision::qwen2_5_vl::{Config, LogitsToKeep, Model, ModelOptions, Packed, Sequence};
use medical_vision::torch::autograd;
use medical_vision::training::{Parameters, TrainingOptions};
use tch::{Device, Kind, Tensor};

use crate::suite::fixtures;

/// Cases of a model's goldens, and the number of label tokens at the end of each; as in makers/training.py.
const CASES: [(&str, usize); 3] = [("ragged", 7), ("several", 5), ("text", 12)];
const RATE: f64 = 2e-3;

fn tensors(file: &str) -> HashMap<String, Tensor> {
    Tensor::read_safetensors(fixtures().join(file))
        .unwrap()
        .into_iter()
        .collect()
}

fn integers(tensor: &Tensor) -> Vec<i64> {
    Vec::try_from(tensor.flatten(0, -1)).unwrap()
}

fn largest(tensor: &Tensor) -> f64 {
    tensor.abs().max().double_value(&[])
}

/// The golden prompts of a model as one batch.
struct Data {
    ids: Vec<Vec<i64>>,
    grids: Vec<Vec<Grid>>,
    pixels: Tensor,
    /// Rows that predict a label, and the labels.
    rows: Vec<i64>,
    labels: Vec<i64>,
}

impl Data {
    fn new(model: &str, cases: &[(&str, usize)]) -> Self {
        let (mut ids, mut grids, mut pixels) = (Vec::new(), Vec::new(), Vec::new());
        let (mut rows, mut labels, mut start) = (Vec::new(), Vec::new(), 0);
        for (case, label_count) in cases {
            let golden = tensors(&format!("goldens/{model}-{case}.safetensors"));
            let own = integers(&golden["input_ids"]);
            let first = own.len() - label_count;
            rows.extend((first - 1..own.len() - 1).map(|row| (start + row) as i64));
            labels.extend(&own[first..]);
            start += own.len();
            ids.push(own);
            grids.push(golden.get("image_grid_thw").map_or_else(Vec::new, |grids| {
                let grids = integers(grids);
                let grid = |g: &[i64]| Grid {
                    t: g[0] as usize,
                    h: g[1] as usize,
                    w: g[2] as usize,
                };
                grids.chunks(3).map(grid).collect()
            }));
            pixels.extend(golden.get("pixel_values").map(Tensor::shallow_clone));
        }
        Self {
            ids,
            grids,
            pixels: Tensor::cat(&pixels, 0),
            rows,
            labels,
        }
    }

    fn packed(&self, config: &Config) -> Packed {
        let mut numbers = 0..;
        let pages: Vec<Vec<usize>> = self
            .grids
            .iter()
            .map(|grids| numbers.by_ref().take(grids.len()).collect())
            .collect();
        let sequences: Vec<Sequence<'_>> = self
            .ids
            .iter()
            .zip(&pages)
            .map(|(ids, pages)| Sequence { ids, pages })
            .collect();
        Packed::new(config, &self.grids.concat(), &sequences).unwrap()
    }

    /// The mean loss, whose gradients are added.
    fn backward(&self, model: &Model, recompute: bool) -> f64 {
        let packed = self.packed(model.config());
        let hidden = model
            .packed_hidden(&packed, Some(&self.pixels), &self.rows, recompute)
            .unwrap();
        let loss = model
            .packed_loss(&hidden, &self.labels, 1.0 / self.labels.len() as f64)
            .unwrap();
        autograd::backward(&loss, &loss.ones_like()).unwrap();
        loss.double_value(&[])
    }
}

fn load(dir: &Path, adapter: Option<&Adapter>, kind: Kind) -> Model {
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

fn parameters(adapter: &str) -> Parameters {
    let adapter = Adapter::read(&fixtures().join("adapters").join(adapter)).unwrap();
    Parameters::new(adapter, Device::Cpu).unwrap()
}

/// PEFT's name of a module's half → the adapter's tensor.
fn half<'a>(adapter: &'a Adapter, key: &str) -> &'a Tensor {
    let key = key.strip_prefix("base_model.model.").unwrap();
    let (module, half) = key.rsplit_once(".lora_").unwrap();
    let pair = &adapter.pairs[&canonical_name(module)];
    if half == "A.weight" { &pair.a } else { &pair.b }
}

/// Every tensor of `golden` that begins with `prefix`, and ours.
fn pairs<'a>(
    golden: &'a HashMap<String, Tensor>,
    prefix: &'a str,
    adapter: &'a Adapter,
) -> Vec<(&'a str, &'a Tensor, &'a Tensor)> {
    let found: Vec<_> = golden
        .iter()
        .filter_map(|(key, value)| Some((key.strip_prefix(prefix)?, value)))
        .filter(|(key, _)| key.contains(".lora_"))
        .map(|(key, value)| (key, value, half(adapter, key)))
        .collect();
    assert_eq!(found.len(), 2 * adapter.pairs.len());
    found
}

#[test]
fn the_packed_pass_is_the_prompts_one_by_one() {
    for name in ["untied-flat-sharded", "windows", "gelu-depth3", "patch8"] {
        let model = load(&fixtures().join("models").join(name), None, Kind::Float);
        let data = Data::new(name, &CASES);
        let packed = data.packed(model.config());
        let all: Vec<i64> = (0..packed.rows() as i64).collect();
        let hidden = model
            .packed_hidden(&packed, Some(&data.pixels), &all, false)
            .unwrap();
        let (mut row, mut patch) = (0, 0);
        for (ids, grids) in data.ids.iter().zip(&data.grids) {
            let mut cache = model.cache(ids.len()).unwrap();
            let patches: usize = grids.iter().map(Grid::patches).sum();
            let own = data.pixels.narrow(0, patch, patches as i64);
            let features = (!grids.is_empty()).then(|| model.image_features(&own, grids).unwrap());
            let prefill = model
                .prefill(ids, features.as_ref(), grids, &mut cache, LogitsToKeep::All)
                .unwrap();
            let apart = largest(&(hidden.narrow(0, row, ids.len() as i64) - prefill.hidden));
            assert!(apart < 1e-4, "{name}: {apart}");
            row += ids.len() as i64;
            patch += patches as i64;
        }
    }
}

#[test]
fn a_page_of_several_samples_is_looked_at_once_to_the_same_gradients() {
    let name = "untied-flat-sharded";
    let dir = fixtures().join("models").join(name);
    let alone = Data::new(name, &CASES[..1]);
    let (ids, grids) = (&alone.ids[0], &alone.grids[0]);
    let other: Vec<i64> = [&ids[..], &ids[ids.len() - 2..]].concat();
    let third: Vec<i64> = [&ids[..ids.len() - 3], &ids[1..3], &ids[..1]].concat();
    // The golden's sample, and two others about the same pages, in three batches and in one.
    let gradients = |batches: &[&[&[i64]]]| {
        let parameters = parameters("plain");
        let model = load(&dir, Some(&parameters.adapter), Kind::Float);
        let (mut loss, mut rows_of_batches) = (0.0, Vec::new());
        for sequences in batches {
            let pages: Vec<usize> = (0..grids.len()).collect();
            let whole: Vec<Sequence<'_>> = sequences
                .iter()
                .map(|ids| Sequence { ids, pages: &pages })
                .collect();
            let packed = Packed::new(model.config(), grids, &whole).unwrap();
            rows_of_batches.push(packed.rows());
            let rows: Vec<i64> = (0..sequences.len())
                .map(|i| packed.row(i, sequences[i].len() - 2))
                .collect();
            let labels: Vec<i64> = sequences.iter().map(|ids| ids[ids.len() - 1]).collect();
            let hidden = model
                .packed_hidden(&packed, Some(&alone.pixels), &rows, false)
                .unwrap();
            let sum = model.packed_loss(&hidden, &labels, 0.5).unwrap();
            autograd::backward(&sum, &sum.ones_like()).unwrap();
            loss += sum.double_value(&[]);
        }
        let mut parameters = parameters;
        (loss, parameters.gradients().copy(), rows_of_batches)
    };
    let all = [ids.as_slice(), &other, &third];
    let (apart_loss, apart, rows) = gradients(&[&all[..1], &all[1..2], &all[2..]]);
    let (loss, together, fewer) = gradients(&[&all]);
    assert_eq!(rows, all.map(<[i64]>::len));
    let shared = ids.len() - 3;
    assert_eq!(
        fewer,
        [rows.iter().sum::<usize>() - 2 * shared],
        "what is common is computed once"
    );
    assert!((loss - apart_loss).abs() < 1e-5, "{loss} {apart_loss}");
    let difference = largest(&(&together - &apart)) / largest(&apart);
    assert!(difference < 1e-4, "{difference}");
}

#[test]
fn ten_steps_are_peft_s() {
    let golden = tensors("training/ten-steps.safetensors");
    let losses = Vec::<f64>::try_from(golden["losses"].to_kind(Kind::Double)).unwrap();
    let norms = Vec::<f64>::try_from(golden["norms"].to_kind(Kind::Double)).unwrap();
    let options = TrainingOptions {
        weight_decay: 0.01,
        max_grad_norm: 1.0,
        ..TrainingOptions::default()
    };
    for recompute in [false, true] {
        let mut parameters = parameters("plain");
        let dir = fixtures().join("models/untied-flat-sharded");
        let model = load(&dir, Some(&parameters.adapter), Kind::Float);
        let data = Data::new("untied-flat-sharded", &CASES);
        for (step, (loss, norm)) in losses.iter().zip(&norms).enumerate() {
            parameters.zero_gradients().unwrap();
            let found = data.backward(&model, recompute);
            assert!(
                (found - loss).abs() < 1e-4,
                "step {step}: loss {found}, PEFT's {loss}"
            );
            let found = parameters.gradient_norm().unwrap();
            assert!(
                (found - norm).abs() < 1e-4 * norm,
                "step {step}: norm {found}, PEFT's {norm}"
            );
            if step == 0 {
                for (key, theirs, ours) in pairs(&golden, "gradient.", &parameters.adapter) {
                    let apart = largest(&(ours.grad() - theirs)) / largest(theirs);
                    assert!(apart < 1e-4, "{key}: {apart}");
                }
            }
            parameters.step(step as u64 + 1, RATE, found, &options).unwrap();
        }
        for (key, theirs, ours) in pairs(&golden, "final.", &parameters.adapter) {
            let apart = largest(&(ours.detach() - theirs));
            assert!(apart < 1e-4, "{key}: {apart}");
        }
    }
}

#[test]
fn gradients_on_four_bits_are_peft_s_to_the_rounding() {
    let golden = tensors("training/on-nf4.safetensors");
    let gradients = |kind: Kind| {
        let parameters = parameters("rslora-hub-keys");
        let model = load(
            &fixtures().join("nf4/nested-bf16-nf4"),
            Some(&parameters.adapter),
            kind,
        );
        let loss = Data::new("nested-bf16", &CASES).backward(&model, false);
        (loss, parameters)
    };
    // Distances over all gradients together, as a part of their length.
    let apart = |prefix: &str, ours: &Adapter, truth: &str| {
        let (mut distance, mut theirs, mut length) = (0.0, 0.0, 0.0);
        let square = |tensor: &Tensor| tensor.square().sum(Kind::Double).double_value(&[]);
        for (key, golden_gradient, leaf) in pairs(&golden, prefix, ours) {
            assert_eq!(leaf.grad().kind(), Kind::Float);
            let exact = &golden[&format!("{truth}{key}")];
            distance += square(&(leaf.grad() - golden_gradient));
            theirs += square(&(golden_gradient - exact));
            length += square(golden_gradient);
        }
        ((distance / length).sqrt(), (theirs / length).sqrt())
    };
    let (loss, exact) = gradients(Kind::Float);
    assert!((loss - golden["float32.loss"].double_value(&[])).abs() < 1e-4);
    let (distance, _) = apart("float32.", &exact.adapter, "float32.");
    assert!(distance < 1e-4, "{distance}");
    let (loss, rounded) = gradients(Kind::BFloat16);
    assert!((loss - golden["bfloat16.loss"].double_value(&[])).abs() < 2e-2);
    // As near to PEFT's as PEFT's own rounding leaves them to the exact ones.
    let (distance, rounding) = apart("bfloat16.", &rounded.adapter, "float32.");
    assert!(
        distance < 1.5 * rounding && rounding < 0.2,
        "{distance} {rounding}"
    );
}
