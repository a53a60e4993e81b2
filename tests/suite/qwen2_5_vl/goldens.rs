//! The model against transformers' goldens, stage by stage and page by page.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use medical_vision::checkpoint::Checkpoint;
use medical_vision::engine::{LoadOptions, ReadRequest, Reader};
use medical_vision::generation::FinishReason;
use medical_vision::processing::{DecodeLimits, Grid, decode};
use medical_vision::quant::Quantization;
use medical_vision::qwen2_5_vl::{Config, LogitsToKeep, Model, ModelOptions};
use tch::{Device, Kind, Tensor};

pub const TOLERANCE: f64 = 2e-4;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn model_dir(name: &str) -> PathBuf {
    if name == "nano" {
        root().join("models/qwen25-vl-nano")
    } else {
        root().join("tests/fixtures/models").join(name)
    }
}

pub fn load(dir: &Path) -> Model {
    let config = Config::from_dir(dir).unwrap();
    Model::load(
        &Checkpoint::open(dir).unwrap(),
        &config,
        &Quantization::from_dir(dir).unwrap(),
        &ModelOptions::new(Kind::Float, Device::Cpu),
    )
    .unwrap()
}

pub fn tensors(file: &str) -> HashMap<String, Tensor> {
    let file = root().join("tests/fixtures").join(file);
    Tensor::read_safetensors(file).unwrap().into_iter().collect()
}

pub fn goldens(name: &str, case: &str) -> HashMap<String, Tensor> {
    tensors(&format!("goldens/{name}-{case}.safetensors"))
}

/// Grids of a golden's pages.
pub fn grids(golden: &HashMap<String, Tensor>) -> Vec<Grid> {
    let grid = |g: &[i64]| Grid {
        t: g[0] as usize,
        h: g[1] as usize,
        w: g[2] as usize,
    };
    let grids = golden
        .get("image_grid_thw")
        .map(|t| ids(t).chunks(3).map(grid).collect());
    grids.unwrap_or_default()
}

pub fn max_abs(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    (a - b).abs().max().double_value(&[])
}

pub fn ids(t: &Tensor) -> Vec<i64> {
    Vec::try_from(t.flatten(0, -1)).unwrap()
}

fn check(name: &str, case: &str) {
    check_folder(&model_dir(name), name, case, &goldens(name, case));
}

/// The model in `dir` computes the features, positions, logits and greedy tokens of `golden`.
pub fn check_folder(dir: &Path, name: &str, case: &str, golden: &HashMap<String, Tensor>) {
    let model = load(dir);
    let input_ids = ids(&golden["input_ids"]);
    let grids = grids(golden);
    let features = golden
        .get("pixel_values")
        .map(|p| model.image_features(p, &grids).unwrap());
    if let Some(features) = &features {
        let worst = max_abs(features, &golden["image_features"]);
        assert!(
            worst <= TOLERANCE,
            "{name}-{case}: image features differ by {worst}"
        );
    }
    let mut cache = model.cache(input_ids.len() + 24).unwrap();
    let prefill = model
        .prefill(
            &input_ids,
            features.as_ref(),
            &grids,
            &mut cache,
            LogitsToKeep::All,
        )
        .unwrap();
    let positions = &prefill.positions;
    assert_eq!(positions.ids.concat(), ids(&golden["position_ids"]));
    assert_eq!(
        positions.next - input_ids.len() as i64,
        ids(&golden["rope_delta"])[0]
    );
    let logits = model.logits(&prefill.hidden).unwrap();
    let worst = match golden.get("logits") {
        Some(expected) => max_abs(&logits, expected),
        None => max_abs(
            &logits.narrow(0, logits.size()[0] - 8, 8),
            &golden["logits_last8"],
        ),
    };
    assert!(worst <= TOLERANCE, "{name}-{case}: logits differ by {worst}");
    let mut next = logits.select(0, -1).argmax(None, false).int64_value(&[]);
    let mut greedy = vec![next];
    while greedy.len() < 24 {
        next = model
            .decode(next, &mut cache)
            .unwrap()
            .argmax(None, false)
            .int64_value(&[]);
        greedy.push(next);
    }
    assert_eq!(greedy, ids(&golden["greedy"]), "{name}-{case}: greedy tokens");
}

#[test]
fn every_model_and_case_equals_transformers() {
    for name in [
        "untied-flat-sharded",
        "nested-bf16",
        "windows",
        "gelu-depth3",
        "patch8",
        "nano",
    ] {
        for case in ["ragged", "several", "text"] {
            check(name, case);
        }
    }
}

#[test]
fn greedy_text_of_twenty_pages_equals_transformers() {
    let list = std::fs::read_to_string(root().join("tests/fixtures/pages.json")).unwrap();
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let pages = list.as_array().or_else(|| list["pages"].as_array()).unwrap();
    assert!(pages.len() >= 20);
    let reader = Reader::load(&model_dir("nano"), &LoadOptions::default()).unwrap();
    for page in pages {
        let file = page["file"].as_str().unwrap();
        let base = root().join("tests/fixtures");
        let path = [base.join("pages").join(file), base.join(file)]
            .into_iter()
            .find(|p| p.is_file())
            .unwrap();
        let image = decode(&std::fs::read(path).unwrap(), &DecodeLimits::default()).unwrap();
        let mut request = ReadRequest::page(page["prompt"].as_str().unwrap(), image);
        request.overrides.max_new_tokens = Some(640);
        let reading = reader.read(&request, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(reading.text, page["text"].as_str().unwrap(), "{file}");
        assert_eq!(
            reading.prompt_tokens as u64,
            page["prompt_tokens"].as_u64().unwrap(),
            "{file}"
        );
        assert_eq!(
            reading.completion_tokens as u64,
            page["completion_tokens"].as_u64().unwrap(),
            "{file}"
        );
    }
}

/// A pass is asked before every block and layer whether it shall go on, and ends where it is told to.
#[test]
fn a_prompts_reading_ends_between_layers() {
    let reader = Reader::load(&model_dir("nano"), &LoadOptions::default()).unwrap();
    let config = reader.model().config().clone();
    let page = std::fs::read(root().join("tests/fixtures/pages/small_strip_rx.png")).unwrap();
    let page = decode(&page, &DecodeLimits::default()).unwrap();
    let mut request = ReadRequest::page("Read.", page);
    request.overrides.max_new_tokens = Some(1);
    let layers = config.vision.depth + config.text.num_hidden_layers;
    let mut asked = 0;
    reader
        .read(&request, &mut |_| {
            asked += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(asked > layers, "{asked} questions in {layers} layers");
    for last in [1, config.vision.depth, config.vision.depth + 1, layers] {
        let mut asked = 0;
        let reading = reader
            .read(&request, &mut |step| {
                assert_eq!(step.text, "");
                asked += 1;
                match asked == last {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            })
            .unwrap();
        assert_eq!(asked, last, "nothing runs on after the word");
        assert_eq!(reading.finish_reason, FinishReason::Cancelled);
        assert_eq!(reading.completion_tokens, 0);
    }
    // What was ended leaves nothing behind.
    let mut tokens = None;
    for _ in 0..2 {
        request.overrides.max_new_tokens = Some(5);
        let reading = reader.read(&request, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(*tokens.get_or_insert(reading.tokens.clone()), reading.tokens);
    }
}
