//! What only a GPU computes: each test passes without one, where there is nothing to compute.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use medical_vision::blackwell_compat::{Reductions, check};
use medical_vision::checkpoint::Checkpoint;
use medical_vision::device::{DeviceChoice, select};
use medical_vision::kernels::{cpu::Heads, cuda};
use medical_vision::processing::Grid;
use medical_vision::quant::Quantization;
use medical_vision::quant::nf4::{Nf4Weight, QuantType};
use medical_vision::quantize::{
    Watch,
    nf4::{Nf4Options, quantize_folder},
};
use medical_vision::qwen2_5_vl::{Config, LogitsToKeep, Model, ModelOptions, Packed, Sequence, TokenGrids};
use tch::{Device, Kind, Tensor};

use super::qwen2_5_vl::{
    folders::yarn_folder,
    goldens::{ids, max_abs, tensors},
};

fn gpu() -> Option<Device> {
    let device = select(DeviceChoice::Auto).unwrap().device;
    (device != Device::Cpu).then_some(device)
}

/// The embedded model, quantized with `options`.
fn quantized(options: &Nf4Options) -> (tempfile::TempDir, Checkpoint) {
    let home = tempfile::tempdir().unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/qwen25-vl-nano");
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
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/qwen25-vl-nano");
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

/// What `doctor` tries, and the sizes of a page by both ways.
/// Tokens that are no image's, `count` of them.
fn text_ids(seed: usize, count: usize) -> Vec<i64> {
    (0..count)
        .map(|i| ((seed * 7919 + i * 104_729) % 8000) as i64)
        .collect()
}

/// One kernel a token: alone, beside others, and in the prompt's pass, in each form of the weights.
#[test]
fn a_decode_step_gives_a_sequence_what_it_gets_alone_and_in_a_prompt() {
    let Some(device) = gpu() else { return };
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/qwen25-vl-nano");
    let fp4 = Nf4Options {
        quant_type: QuantType::Fp4,
        ..Nf4Options::default()
    };
    let made = [quantized(&Nf4Options::default()), quantized(&fp4)];
    let folders = [nano.as_path(), made[0].1.dir(), made[1].1.dir()];
    for (folder, kind) in folders
        .iter()
        .flat_map(|&folder| [(folder, Kind::BFloat16), (folder, Kind::Half)])
    {
        let config = Config::from_dir(folder).unwrap();
        let quantization = Quantization::from_dir(folder).unwrap();
        let checkpoint = Checkpoint::open(folder).unwrap();
        let model = Model::load(
            &checkpoint,
            &config,
            &quantization,
            &ModelOptions::new(kind, device),
        )
        .unwrap();
        assert_eq!(
            model.sequences_per_step(),
            8,
            "{} has no step in {kind:?}",
            folder.display()
        );
        let lengths = [1, 5, 127, 128, 129, 300, 40, 77];
        let prompts: Vec<Vec<i64>> = lengths.iter().enumerate().map(|(i, &n)| text_ids(i, n)).collect();
        let (steps, room) = (6, 320);
        let prefilled = |ids: &[i64]| {
            let mut cache = model.cache(room).unwrap();
            let done = model
                .prefill(ids, None, &[], &mut cache, LogitsToKeep::Last)
                .unwrap();
            (cache, model.logits(&done.hidden).unwrap())
        };
        let mut caches: Vec<_> = prompts.iter().map(|ids| prefilled(ids).0).collect();
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
            let (mut cache, _) = prefilled(prompt);
            let mut ids = prompt.clone();
            for (step, together) in together.iter().enumerate() {
                let token = text_ids(i + step, 1)[0];
                ids.push(token);
                let alone = model.decode(token, &mut cache).unwrap();
                assert!(
                    alone.equal(&together.narrow(0, i as i64, 1)),
                    "sequence {i}, step {step}"
                );
                let (_, whole) = prefilled(&ids);
                let off =
                    (&alone - &whole).abs().max().double_value(&[]) / whole.abs().max().double_value(&[]);
                assert!(off < 0.03, "{kind:?}, sequence {i}, step {step}: {off}");
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
        padded += usize::from(config.vision.intermediate_size % 8 != 0);
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
