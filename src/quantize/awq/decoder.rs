//! One decoder layer in parts: the inputs of its Linears, and the outputs of its blocks with candidate weights.
//!
//! The model runs whole layers. The scale search runs attention and MLP dozens of times with different weights, with only one
//! layer in memory, in f32. A test compares it with [`crate::qwen2_5_vl`].

use tch::{Device, Kind, Tensor};

use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::qwen2_5_vl::{Activation, Positions, TextConfig};

/// Weight and bias of one Linear.
pub struct Dense {
    /// `[out, in]`
    pub weight: Tensor,
    /// `[out]`
    pub bias: Option<Tensor>,
}

impl Dense {
    /// x: `[rows, in]` → `[rows, out]` with `weight` instead of its own.
    fn with(&self, weight: &Tensor, x: &Tensor) -> Result<Tensor> {
        Ok(x.f_linear(weight, self.bias.as_ref())?)
    }
}

/// One decoder layer.
pub struct DecoderLayer {
    /// Name: `model.layers.N`.
    pub name: String,
    /// `[hidden]`
    pub input_norm: Tensor,
    /// Query projection.
    pub q: Dense,
    /// Key projection.
    pub k: Dense,
    /// Value projection.
    pub v: Dense,
    /// Output projection.
    pub o: Dense,
    /// `[hidden]`
    pub post_norm: Tensor,
    /// Gate projection of the MLP.
    pub gate: Dense,
    /// Up projection.
    pub up: Dense,
    /// Down projection.
    pub down: Dense,
    config: TextConfig,
}

/// Rotary cosines and sines of one prompt, `[rows, 1, head_dim]` each.
pub struct Rotary {
    cos: Tensor,
    sin: Tensor,
}

/// Inputs of a layer's Linears for one prompt, one row per token.
pub struct LayerInputs {
    /// q, k and v: `[rows, hidden]`.
    pub attention: Tensor,
    /// o: `[rows, heads * head_dim]`.
    pub heads: Tensor,
    /// gate and up: `[rows, hidden]`.
    pub mlp: Tensor,
    /// down: `[rows, intermediate]`.
    pub product: Tensor,
    /// Output of the layer: `[rows, hidden]`.
    pub next: Tensor,
}

impl DecoderLayer {
    /// Loads layer `index` as f32.
    pub fn load(checkpoint: &Checkpoint, config: &TextConfig, index: usize, device: Device) -> Result<Self> {
        let c = config;
        let name = format!("model.layers.{index}");
        let tensor = |name: String, shape: &[usize]| checkpoint.load(&name, shape, Kind::Float, device);
        let dense = |part: &str, out: usize, input: usize, bias: bool| {
            Ok::<_, crate::Error>(Dense {
                weight: tensor(format!("{name}.{part}.weight"), &[out, input])?,
                bias: bias
                    .then(|| tensor(format!("{name}.{part}.bias"), &[out]))
                    .transpose()?,
            })
        };
        let (hidden, kv) = (c.hidden_size, c.num_key_value_heads * c.head_dim);
        Ok(Self {
            input_norm: tensor(format!("{name}.input_layernorm.weight"), &[hidden])?,
            q: dense("self_attn.q_proj", hidden, hidden, true)?,
            k: dense("self_attn.k_proj", kv, hidden, true)?,
            v: dense("self_attn.v_proj", kv, hidden, true)?,
            o: dense("self_attn.o_proj", hidden, hidden, false)?,
            post_norm: tensor(format!("{name}.post_attention_layernorm.weight"), &[hidden])?,
            gate: dense("mlp.gate_proj", c.intermediate_size, hidden, false)?,
            up: dense("mlp.up_proj", c.intermediate_size, hidden, false)?,
            down: dense("mlp.down_proj", hidden, c.intermediate_size, false)?,
            config: config.clone(),
            name,
        })
    }

    /// Runs the layer on the hidden states of one prompt, `[rows, hidden]`.
    pub fn inputs(&self, x: &Tensor, rotary: &Rotary) -> Result<LayerInputs> {
        let attention = self.norm(x, &self.input_norm)?;
        let heads = self.heads(
            &attention,
            [&self.q.weight, &self.k.weight, &self.v.weight],
            rotary,
        )?;
        let x = x.f_add(&self.o.with(&self.o.weight, &heads)?)?;
        let mlp = self.norm(&x, &self.post_norm)?;
        let product = self.product(&mlp, [&self.gate.weight, &self.up.weight])?;
        let next = x.f_add(&self.down.with(&self.down.weight, &product)?)?;
        Ok(LayerInputs {
            attention,
            heads,
            mlp,
            product,
            next,
        })
    }

    /// Attention with the given weights for q, k and v. x: `[rows, hidden]`, same shape out.
    pub fn attention(&self, x: &Tensor, qkv: [&Tensor; 3], rotary: &Rotary) -> Result<Tensor> {
        self.o.with(&self.o.weight, &self.heads(x, qkv, rotary)?)
    }

    /// The MLP with the given weights for gate and up. x: `[rows, hidden]`, same shape out.
    pub fn mlp(&self, x: &Tensor, gate_up: [&Tensor; 2]) -> Result<Tensor> {
        self.down.with(&self.down.weight, &self.product(x, gate_up)?)
    }

    fn norm(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let mean_square = x.f_square()?.f_mean_dim(&[-1i64][..], true, Kind::Float)?;
        let scale = mean_square.f_add_scalar(self.config.rms_norm_eps)?.f_rsqrt()?;
        Ok(x.f_mul(&scale)?.f_mul_(weight)?)
    }

    fn heads(&self, x: &Tensor, [q, k, v]: [&Tensor; 3], rotary: &Rotary) -> Result<Tensor> {
        let c = &self.config;
        let rows = x.size()[0];
        // [rows, out] → [1, heads, rows, head_dim]
        let split = |t: Tensor| t.f_view([rows, -1, c.head_dim as i64]);
        let by_head = |t: Tensor| t.f_transpose(0, 1)?.f_unsqueeze(0);
        let q = by_head(rotary.turn(&split(self.q.with(q, x)?)?)?)?;
        let k = by_head(rotary.turn(&split(self.k.with(k, x)?)?)?)?;
        let v = by_head(split(self.v.with(v, x)?)?)?;
        let grouped = c.num_attention_heads != c.num_key_value_heads;
        let y = Tensor::f_scaled_dot_product_attention(&q, &k, &v, None::<Tensor>, 0.0, true, None, grouped)?;
        Ok(y.f_squeeze_dim(0)?.f_transpose(0, 1)?.f_reshape([rows, -1])?)
    }

    fn product(&self, x: &Tensor, [gate, up]: [&Tensor; 2]) -> Result<Tensor> {
        let mut gate = self.gate.with(gate, x)?;
        let mut gate = match self.config.hidden_act {
            Activation::Silu => gate.f_silu_()?,
            Activation::Gelu => gate.f_gelu("none")?,
            Activation::GeluTanh => gate.f_gelu("tanh")?,
        };
        Ok(gate.f_mul_(&self.up.with(up, x)?)?)
    }
}

impl Rotary {
    /// For the prompt at `positions`: each frequency uses the axis of its M-RoPE section.
    pub fn new(positions: &Positions, config: &TextConfig, device: Device) -> Result<Self> {
        let half = config.head_dim / 2;
        let mut angles = Vec::with_capacity(positions.ids[0].len() * 2 * half);
        let axes: Vec<usize> = config
            .rope
            .sections
            .iter()
            .enumerate()
            .flat_map(|(axis, &width)| std::iter::repeat_n(axis, width))
            .collect();
        let frequencies = Vec::<f32>::try_from(config.rope.inverse_frequencies(config.head_dim)?)?;
        for row in 0..positions.ids[0].len() {
            for _ in 0..2 {
                let turns = axes.iter().zip(&frequencies);
                angles.extend(turns.map(|(&axis, frequency)| positions.ids[axis][row] as f32 * frequency));
            }
        }
        let angles = Tensor::f_from_slice(&angles)?
            .f_view([-1, 1, config.head_dim as i64])?
            .f_to_device(device)?;
        let factor = config.rope.attention_factor();
        Ok(Self {
            cos: angles.f_cos()?.f_mul_scalar(factor)?,
            sin: angles.f_sin()?.f_mul_scalar(factor)?,
        })
    }

    /// x: `[rows, heads, head_dim]`, same shape out: x · cos + rotate_half(x) · sin.
    fn turn(&self, x: &Tensor) -> Result<Tensor> {
        let half = x.size()[2] / 2;
        let turned = Tensor::f_cat(&[x.f_narrow(2, half, half)?.f_neg()?, x.f_narrow(2, 0, half)?], 2)?;
        Ok(x.f_mul(&self.cos)?.f_add(&turned.f_mul(&self.sin)?)?)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::checkpoint::JsonFile;
    use crate::qwen2_5_vl::Config;

    /// Frequencies and the YaRN attention factor are the model's.
    #[test]
    fn yarn_rotates_a_prompt_as_the_model_does() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/configs/hub/7b-yarn.json");
        let value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        let config = JsonFile::new(file, value).unwrap();
        let config = Config::from_json(&config).unwrap().text;
        let positions = Positions {
            ids: [0, 1, 2].map(|axis| vec![0, axis, 40_000]),
            next: 0,
        };
        let rotary = Rotary::new(&positions, &config, Device::Cpu).unwrap();
        let factor = config.rope.attention_factor();
        assert!((factor - 1.138_629_436_111_989).abs() < 1e-9);
        assert_eq!(rotary.cos.size(), [3, 1, 128]);
        let row = |tensor: &Tensor, row| Vec::<f32>::try_from(tensor.get(row).flatten(0, -1)).unwrap();
        assert!(
            row(&rotary.cos, 0)
                .iter()
                .all(|&cos| (f64::from(cos) - factor).abs() < 1e-6)
        );
        let inverse = Vec::<f32>::try_from(config.rope.inverse_frequencies(128).unwrap()).unwrap();
        for (i, &frequency) in inverse.iter().enumerate() {
            let sin = (40_000.0 * frequency).sin() * factor as f32;
            assert!(
                (row(&rotary.sin, 2)[i] - sin).abs() < 1e-5
                    && (row(&rotary.sin, 2)[64 + i] - sin).abs() < 1e-5
            );
        }
    }
}
