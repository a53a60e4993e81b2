//! Random weights of a model, made tensor by tensor while it loads.
//!
//! Layouts are those of `quantize_base`'s folders: bitsandbytes quantizes every linear layer but the output head, AWQ those of the
//! decoder layers. Values keep activations finite; they mean nothing.

use std::collections::HashMap;

use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

use super::shapes::{BLOCKSIZE, Form};
use crate::Error;
use crate::Result;
use crate::checkpoint::{Checkpoint, JsonFile, TensorPlan};
use crate::quant::nf4::{QuantState, QuantType, dynamic_map};
use crate::quant::{Awq, Quantization, SizeSpec, TensorSpec};
use crate::qwen2_5_vl::{Config, ExpectedTensor};
use crate::random::SeededRng;

/// Random bytes that codes are copied from; an odd number, so that rows of a weight begin at different places.
const NOISE_BYTES: usize = (4 << 20) - 1;
/// Values that dense weights are copied from; odd, too.
const NOISE_VALUES: usize = (1 << 20) - 1;
/// Bytes per step of a thread.
const STEP_BYTES: usize = 1 << 20;
/// Dense values below this are zero, so that f16 holds each one as bf16 does.
const LEAST: f32 = 1.0 / 4096.0;
/// Largest value of a block in standard deviations.
const BLOCK_PEAK: f32 = 2.5;
/// Standard deviation of uniform codes around AWQ's zero point.
const CODE_DEVIATION: f32 = 4.6;

/// What a tensor is filled with.
enum Content {
    /// Normally distributed, with this standard deviation.
    Normal(f32),
    /// The same value everywhere.
    Constant(f32),
    /// Random bytes.
    Codes,
    /// These bytes.
    Bytes(Vec<u8>),
    /// The same byte everywhere.
    Byte(u8),
}

/// The checkpoint of a model with random weights.
pub(super) fn random_checkpoint(file: &JsonFile, form: Form) -> Result<Checkpoint> {
    let config = Config::from_json(file)?;
    let quantization = Quantization::from_json(file)?;
    let mut tensors = Tensors {
        dense: match form {
            Form::Awq => Dtype::F16,
            _ => Dtype::BF16,
        },
        plans: Vec::new(),
        contents: HashMap::new(),
    };
    for tensor in config.expected_tensors() {
        tensors.add(&tensor, form, &quantization)?;
    }
    let (noise, contents) = (Noise::new(), tensors.contents);
    let fill = move |plan: &TensorPlan, out: &mut [u8]| {
        if let Some(content) = contents.get(&plan.name) {
            noise.fill(content, plan, out);
        }
    };
    Ok(Checkpoint::generated(tensors.plans, Box::new(fill)))
}

struct Tensors {
    /// Dtype of what is not quantized.
    dense: Dtype,
    plans: Vec<TensorPlan>,
    /// By name.
    contents: HashMap<String, Content>,
}

impl Tensors {
    fn add(&mut self, tensor: &ExpectedTensor, form: Form, quantization: &Quantization) -> Result<()> {
        let name = &tensor.name;
        if let (true, &[rows, columns]) = (tensor.linear && name != "lm_head.weight", &tensor.shape[..]) {
            if let Some(quant_type) = form.bitsandbytes() {
                self.add_bitsandbytes(name, quant_type, [rows, columns]);
                return Ok(());
            }
            if let Quantization::Awq(settings) = quantization
                && name.starts_with("model.layers.")
            {
                return self.add_awq(name, settings, [rows, columns]);
            }
        }
        let content = match &tensor.shape[..] {
            [_] if name.ends_with(".bias") => Content::Normal(0.02),
            [_] => Content::Constant(1.0),
            [_, inputs @ ..] => Content::Normal(deviation(inputs.iter().product())),
            [] => Content::Constant(0.0),
        };
        self.put(name.clone(), self.dense, tensor.shape.clone(), content);
        Ok(())
    }

    fn add_bitsandbytes(&mut self, name: &str, quant_type: QuantType, shape: [usize; 2]) {
        let scale = BLOCK_PEAK * deviation(shape[1]);
        let state = QuantState::new(quant_type, BLOCKSIZE, "bfloat16", &shape, Some(scale));
        for spec in state.tensors() {
            let content = match spec.suffix {
                "quant_map" => Content::Bytes(float_bytes(quant_type.table())),
                "nested_quant_map" => Content::Bytes(float_bytes(dynamic_map())),
                // The codes of the scales stand for -1 to 1: scales from three to five quarters of the offset.
                "nested_absmax" => Content::Constant(scale / 4.0),
                _ => Content::Codes,
            };
            let dot = if spec.suffix.is_empty() { "" } else { "." };
            self.put_spec(format!("{name}{dot}{}", spec.suffix), &spec, content);
        }
        let state_bytes = state.to_json().into_bytes();
        self.put(
            quant_type.state_name(name),
            Dtype::U8,
            vec![state_bytes.len()],
            Content::Bytes(state_bytes),
        );
    }

    fn add_awq(&mut self, name: &str, settings: &Awq, shape: [usize; 2]) -> Result<()> {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let specs = settings
            .tensors(shape)
            .map_err(|reason| Error::Internal(format!("AWQ cannot hold {name}: {reason}")))?;
        for spec in specs {
            let content = match spec.suffix {
                "scales" => Content::Constant(deviation(shape[1]) / CODE_DEVIATION),
                // Zero points of 8, the middle of the codes.
                "qzeros" => Content::Byte(0x88),
                _ => Content::Codes,
            };
            self.put_spec(format!("{module}.{}", spec.suffix), &spec, content);
        }
        Ok(())
    }

    fn put_spec(&mut self, name: String, spec: &TensorSpec, content: Content) {
        let shape = match spec.size {
            SizeSpec::Values(values) => vec![values],
            SizeSpec::Shape(shape) => shape.to_vec(),
        };
        self.put(name, spec.dtypes[0], shape, content);
    }

    fn put(&mut self, name: String, dtype: Dtype, shape: Vec<usize>, content: Content) {
        self.contents.insert(name.clone(), content);
        self.plans.push(TensorPlan { name, dtype, shape });
    }
}

/// Standard deviation that keeps the size of activations.
fn deviation(inputs: usize) -> f32 {
    1.0 / (inputs.max(1) as f32).sqrt()
}

fn float_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Random numbers that all tensors are copied from, which is as fast as memory.
struct Noise {
    bytes: Vec<u8>,
    /// Standard normal distribution.
    normal: Vec<f32>,
}

impl Noise {
    fn new() -> Self {
        let mut random = SeededRng::from_seed(42);
        let mut bytes = vec![0; NOISE_BYTES];
        random.fill(&mut bytes);
        // A sum of twelve uniform numbers is close enough to a normal distribution, and bounded.
        let normal = (0..NOISE_VALUES)
            .map(|_| {
                let mut twelve = [0; 12];
                random.fill(&mut twelve);
                twelve.iter().map(|&byte| f32::from(byte) / 255.0).sum::<f32>() - 6.0
            })
            .collect();
        Self { bytes, normal }
    }

    fn fill(&self, content: &Content, plan: &TensorPlan, out: &mut [u8]) {
        match content {
            Content::Bytes(bytes) => out.copy_from_slice(bytes),
            Content::Byte(byte) => out.fill(*byte),
            Content::Constant(value) => repeat(&stored(*value, plan.dtype).repeat(1 << 10), 0, out),
            Content::Codes => repeat(&self.bytes, start(&plan.name), out),
            Content::Normal(deviation) => {
                let width = plan.dtype.bitsize() / 8;
                let used = &self.normal[..self.normal.len().min(out.len() / width)];
                let scaled: Vec<u8> = used
                    .iter()
                    .map(|value| value * deviation)
                    .map(|value| if value.abs() < LEAST { 0.0 } else { value })
                    .flat_map(|value| stored(bf16::from_f32(value).to_f32(), plan.dtype))
                    .collect();
                repeat(&scaled, start(&plan.name) * width, out);
            }
        }
    }
}

/// Where a tensor begins in the noise: not where its neighbours do.
fn start(name: &str) -> usize {
    name.bytes().fold(0, |hash: usize, byte| {
        hash.wrapping_mul(31).wrapping_add(byte.into())
    }) % NOISE_VALUES
}

/// The bytes of one value.
fn stored(value: f32, dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::BF16 => bf16::from_f32(value).to_le_bytes().to_vec(),
        Dtype::F16 => f16::from_f32(value).to_le_bytes().to_vec(),
        _ => value.to_le_bytes().to_vec(),
    }
}

/// Fills `out` with `noise` again and again, first from its byte `start`.
fn repeat(noise: &[u8], start: usize, out: &mut [u8]) {
    if noise.is_empty() {
        return;
    }
    out.par_chunks_mut(STEP_BYTES).enumerate().for_each(|(i, out)| {
        let mut from = (start + i * STEP_BYTES) % noise.len();
        let mut out = out;
        while !out.is_empty() {
            let length = out.len().min(noise.len() - from);
            let (now, rest) = out.split_at_mut(length);
            now.copy_from_slice(&noise[from..from + length]);
            (out, from) = (rest, 0);
        }
    });
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;
    use crate::benchmark::speed::Shape;
    use crate::processing::Grid;
    use crate::qwen2_5_vl::{LogitsToKeep, Model, ModelOptions};

    #[test]
    fn dense_values_are_normal_and_the_same_in_half_precision() {
        for form in [Form::Bf16, Form::Awq] {
            let checkpoint = random_checkpoint(&Shape::Tiny.config(form).unwrap(), form).unwrap();
            let table = checkpoint
                .mapped("model.embed_tokens.weight", &[8192, 256])
                .unwrap();
            let values = table.tensor.to_kind(Kind::Float);
            let deviation = values.std(true).double_value(&[]);
            assert!((deviation - 1.0 / 16.0).abs() < 1e-3, "{deviation}");
            assert!(values.mean(Kind::Float).double_value(&[]).abs() < 1e-3);
            let narrow = values.to_kind(Kind::BFloat16).to_kind(Kind::Float);
            assert!(narrow.equal(&values));
            assert!(values.to_kind(Kind::Half).to_kind(Kind::Float).equal(&values));
            // Rows differ.
            assert!(!values.get(0).equal(&values.get(1)));
        }
    }

    #[test]
    fn a_step_continues_where_the_one_before_it_ended() {
        let noise: Vec<u8> = (0..251).collect();
        let mut out = vec![0; 3 * STEP_BYTES + 5];
        repeat(&noise, 9, &mut out);
        assert!(
            out.iter()
                .enumerate()
                .all(|(i, &byte)| usize::from(byte) == (i + 9) % 251)
        );
    }

    #[test]
    fn the_same_tensors_as_quantize_base_are_quantized() {
        let config = |form| random_checkpoint(&Shape::Tiny.config(form).unwrap(), form).unwrap();
        let (nf4, awq) = (config(Form::Nf4), config(Form::Awq));
        for name in [
            "visual.blocks.0.attn.qkv",
            "model.layers.5.mlp.down_proj",
            "visual.merger.mlp.2",
        ] {
            assert!(nf4.contains(&format!("{name}.weight.nested_absmax")), "{name}");
            assert_eq!(
                awq.contains(&format!("{name}.qweight")),
                name.starts_with("model"),
                "{name}"
            );
        }
        for name in ["visual.patch_embed.proj", "model.embed_tokens"] {
            assert!(
                nf4.kind(&format!("{name}.weight")).is_ok() && awq.kind(&format!("{name}.weight")).is_ok()
            );
        }
        // The embedded model's head is its embedding table.
        assert!(!nf4.contains("lm_head.weight"));
    }

    #[test]
    fn every_form_loads_and_computes_finite_logits() {
        for form in [Form::Bf16, Form::Nf4, Form::Fp4, Form::Awq] {
            let file = Shape::Tiny.config(form).unwrap();
            let config = Config::from_json(&file).unwrap();
            let quantization = Quantization::from_json(&file).unwrap();
            let checkpoint = random_checkpoint(&file, form).unwrap();
            let options = ModelOptions::new(Kind::Float, Device::Cpu);
            let model = Model::load(&checkpoint, &config, &quantization, &options).unwrap();
            let grid = Grid { t: 1, h: 4, w: 4 };
            let patches = Tensor::randn([16, 1176], (Kind::Float, Device::Cpu));
            let features = model.image_features(&patches, &[grid]).unwrap();
            let image = config.image_token_id;
            let ids = [5, image, image, image, image, 6, 7];
            let mut cache = model.cache(9).unwrap();
            let prefill = model.prefill(&ids, Some(&features), &[grid], &mut cache, LogitsToKeep::Last);
            let first = model.logits(&prefill.unwrap().hidden).unwrap();
            for logits in [first, model.decode(8, &mut cache).unwrap()] {
                // Neither NaN nor all the same, and no larger than a trained model's.
                let deviation = logits.std(true).double_value(&[]);
                assert!((0.1..20.0).contains(&deviation), "{form}: {deviation}");
            }
            let bytes = model.weight_bytes(None);
            let values = 6.0 * f64::from(256 * 256 * 3 + 256 * 768 * 3);
            let per_value = bytes.layers as f64 / values;
            let expected = if form == Form::Bf16 { 2.0 } else { 0.53 };
            assert!((per_value - expected).abs() < 0.05, "{form}: {per_value}");
            assert_eq!(bytes.head, 2 * 8192 * 256 + 4 * 256);
            assert_eq!(bytes.step(), bytes.layers + bytes.head);
        }
    }
}
