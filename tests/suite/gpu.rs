//! What only a GPU computes: each test passes without one, where there is nothing to compute.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use medical_vision::blackwell_compat::{Reductions, check};
use medical_vision::checkpoint::Checkpoint;
use medical_vision::data::CalibrationPage;
use medical_vision::device::{DeviceChoice, select};
use medical_vision::kernels::{cpu::Heads, cuda};
use medical_vision::lora::{Adapter, LoraConfig, LoraPair};
use medical_vision::processing::{DecodeLimits, Grid, decode};
use medical_vision::quant::Quantization;
use medical_vision::quant::awq::AwqWeight;
use medical_vision::quant::nf4::{Nf4Weight, QuantType};
use medical_vision::quant::tiles::{Arrangement, arrange};
use medical_vision::quantize::{
    Watch,
    awq::{AwqOptions, quantize_folder as quantize_awq},
    nf4::{Nf4Options, quantize_folder},
};
use medical_vision::qwen2_5_vl::{
    AdapterIndex, Config, LogitsToKeep, Model, ModelOptions, Packed, Sequence, TokenGrids,
};
use tch::{Device, Kind, Tensor};

use super::fixtures;
use super::qwen2_5_vl::{
    folders::yarn_folder,
    goldens::{ids, max_abs, tensors},
};

fn nano() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/qwen25-vl-nano")
}

fn gpu() -> Option<Device> {
    let device = select(DeviceChoice::Auto).unwrap().device;
    (device != Device::Cpu).then_some(device)
}

/// The embedded model, quantized with `options`.
fn quantized(options: &Nf4Options) -> (tempfile::TempDir, Checkpoint) {
    let home = tempfile::tempdir().unwrap();
    let model = nano();
    let target = home.path().join("made");
    let watch = Watch {
        stage: &|_, _, _| {},
        total: &|_| {},
        progress: &|_| {},
        stop: &AtomicBool::new(false),
    };
    quantize_folder(&model, &target, options, watch).unwrap();
    let checkpoint = Checkpoint::open(&target).unwrap();
    (home, checkpoint)
}

#[test]
fn the_gpus_kernels_restore_and_multiply_weights_as_libtorch_does() {
    let Some(device) = gpu() else { return };
    let plain = Nf4Options {
        double_quant: false,
        blocksize: 128,
        ..Nf4Options::default()
    };
    let fp4 = Nf4Options {
        quant_type: QuantType::Fp4,
        blocksize: 4096,
        ..Nf4Options::default()
    };
    for options in [Nf4Options::default(), plain, fp4] {
        let (_home, checkpoint) = quantized(&options);
        for (name, shape) in [
            ("model.layers.0.self_attn.k_proj.weight", [128, 256]),
            ("model.layers.5.mlp.down_proj.weight", [256, 768]),
            ("visual.blocks.0.mlp.gate_proj.weight", [704, 256]),
            ("visual.blocks.0.mlp.down_proj.weight", [256, 704]),
        ] {
            let weight = Nf4Weight::load(&checkpoint, name, shape, device)
                .unwrap()
                .unwrap();
            for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
                assert!(cuda::available(device, kind), "no kernels for {kind:?}");
                let (rows, columns) = weight.shape();
                let mut restored = Tensor::empty([rows, columns], (kind, device));
                let mut reference = restored.copy();
                weight.dequantize_into(&mut restored).unwrap();
                weight.restore_with_tensors(&mut reference).unwrap();
                assert!(restored.equal(&reference), "{name} {kind:?} {options:?}");
                if kind == Kind::Float {
                    continue;
                }
                let x = Tensor::randn([1, columns], (kind, device));
                let bias = Tensor::randn([rows], (kind, device));
                let y = weight.product(&x, Some(&bias)).unwrap().unwrap();
                let exact = x
                    .to_kind(Kind::Float)
                    .linear(&reference.to_kind(Kind::Float), Some(bias.to_kind(Kind::Float)));
                assert_eq!(y.size(), [1, rows]);
                let off = (y.to_kind(Kind::Float) - &exact).abs().max().double_value(&[]);
                let largest = exact.abs().max().double_value(&[]);
                assert!(off <= largest / 100.0, "{name} {kind:?}: {off} of {largest}");
            }
        }
    }
}

#[test]
fn several_rows_are_not_multiplied_by_the_kernel_for_one() {
    let Some(device) = gpu() else { return };
    let (_home, checkpoint) = quantized(&Nf4Options::default());
    let name = "model.layers.0.self_attn.k_proj.weight";
    let weight = Nf4Weight::load(&checkpoint, name, [128, 256], device)
        .unwrap()
        .unwrap();
    let rows = Tensor::randn([2, 256], (Kind::BFloat16, device));
    assert!(weight.product(&rows, None).unwrap().is_none());
    let floats = Tensor::randn([1, 256], (Kind::Float, device));
    assert!(weight.product(&floats, None).unwrap().is_none());
}

#[test]
fn the_gpus_kernels_rotate_and_gate_as_libtorch_does() {
    let Some(device) = gpu() else { return };
    let (rows, count, dim, columns) = (37, 3, 16, 64);
    let angles = Tensor::randn([rows, dim / 2], (Kind::Float, device));
    let angles = Tensor::cat(&[&angles, &angles], 1);
    let (cos, sin) = (angles.cos(), angles.sin());
    for kind in [Kind::BFloat16, Kind::Half] {
        let x = Tensor::randn([rows, columns], (kind, device));
        for back in [false, true] {
            let rotation = cuda::Rotation {
                heads: Heads {
                    count: count as usize,
                    dim: dim as usize,
                },
                cos: &cos,
                sin: &sin,
                back,
            };
            let part = x.narrow(1, 0, count * dim).reshape([rows, count, dim]);
            let part = part.to_kind(Kind::Float);
            let (low, high) = (part.narrow(2, 0, dim / 2), part.narrow(2, dim / 2, dim / 2));
            let sin = if back { -&sin } else { sin.copy() };
            let other = Tensor::cat(&[&-high, &low], 2) * sin.unsqueeze(1);
            let turned = (part * cos.unsqueeze(1) + other)
                .reshape([rows, -1])
                .to_kind(kind);
            let rest = x.narrow(1, count * dim, columns - count * dim);
            let expected = Tensor::cat(&[turned, rest], 1);
            assert!(
                rotation.of(&x).unwrap().unwrap().equal(&expected),
                "{kind:?} {back}"
            );
            let own = x.copy();
            assert!(rotation.in_place(&own).unwrap());
            assert!(own.equal(&expected), "{kind:?} {back}");
        }
        let [gate, up, outer] = [(); 3].map(|()| Tensor::randn([rows, columns], (kind, device)) * 3.0);
        let close = |made: &Tensor, expected: &Tensor| {
            let off = (made - expected).abs() / (expected.abs() + 0.01);
            let most = off.to_kind(Kind::Float).max().double_value(&[]);
            assert!(most <= 0.02, "{kind:?}: {most}");
        };
        close(&cuda::gated(&gate, &up).unwrap().unwrap(), &(gate.silu() * &up));
        let (for_gate, for_up) = cuda::gated_backward(&outer, &gate, &up).unwrap().unwrap();
        let [leaf, other] =
            [&gate, &up].map(|t| t.detach_copy().to_kind(Kind::Float).set_requires_grad(true));
        (leaf.silu() * &other * outer.to_kind(Kind::Float))
            .sum(Kind::Float)
            .backward();
        close(&for_gate.to_kind(Kind::Float), &leaf.grad());
        close(&for_up.to_kind(Kind::Float), &other.grad());
        let narrow = gate.narrow(1, 0, 5);
        assert!(cuda::gated(&narrow, &narrow).unwrap().is_none());
    }
}

fn load(checkpoint: &Checkpoint, config: &Config, kind: Kind, device: Device) -> Model {
    Model::load(
        checkpoint,
        config,
        &Quantization::None,
        &ModelOptions::new(kind, device),
    )
    .unwrap()
}

#[test]
fn sequences_with_a_shared_prefix_are_computed_as_alone() {
    let Some(device) = gpu() else { return };
    let dir = nano();
    let config = Config::from_dir(&dir).unwrap();
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let model = load(&checkpoint, &config, Kind::BFloat16, device);
    let grid = Grid { t: 1, h: 8, w: 12 };
    let pixels = Tensor::randn([96, 1176], (Kind::Float, device));
    let mut prefix = vec![5i64, 6, 7];
    prefix.extend(vec![config.image_token_id; 24]);
    let sequences: Vec<Vec<i64>> = [&[8i64, 9, 10, 11][..], &[12, 13], &[14; 9]]
        .iter()
        .map(|rest| [&prefix[..], rest].concat())
        .collect();
    let hidden = |some: &[Vec<i64>]| {
        let some: Vec<Sequence<'_>> = some.iter().map(|ids| Sequence { ids, pages: &[0] }).collect();
        let packed = Packed::new(&config, &[grid], &some).unwrap();
        let rows: Vec<i64> = some
            .iter()
            .enumerate()
            .flat_map(|(i, sequence)| (20..sequence.ids.len()).map(move |token| (i, token)))
            .map(|(i, token)| packed.row(i, token))
            .collect();
        let hidden = model.packed_hidden(&packed, Some(&pixels), &rows, false).unwrap();
        hidden.to_kind(Kind::Float)
    };
    let together = hidden(&sequences);
    let alone: Vec<Tensor> = sequences.chunks(1).map(hidden).collect();
    let alone = Tensor::cat(&alone, 0);
    let off = (together - &alone).abs().max().double_value(&[]) / alone.abs().max().double_value(&[]);
    assert!(off < 0.03, "{off}");
}

/// The prompt's pass and one token at a time, where CUDA kernels turn queries and keys.
#[test]
fn yarn_on_a_gpu_computes_what_transformers_computes() {
    let Some(device) = gpu() else { return };
    let dir = yarn_folder();
    let config = Config::from_dir(dir.path()).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let golden = tensors("goldens/folders-yarn-text.safetensors");
    let input = ids(&golden["input_ids"]);
    for (kind, tolerance) in [(Kind::Float, 2e-3), (Kind::BFloat16, 0.3)] {
        let model = load(&checkpoint, &config, kind, device);
        let mut cache = model.cache(input.len()).unwrap();
        let whole = model
            .prefill(&input, None, &[], &mut cache, LogitsToKeep::All)
            .unwrap();
        let mut cache = model.cache(input.len()).unwrap();
        let first = model
            .prefill(&input[..1], None, &[], &mut cache, LogitsToKeep::All)
            .unwrap();
        let mut rows = vec![model.logits(&first.hidden).unwrap()];
        rows.extend(input[1..].iter().map(|&id| model.decode(id, &mut cache).unwrap()));
        for logits in [model.logits(&whole.hidden).unwrap(), Tensor::cat(&rows, 0)] {
            let worst = max_abs(&logits.to_device(Device::Cpu), &golden["logits"]);
            assert!(worst <= tolerance, "{kind:?}: {worst}");
        }
    }
}

/// Tokens that are no image's, `count` of them.
fn text_ids(seed: usize, count: usize) -> Vec<i64> {
    (0..count)
        .map(|i| ((seed * 7919 + i * 104_729) % 8000) as i64)
        .collect()
}

/// The embedded model in AWQ.
fn awq() -> (tempfile::TempDir, PathBuf) {
    let home = tempfile::tempdir().unwrap();
    let target = home.path().join("made");
    let bytes = std::fs::read(fixtures().join("pages/small_meds.png")).unwrap();
    let page = CalibrationPage {
        image: decode(&bytes, &DecodeLimits::default()).unwrap(),
        prompt: "Read the page.".to_owned(),
        text: "Medication".to_owned(),
    };
    let options = AwqOptions {
        rows: 64,
        ..AwqOptions::default()
    };
    quantize_awq(&nano(), &target, &options, &[page], Device::Cpu, Watch::none()).unwrap();
    (home, target)
}

/// Two adapters of the embedded model: its own, of rank 64, and one of rank 12 that leaves some layers out and changes the
/// output head and the embeddings.
fn two_adapters() -> [Adapter; 2] {
    let own =
        Adapter::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/qwen25-vl-nano-medical-lora"));
    let config = LoraConfig {
        r: 12,
        ..LoraConfig::default()
    };
    let modules = Config::from_dir(&nano()).unwrap().linear_modules();
    let mut made = Adapter::initial(config, &modules, 5).unwrap();
    made.pairs
        .retain(|name, _| !name.contains("k_proj") && !name.contains("layers.2.mlp.up"));
    for (name, size) in [("lm_head", 0.2), ("model.embed_tokens", 0.05)] {
        let random = |rows, columns| Tensor::randn([rows, columns], (Kind::Float, Device::Cpu)) * size;
        let pair = LoraPair {
            a: random(12, 256),
            b: random(8192, 12),
            scale: 0.5,
        };
        made.pairs.insert(name.to_owned(), pair);
    }
    for pair in made.pairs.values_mut() {
        let random = Tensor::randn(pair.b.size(), (Kind::Float, Device::Cpu)) * 0.02;
        pair.b = random.set_requires_grad(false);
        pair.a = pair.a.detach();
    }
    [own.unwrap(), made]
}

#[test]
fn a_decode_step_gives_a_sequence_what_it_gets_alone_and_in_a_prompt() {
    let Some(device) = gpu() else { return };
    steps_of(&nano(), device);
}

#[test]
fn a_decode_step_in_nf4_gives_a_sequence_what_it_gets_alone_and_in_a_prompt() {
    let Some(device) = gpu() else { return };
    let (_home, checkpoint) = quantized(&Nf4Options::default());
    steps_of(checkpoint.dir(), device);
}

#[test]
fn a_decode_step_in_fp4_gives_a_sequence_what_it_gets_alone_and_in_a_prompt() {
    let Some(device) = gpu() else { return };
    let fp4 = Nf4Options {
        quant_type: QuantType::Fp4,
        ..Nf4Options::default()
    };
    let (_home, checkpoint) = quantized(&fp4);
    steps_of(checkpoint.dir(), device);
}

#[test]
fn a_decode_step_in_awq_gives_a_sequence_what_it_gets_alone_and_in_a_prompt() {
    let Some(device) = gpu() else { return };
    let (_home, folder) = awq();
    steps_of(&folder, device);
}

/// One kernel a token: alone, beside others, and in the prompt's pass, with and without adapters.
fn steps_of(folder: &Path, device: Device) {
    let adapters = two_adapters();
    let adapters: Vec<&Adapter> = adapters.iter().collect();
    let config = Config::from_dir(folder).unwrap();
    let quantization = Quantization::from_dir(folder).unwrap();
    let checkpoint = Checkpoint::open(folder).unwrap();
    for kind in [Kind::BFloat16, Kind::Half] {
        let load = |adapters| {
            let options = ModelOptions {
                adapters,
                ..ModelOptions::new(kind, device)
            };
            Model::load(&checkpoint, &config, &quantization, &options).unwrap()
        };
        let what = format!("{kind:?}");
        // The prompt's pass rounds activations, and four-bit weights, to the model's type.
        let tolerance = if kind == Kind::BFloat16 { 0.06 } else { 0.03 };
        let base = steps_agree(&load(&[]), &[None], (&what, tolerance));
        let mixed = steps_agree(&load(&adapters), &[Some(0), None, Some(1)], (&what, tolerance));
        // Sequences without an adapter are those of a model without any.
        for i in [1, 4, 7] {
            assert!(mixed[i].equal(&base[i]), "{what}: sequence {i}");
        }
        for i in [0, 2] {
            let off = relative(&mixed[i], &base[i]);
            assert!(off > 0.05, "{what}: the adapter of sequence {i} changes {off}");
        }
    }
}

/// Decodes eight sequences with `adapters` in turn; their logits after some tokens.
fn steps_agree(model: &Model, adapters: &[AdapterIndex], (what, tolerance): (&str, f64)) -> Vec<Tensor> {
    assert_eq!(model.sequences_per_step(), 8, "{what} has no step");
    let lengths = [1, 5, 127, 128, 129, 300, 40, 77];
    let prompts: Vec<Vec<i64>> = lengths.iter().enumerate().map(|(i, &n)| text_ids(i, n)).collect();
    let (steps, room) = (6, 320);
    let prefilled = |i: usize, ids: &[i64]| {
        let adapter = adapters[i % adapters.len()];
        let mut cache = model.cache_with(room, adapter).unwrap();
        assert!(
            model.steps_in_one_kernel(&cache),
            "{what}: no step for {adapter:?}"
        );
        let done = model
            .prefill(ids, None, &[], &mut cache, LogitsToKeep::Last)
            .unwrap();
        (cache, model.logits_with(&done.hidden, adapter).unwrap())
    };
    let mut caches: Vec<_> = prompts
        .iter()
        .enumerate()
        .map(|(i, ids)| prefilled(i, ids).0)
        .collect();
    let mut together = Vec::new();
    for step in 0..steps {
        let mut all: Vec<_> = caches
            .iter_mut()
            .enumerate()
            .map(|(i, cache)| (text_ids(i + step, 1)[0], cache))
            .collect();
        together.push(model.decode_together(&mut all).unwrap());
    }
    for (i, prompt) in prompts.iter().enumerate() {
        let (mut cache, _) = prefilled(i, prompt);
        let mut ids = prompt.clone();
        for (step, together) in together.iter().enumerate() {
            let token = text_ids(i + step, 1)[0];
            ids.push(token);
            let alone = model.decode(token, &mut cache).unwrap();
            assert!(
                alone.equal(&together.narrow(0, i as i64, 1)),
                "{what}: sequence {i}, step {step}"
            );
            let off = relative(&alone, &prefilled(i, &ids).1);
            assert!(off < tolerance, "{what}: sequence {i}, step {step}: {off}");
        }
    }
    let last = &together[steps - 1];
    (0..8).map(|i| last.narrow(0, i, 1)).collect()
}

/// The largest difference, as a share of the largest value.
fn relative(found: &Tensor, expected: &Tensor) -> f64 {
    (found - expected).abs().max().double_value(&[]) / expected.abs().max().double_value(&[])
}

#[test]
fn awq_tiles_are_dequantized_as_the_weights_are() {
    let Some(device) = gpu() else { return };
    let (_home, folder) = awq();
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let Quantization::Awq(settings) = Quantization::from_dir(&folder).unwrap() else {
        panic!("no AWQ folder");
    };
    let load = |name: &str, shape| {
        let name = format!("model.layers.1.mlp.{name}_proj.weight");
        AwqWeight::load(&checkpoint, &settings, &name, shape, device)
            .unwrap()
            .unwrap()
    };
    let down = vec![load("down", [256, 768])];
    let both = vec![load("gate", [768, 256]), load("up", [768, 256])];
    for (weights, arrangement) in [(down, Arrangement::Stacked(2)), (both, Arrangement::Interleaved)] {
        assert!(weights.iter().all(|weight| weight.fits_tiles(2)));
        let sources: Vec<_> = weights
            .iter()
            .map(|weight| weight.tile_source().unwrap())
            .collect();
        let (_, tiled) = arrange(&sources, arrangement).unwrap();
        for (weight, tiled) in weights.iter().zip(&tiled) {
            for kind in [Kind::BFloat16, Kind::Half] {
                let mut expected = Tensor::empty([weight.shape().0, weight.shape().1], (kind, device));
                let restored = expected.empty_like();
                weight.dequantize_into(&mut expected).unwrap();
                tiled.dequantize_into(&restored).unwrap();
                assert!(restored.equal(&expected), "{arrangement:?} {kind:?}");
            }
        }
    }
}

/// Also towers whose intermediate width is no multiple of 16 bytes, as the published models', which are padded there.
#[test]
fn pages_look_the_same_on_a_gpu() {
    let Some(device) = gpu() else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut padded = 0;
    for name in [
        "models/windows",
        "models/untied-flat-sharded",
        "models/awq",
        "nf4/nested-bf16-nf4",
        "models/patch8",
    ] {
        let folder = root.join(name);
        let config = Config::from_dir(&folder).unwrap();
        padded += usize::from(!config.vision.intermediate_size.is_multiple_of(8));
        let model = |kind, device| {
            let checkpoint = Checkpoint::open(&folder).unwrap();
            let quantization = Quantization::from_dir(&folder).unwrap();
            Model::load(
                &checkpoint,
                &config,
                &quantization,
                &ModelOptions::new(kind, device),
            )
            .unwrap()
        };
        let grid = Grid { t: 1, h: 12, w: 8 };
        let values = config.vision.patch_values() as i64;
        let pixels = Tensor::arange(96 * values, (Kind::Float, Device::Cpu))
            .sin()
            .view([96, values]);
        let expected = model(Kind::Float, Device::Cpu)
            .image_features(&pixels, &[grid])
            .unwrap();
        for kind in [Kind::BFloat16, Kind::Half] {
            let found = model(kind, device).image_features(&pixels, &[grid]).unwrap();
            let found = found.to_device(Device::Cpu).to_kind(Kind::Float);
            let off = (&found - &expected).norm().double_value(&[]) / expected.norm().double_value(&[]);
            assert!(off < 0.03, "{name} in {kind:?}: {off}");
        }
    }
    assert!(padded >= 3, "nothing is padded");
}

/// What `doctor` tries, and the sizes of a page by both ways.
#[test]
fn integer_products_on_a_gpu_are_the_cpus() {
    let Some(device) = gpu() else { return };
    let found = check(device, Reductions::on(device));
    assert!(found.checked && found.capability.is_some(), "{found:?}");
    let grids = [(1, 34, 46), (2, 16, 20)].map(|(t, h, w)| Grid { t, h, w });
    let of = |device, capability| {
        let reductions = Reductions::with_capability(Some(capability));
        TokenGrids::new(device, reductions, 2).of(&grids).unwrap()
    };
    let host = of(Device::Cpu, (9, 0));
    assert_eq!(of(device, (12, 1)), host);
    if !found.needed {
        assert_eq!(of(device, (9, 0)), host);
    }
}
