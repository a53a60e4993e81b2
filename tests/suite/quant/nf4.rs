//! The quantizer against bitsandbytes' own output (tests/fixtures/makers/nf4.py).

use std::collections::BTreeSet;

use half::{bf16, f16};
use medical_vision::kernels::cpu::{BlockScales, CodeTable, CodedMatrix};
use medical_vision::quant::nf4::{QuantState, QuantType, Weights, quantize, quantize_scales};
use safetensors::{Dtype, SafeTensors};

use crate::suite::fixtures;

/// Values of a golden tensor; copied, since its place in the file may be unaligned.
fn values<T: bytemuck::AnyBitPattern>(bytes: &[u8]) -> Vec<T> {
    bytes
        .chunks_exact(size_of::<T>())
        .map(bytemuck::pod_read_unaligned)
        .collect()
}

struct Golden<'a>(SafeTensors<'a>);

impl Golden<'_> {
    fn bytes(&self, name: &str) -> &[u8] {
        self.0.tensor(name).unwrap().data()
    }

    fn cases(&self) -> BTreeSet<String> {
        let names = self.0.names();
        let inputs = names.iter().filter_map(|name| name.strip_suffix(".input"));
        inputs.map(str::to_owned).collect()
    }

    fn state(&self, case: &str, kind: &str) -> (QuantState, String) {
        let prefix = format!("{case}.{kind}.quant_state");
        let name = self
            .0
            .names()
            .into_iter()
            .find(|name| name.starts_with(&prefix))
            .unwrap();
        let json = self.bytes(name);
        let state = QuantState::from_json(json).unwrap();
        assert!(name.ends_with(&format!("bitsandbytes__{}", state.quant_type.name())));
        (state, String::from_utf8(json.to_vec()).unwrap())
    }
}

#[test]
fn every_byte_is_bitsandbytes() {
    let file = std::fs::read(fixtures().join("nf4/quantizer.safetensors")).unwrap();
    let golden = Golden(SafeTensors::deserialize(&file).unwrap());
    assert_eq!(golden.cases().len(), 23);
    for case in golden.cases() {
        let input = golden.0.tensor(&format!("{case}.input")).unwrap();
        let (single, json) = golden.state(&case, "single");
        let (f32s, f16s, bf16s) = (
            values::<f32>(input.data()),
            values::<f16>(input.data()),
            values::<bf16>(input.data()),
        );
        let (weights, dtype) = match input.dtype() {
            Dtype::F32 => (Weights::F32(&f32s), "float32"),
            Dtype::F16 => (Weights::F16(&f16s), "float16"),
            _ => (Weights::Bf16(&bf16s), "bfloat16"),
        };
        let made = quantize(&weights, single.quant_type, single.blocksize).unwrap();
        assert_eq!(
            made.packed,
            golden.bytes(&format!("{case}.weight")),
            "{case}: weight"
        );
        let absmax = values::<f32>(golden.bytes(&format!("{case}.single.absmax")));
        assert_eq!(made.absmax, absmax, "{case}: absmax");
        let (quant_type, blocksize, shape) = (single.quant_type, single.blocksize, input.shape());
        assert_eq!(
            QuantState::new(quant_type, blocksize, dtype, shape, None).to_json(),
            json
        );

        let (_, json) = golden.state(&case, "double");
        let nested = quantize_scales(&made.absmax).unwrap();
        assert_eq!(
            nested.codes,
            golden.bytes(&format!("{case}.double.absmax")),
            "{case}: scales"
        );
        let absmax = values::<f32>(golden.bytes(&format!("{case}.double.nested_absmax")));
        assert_eq!(nested.absmax, absmax, "{case}: scales of scales");
        let state = QuantState::new(quant_type, blocksize, dtype, shape, Some(nested.offset));
        assert_eq!(state.to_json(), json, "{case}");
    }
}

#[test]
fn restored_values_are_bitsandbytes() {
    let file = std::fs::read(fixtures().join("nf4/quantizer.safetensors")).unwrap();
    let golden = Golden(SafeTensors::deserialize(&file).unwrap());
    for case in golden.cases() {
        let (state, _) = golden.state(&case, "single");
        let scales = values::<f32>(golden.bytes(&format!("{case}.single.absmax")));
        let matrix = CodedMatrix {
            packed: golden.bytes(&format!("{case}.weight")),
            table: &CodeTable::new(state.quant_type.table()),
            scales: BlockScales::Plain(&scales),
            blocksize: state.blocksize,
            rows: 1,
            columns: state.shape.iter().product(),
        };
        let mut restored = vec![0.0; matrix.columns];
        matrix.dequantize(0..matrix.columns, &mut restored);
        let exact = values::<f32>(golden.bytes(&format!("{case}.restored.float32")));
        // What is too small for a normal number becomes 0 on some processors, here and there.
        let normal = |value: f32| if value.is_subnormal() { 0.0 } else { value };
        let normal = |values: &[f32]| values.iter().copied().map(normal).collect::<Vec<_>>();
        assert_eq!(normal(&restored), normal(&exact), "{case}");
        let rounded = values::<bf16>(golden.bytes(&format!("{case}.restored.bfloat16")));
        let ours: Vec<f32> = restored
            .iter()
            .map(|&value| bf16::from_f32(value).to_f32())
            .collect();
        let theirs: Vec<f32> = rounded.iter().map(|value| value.to_f32()).collect();
        assert_eq!(normal(&ours), normal(&theirs), "{case}");
    }
}

#[test]
fn the_tables_are_bitsandbytes() {
    let file = std::fs::read(fixtures().join("nf4/quantizer.safetensors")).unwrap();
    let golden = Golden(SafeTensors::deserialize(&file).unwrap());
    for (quant_type, name) in [(QuantType::Nf4, "table.nf4"), (QuantType::Fp4, "table.fp4")] {
        assert_eq!(quant_type.table().to_vec(), values::<f32>(golden.bytes(name)));
    }
    assert_eq!(
        medical_vision::quant::nf4::dynamic_map().to_vec(),
        values::<f32>(golden.bytes("table.dynamic"))
    );
}

#[test]
fn what_is_not_a_number_shows_in_the_scales() {
    for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut weights = vec![0.5f32; 200];
        weights[130] = odd;
        let made = quantize(&Weights::F32(&weights), QuantType::Nf4, 64).unwrap();
        let finite: Vec<bool> = made.absmax.iter().map(|scale| scale.is_finite()).collect();
        assert_eq!(finite, [true, true, false, true]);
    }
}
