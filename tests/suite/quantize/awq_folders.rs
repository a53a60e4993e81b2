//! AWQ of the embedded model: better than rounding, written so that a killed run goes on, and read again.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use medical_vision::Error;
use medical_vision::checkpoint::Checkpoint;
use medical_vision::data::CalibrationPage;
use medical_vision::fs::Manifest;
use medical_vision::processing::{DecodeLimits, decode};
use medical_vision::quantize::{
    OutputFolder, Watch,
    awq::{AwqOptions, AwqReport, quantize_folder},
    measure,
};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use crate::suite::fixtures;

fn nano() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/qwen25-vl-nano")
}

/// Small pages whose text the embedded model reads.
fn pages(names: &[&str]) -> Vec<CalibrationPage> {
    let list: Value = serde_json::from_slice(&std::fs::read(fixtures().join("pages.json")).unwrap()).unwrap();
    let page = |name: &&str| {
        let pages = list["pages"].as_array().unwrap();
        let page = pages.iter().find(|page| page["file"] == **name).unwrap();
        let bytes = std::fs::read(fixtures().join("pages").join(name)).unwrap();
        CalibrationPage {
            image: decode(&bytes, &DecodeLimits::default()).unwrap(),
            prompt: page["prompt"].as_str().unwrap().to_owned(),
            text: page["text"].as_str().unwrap().to_owned(),
        }
    };
    names.iter().map(page).collect()
}

const CALIBRATION: [&str; 1] = ["small_meds.png"];
const OTHERS: [&str; 3] = ["small_echo.png", "small_vitals.png", "small_urine.png"];

fn quantize(target: &Path, watch: Watch<'_>) -> medical_vision::Result<OutputFolder> {
    let options = AwqOptions {
        rows: 256,
        ..AwqOptions::default()
    };
    quantize_folder(
        &nano(),
        target,
        &options,
        &pages(&CALIBRATION),
        Device::Cpu,
        watch,
    )
}

fn unwatched(target: &Path) -> OutputFolder {
    let watch = Watch {
        stage: &|_, _, _| {},
        total: &|_| {},
        progress: &|_| {},
        stop: &AtomicBool::new(false),
    };
    quantize(target, watch).unwrap()
}

fn tensors(dir: &Path) -> HashMap<String, Tensor> {
    let files = Checkpoint::open(dir).unwrap().files();
    let read = |file: PathBuf| Tensor::read_safetensors(file).unwrap();
    files.into_iter().flat_map(read).collect()
}

#[test]
fn the_embedded_model_is_quantized_resumed_and_read() {
    let room = tempfile::tempdir().unwrap();
    let (whole, resumed) = (room.path().join("whole"), room.path().join("resumed"));
    let made = unwatched(&whole);
    assert!(!made.up_to_date && made.parameters > 5_000_000);

    // Better than rounding, on each Linear that the searches look at together and by far in all.
    let report = AwqReport::read(&whole).unwrap();
    assert_eq!(report.linears.len(), 6 * 7);
    assert!(
        report.total.awq < 0.8 * report.total.round_to_nearest,
        "{:?}",
        report.total
    );
    let worse = report
        .linears
        .values()
        .filter(|error| error.awq > error.round_to_nearest);
    assert!(worse.count() <= 6, "{:?}", report.linears);

    // As other programs expect it.
    let config: Value = serde_json::from_slice(&std::fs::read(whole.join("config.json")).unwrap()).unwrap();
    assert_eq!(
        config["quantization_config"],
        json!({
            "bits": 4, "group_size": 128, "modules_to_not_convert": ["visual", "model.visual", "lm_head"],
            "quant_method": "awq", "version": "gemm", "zero_point": true,
        })
    );
    assert_eq!(config["torch_dtype"], "float16");
    let (made_tensors, source) = (tensors(&whole), tensors(&nano()));
    let shape = |part: &str| made_tensors[&format!("model.layers.3.mlp.down_proj.{part}")].size();
    assert_eq!(
        [shape("qweight"), shape("qzeros"), shape("scales")],
        [[768, 32], [6, 32], [6, 256]]
    );
    let vision: Vec<_> = source.keys().filter(|name| name.starts_with("visual.")).collect();
    assert!(vision.len() > 50);
    for name in vision
        .into_iter()
        .chain([&"model.embed_tokens.weight".to_owned()])
    {
        assert_eq!(made_tensors[name], source[name].to_kind(Kind::Half), "{name}");
    }

    // Again: nothing to do. Stopped after some layers: the rest is made, and the folder is the same.
    assert!(unwatched(&whole).up_to_date);
    let (seen, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let watch = Watch {
        stage: &|_, _, _| {},
        total: &|_| {},
        progress: &|bytes| {
            if seen.fetch_add(bytes, Ordering::Relaxed) + bytes > 1_500_000 {
                stop.store(true, Ordering::Relaxed);
            }
        },
        stop: &stop,
    };
    assert!(matches!(quantize(&resumed, watch), Err(Error::Interrupted)));
    assert!(!resumed.exists());
    let partial = Manifest::read(&room.path().join("resumed.partial")).unwrap();
    let finished = partial.files.keys().filter(|name| name.ends_with(".safetensors"));
    assert!((1..6).contains(&finished.count()), "{:?}", partial.files);
    assert!(!unwatched(&resumed).up_to_date);
    let manifest = |dir: &Path| Manifest::read(dir).unwrap().files;
    assert_eq!(manifest(&resumed), manifest(&whole));

    // Other pages are read nearly as before.
    let others = pages(&OTHERS);
    let original = measure(&nano(), &others, Device::Cpu, None).unwrap();
    let measured = measure(&whole, &others, Device::Cpu, Some(&original.hidden)).unwrap();
    let (before, after) = (original.accuracy, measured.accuracy);
    let outputs = after.outputs.clone().unwrap();
    assert!(
        before.tokens > 300 && before.token_accuracy_pct > 95.0,
        "{before:?}"
    );
    assert!(
        after.token_accuracy_pct > before.token_accuracy_pct - 2.0,
        "{after:?}"
    );
    assert!(
        outputs.output_cosine > 0.98 && outputs.output_cosine < 1.0,
        "{outputs:?}"
    );
}

#[test]
fn a_folder_that_awq_cannot_make_is_refused() {
    let room = tempfile::tempdir().unwrap();
    let watch = Watch {
        stage: &|_, _, _| {},
        total: &|_| {},
        progress: &|_| {},
        stop: &AtomicBool::new(false),
    };
    let options = AwqOptions::default();
    let target = room.path().join("made");
    let error = quantize_folder(&nano(), &target, &options, &[], Device::Cpu, watch).unwrap_err();
    assert!(error.to_string().contains("calibration page"), "{error}");
    let quantized = fixtures().join("models/awq");
    let error = quantize_folder(&quantized, &target, &options, &[], Device::Cpu, watch).unwrap_err();
    assert!(error.to_string().contains("quantized already"), "{error}");
}
