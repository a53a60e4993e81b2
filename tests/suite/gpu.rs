//! What only a GPU computes: each test passes without one, where there is nothing to compute.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use medical_vision::checkpoint::Checkpoint;
use medical_vision::device::{DeviceChoice, select};
use medical_vision::kernels::cuda;
use medical_vision::quant::Watch;
use medical_vision::quant::nf4::{Nf4Options, Nf4Weight, QuantType, quantize_folder};
use tch::{Device, Kind, Tensor};

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
