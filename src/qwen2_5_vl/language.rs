//! The language model: embeddings → logits, over a KV cache.

use tch::{Device, Kind, Tensor};

use super::TextConfig;
use super::layers::{Linear, Mlp, RmsNorm, Weights, rotate};
use super::vision::inverse_frequencies;
use crate::Result;

struct Layer {
    input_norm: RmsNorm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    post_norm: RmsNorm,
    mlp: Mlp,
}

/// Keys and values of one sequence, allocated once for all its tokens.
pub struct KvCache {
    /// Per layer: keys and values, each `[1, kv_heads, capacity, head_dim]`.
    layers: Vec<(Tensor, Tensor)>,
    length: i64,
    capacity: i64,
    /// Position of the next token on all three axes.
    pub(super) next_position: i64,
}

impl KvCache {
    /// Tokens held.
    pub fn len(&self) -> usize {
        self.length as usize
    }

    /// No tokens held.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Most tokens it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity as usize
    }
}

/// Decoder layers, embedding and head.
pub(super) struct LanguageModel {
    config: TextConfig,
    embed: Tensor,
    layers: Vec<Layer>,
    norm: RmsNorm,
    head: Linear,
    inverse: Tensor,
    kind: Kind,
    device: Device,
}

impl LanguageModel {
    pub(super) fn load(w: &Weights<'_>, config: &TextConfig, tied: bool) -> Result<Self> {
        let c = config;
        let kv = c.num_key_value_heads * c.head_dim;
        let embed = w.tensor("model.embed_tokens.weight", &[c.vocab_size, c.hidden_size])?;
        let layers = (0..c.num_hidden_layers)
            .map(|i| {
                let name = format!("model.layers.{i}");
                let attn = format!("{name}.self_attn");
                Ok(Layer {
                    input_norm: w.rms_norm(
                        &format!("{name}.input_layernorm"),
                        c.hidden_size,
                        c.rms_norm_eps,
                    )?,
                    q: w.linear(&format!("{attn}.q_proj"), c.hidden_size, c.hidden_size, true)?,
                    k: w.linear(&format!("{attn}.k_proj"), kv, c.hidden_size, true)?,
                    v: w.linear(&format!("{attn}.v_proj"), kv, c.hidden_size, true)?,
                    o: w.linear(&format!("{attn}.o_proj"), c.hidden_size, c.hidden_size, false)?,
                    post_norm: w.rms_norm(
                        &format!("{name}.post_attention_layernorm"),
                        c.hidden_size,
                        c.rms_norm_eps,
                    )?,
                    mlp: Mlp::load(
                        w,
                        &format!("{name}.mlp"),
                        (c.hidden_size, c.intermediate_size),
                        false,
                        c.hidden_act,
                    )?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let head = if tied {
            Linear {
                weight: embed.shallow_clone(),
                bias: None,
            }
        } else {
            w.linear("lm_head", c.vocab_size, c.hidden_size, false)?
        };
        Ok(Self {
            norm: w.rms_norm("model.norm", c.hidden_size, c.rms_norm_eps)?,
            inverse: inverse_frequencies(c.rope_theta, c.head_dim as i64)?.f_to_device(w.device)?,
            config: config.clone(),
            embed,
            layers,
            head,
            kind: w.kind,
            device: w.device,
        })
    }

    pub(super) fn cache(&self, capacity: usize) -> Result<KvCache> {
        let c = &self.config;
        let size = [
            1,
            c.num_key_value_heads as i64,
            capacity as i64,
            c.head_dim as i64,
        ];
        let empty = || Tensor::f_empty(size, (self.kind, self.device));
        let layers = self
            .layers
            .iter()
            .map(|_| Ok((empty()?, empty()?)))
            .collect::<Result<Vec<_>>>()?;
        Ok(KvCache {
            layers,
            length: 0,
            capacity: capacity as i64,
            next_position: 0,
        })
    }

    /// ids: `[rows]` → `[rows, hidden]`.
    pub(super) fn embed(&self, ids: &[i64]) -> Result<Tensor> {
        Ok(self
            .embed
            .f_index_select(0, &Tensor::f_from_slice(ids)?.f_to_device(self.device)?)?)
    }

    /// x: `[rows, hidden]` at `positions` (three axes) → hidden states `[rows, hidden]`; appends to the cache.
    pub(super) fn forward(
        &self,
        mut x: Tensor,
        positions: &[Vec<i64>; 3],
        cache: &mut KvCache,
    ) -> Result<Tensor> {
        let rows = x.size()[0];
        let (cos, sin) = self.rotary(positions)?;
        for (layer, (keys, values)) in self.layers.iter().zip(&cache.layers) {
            let normed = layer.input_norm.forward(&x)?;
            let attended = self.attention(layer, &normed, (&cos, &sin), (keys, values), cache.length)?;
            x = x.f_add(&attended)?;
            x = x.f_add(&layer.mlp.forward(&layer.post_norm.forward(&x)?)?)?;
        }
        cache.length += rows;
        Ok(x)
    }

    /// Hidden states `[rows, hidden]` → logits `[rows, vocab]` f32.
    pub(super) fn logits(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self
            .head
            .forward(&self.norm.forward(x)?)?
            .f_to_kind(Kind::Float)?)
    }

    fn attention(
        &self,
        layer: &Layer,
        x: &Tensor,
        (cos, sin): (&Tensor, &Tensor),
        (keys, values): (&Tensor, &Tensor),
        past: i64,
    ) -> Result<Tensor> {
        let c = &self.config;
        let (rows, dim) = (x.size()[0], c.head_dim as i64);
        let split = |t: Tensor| t.f_reshape([rows, -1, dim]);
        let q = rotate(&split(layer.q.forward(x)?)?, cos, sin)?
            .f_transpose(0, 1)?
            .f_unsqueeze(0)?;
        let k = rotate(&split(layer.k.forward(x)?)?, cos, sin)?.f_transpose(0, 1)?;
        let v = split(layer.v.forward(x)?)?.f_transpose(0, 1)?;
        keys.f_narrow(2, past, rows)?.f_copy_(&k.f_unsqueeze(0)?)?;
        values.f_narrow(2, past, rows)?.f_copy_(&v.f_unsqueeze(0)?)?;
        let (k, v) = (
            keys.f_narrow(2, 0, past + rows)?,
            values.f_narrow(2, 0, past + rows)?,
        );
        let grouped = c.num_attention_heads != c.num_key_value_heads;
        let causal = rows > 1; // a prompt goes in at once, on an empty cache
        let y =
            Tensor::f_scaled_dot_product_attention(&q, &k, &v, None::<Tensor>, 0.0, causal, None, grouped)?;
        layer
            .o
            .forward(&y.f_squeeze_dim(0)?.f_transpose(0, 1)?.f_reshape([rows, -1])?)
    }

    /// cos and sin `[rows, 1, head_dim]`: each frequency follows the axis its mrope section names.
    fn rotary(&self, positions: &[Vec<i64>; 3]) -> Result<(Tensor, Tensor)> {
        let (mut parts, mut start) = (Vec::new(), 0);
        for (axis, &width) in positions.iter().zip(&self.config.mrope_section) {
            let p = Tensor::f_from_slice(axis)?
                .f_to_device(self.device)?
                .f_to_kind(Kind::Float)?;
            let inverse = self.inverse.f_narrow(0, start, width as i64)?;
            parts.push(p.f_unsqueeze(1)?.f_mul(&inverse)?);
            start += width as i64;
        }
        let half = Tensor::f_cat(&parts, 1)?;
        let angles = Tensor::f_cat(&[&half, &half], 1)?.f_unsqueeze(1)?;
        Ok((
            angles.f_cos()?.f_to_kind(self.kind)?,
            angles.f_sin()?.f_to_kind(self.kind)?,
        ))
    }
}
