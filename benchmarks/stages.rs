//! Where the time of a reading goes: each stage on the sample page and the embedded model, with criterion.
//!
//! `cargo bench --bench stages`. Comparisons with other programs are the Python scripts beside this file.

use std::hint::black_box;
use std::path::Path;

use criterion::{Criterion, criterion_group, criterion_main};
use half::bf16;
use medical_vision::checkpoint::Checkpoint;
use medical_vision::processing::{DecodeLimits, ImageProcessor, TextProcessor, decode};
use medical_vision::quant::Quantization;
use medical_vision::quant::nf4::{QuantType, Weights, quantize};
use medical_vision::qwen2_5_vl::{Config, LogitsToKeep, Model, ModelOptions};
use medical_vision::rendering::TEST_PAGE;
use medical_vision::test_documents::DocumentSet;
use tch::{Device, Kind};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/qwen25-vl-nano");
const PAGE: &[u8] = include_bytes!("../datasets/sample/discharge_note.png");

fn pages(c: &mut Criterion) {
    let processor = ImageProcessor::from_dir(Path::new(MODEL)).expect("the embedded model");
    let page = decode(PAGE, &DecodeLimits::default()).expect("the sample page");
    let documents = DocumentSet::test().documents;
    c.bench_function("decode a page's PNG", |b| {
        b.iter(|| decode(black_box(PAGE), &DecodeLimits::default()))
    });
    c.bench_function("page to patches", |b| {
        b.iter(|| processor.process(black_box(&page)))
    });
    c.bench_function("draw a page", |b| b.iter(|| documents[0].page(TEST_PAGE)));
}

fn model(c: &mut Criterion) {
    let dir = Path::new(MODEL);
    let config = Config::from_dir(dir).expect("the embedded model");
    let checkpoint = Checkpoint::open(dir).expect("the embedded model");
    let model = Model::load(
        &checkpoint,
        &config,
        &Quantization::None,
        &ModelOptions::new(Kind::Float, Device::Cpu),
    )
    .expect("the embedded model");
    let processor = ImageProcessor::from_dir(dir).expect("the embedded model");
    let page = decode(PAGE, &DecodeLimits::default()).expect("the sample page");
    let patches = processor.process(&page).expect("patches");
    let pixels = &patches.pixel_values;
    let grid = processor.grid(page.height, page.width).expect("a grid");
    let text = TextProcessor::from_dir(dir).expect("the embedded model");
    let ids = text
        .encode_plain(&"Sodium 139 mmol/L\n".repeat(100))
        .expect("ids");
    c.bench_function("vision tower, one page", |b| {
        b.iter(|| model.image_features(pixels, &[grid]))
    });
    c.bench_function(&format!("prompt of {} tokens", ids.len()), |b| {
        b.iter(|| {
            let mut cache = model.cache(ids.len()).expect("memory");
            model.prefill(&ids, None, &[], &mut cache, LogitsToKeep::Last)
        });
    });
    let mut cache = model.cache(ids.len() + (1 << 16)).expect("memory");
    model
        .prefill(&ids, None, &[], &mut cache, LogitsToKeep::Last)
        .expect("a prompt");
    c.bench_function("one token", |b| b.iter(|| model.decode(black_box(7), &mut cache)));
}

fn quantizer(c: &mut Criterion) {
    let values: Vec<bf16> = (0..1 << 20)
        .map(|i| bf16::from_f32((i as f32 * 0.37).sin()))
        .collect();
    c.bench_function("quantize 1 Mi weights to NF4", |b| {
        b.iter(|| quantize(&Weights::Bf16(black_box(&values)), QuantType::Nf4, 64));
    });
}

criterion_group! {
    name = stages;
    config = Criterion::default().sample_size(20);
    targets = pages, model, quantizer
}
criterion_main!(stages);
