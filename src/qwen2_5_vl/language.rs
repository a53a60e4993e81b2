//! The language model: embeddings → logits, over a KV cache.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::{
    TextConfig,
    decoder::StepRoom,
    layers::{Mlp, RmsNorm, Weights, rotate},
    linear::{Linear, LinearWeight, Lora},
    model::{GoOn, ask},
    tying::Tying,
};
use crate::Result;
use crate::kernels::cpu::Heads;
use crate::torch::upload;

pub(super) struct Layer {
    pub(super) input_norm: RmsNorm,
    pub(super) q: Linear,
    pub(super) k: Linear,
    pub(super) v: Linear,
    pub(super) o: Linear,
    pub(super) post_norm: RmsNorm,
    pub(super) mlp: Mlp,
}

// SAFETY: a layer is shared by its model and the graph of a training alone, whose backward pass runs while the model's thread
// waits for it.
unsafe impl Sync for Layer {}

/// Keys and values of one sequence, allocated once for all its tokens.
pub struct KvCache {
    /// Per layer: keys and values, each `[1, kv_heads, capacity, head_dim]`.
    pub(super) layers: Vec<(Tensor, Tensor)>,
    pub(super) length: i64,
    pub(super) capacity: i64,
    /// Position of the next token on all three axes.
    pub(super) next_position: i64,
    /// What one step on the CPU works in.
    pub(super) room: StepRoom,
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

/// Which hidden states of a prompt are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Those of every token.
    All,
    /// That of the last token: the last layer is computed for it alone.
    Last,
}

/// Decoder layers, embedding and head.
pub(super) struct LanguageModel {
    pub(super) config: TextConfig,
    pub(super) embed: Tensor,
    /// An adapter's part of the embedding table.
    embed_lora: Option<Lora>,
    /// Shared with the graph of a training.
    pub(super) layers: Vec<Arc<Layer>>,
    pub(super) norm: RmsNorm,
    pub(super) head: Linear,
    pub(super) inverse: Tensor,
    pub(super) kind: Kind,
    pub(super) device: Device,
}

impl LanguageModel {
    pub(super) fn load(w: &Weights<'_>, config: &TextConfig, tying: Tying) -> Result<Self> {
        let c = config;
        let kv = c.num_key_value_heads * c.head_dim;
        let tied = tying != Tying::Apart;
        let embed = w.embedding(tying, &[c.vocab_size, c.hidden_size])?;
        let layers = (0..c.num_hidden_layers)
            .map(|i| {
                let name = format!("model.layers.{i}");
                let attn = format!("{name}.self_attn");
                Ok(Arc::new(Layer {
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
                }))
            })
            .collect::<Result<Vec<_>>>()?;
        let head = if tied {
            Linear::new(LinearWeight::Dense(embed.shallow_clone()), None, &w.scratch)
                .with_lora(w.lora("lm_head")?)
        } else {
            w.linear("lm_head", c.vocab_size, c.hidden_size, false)?
        };
        Ok(Self {
            norm: w.rms_norm("model.norm", c.hidden_size, c.rms_norm_eps)?,
            inverse: c.rope.inverse_frequencies(c.head_dim)?.f_to_device(w.device)?,
            config: config.clone(),
            embed,
            embed_lora: w.lora("model.embed_tokens")?,
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
            room: StepRoom::default(),
        })
    }

    /// ids: `[rows]` → `[rows, hidden]`.
    pub(super) fn embed(&self, ids: &[i64]) -> Result<Tensor> {
        let at = upload(ids, self.embed.device())?;
        let rows = self.embed.f_index_select(0, &at)?;
        let rows = rows.f_to_device(self.device)?.f_to_kind(self.kind)?;
        let Some(lora) = &self.embed_lora else {
            return Ok(rows);
        };
        let at = upload(ids, self.device)?;
        let low = lora.b.f_index_select(0, &at)?.f_to_kind(self.kind)?;
        let part = low.f_matmul(&lora.a.f_to_kind(self.kind)?)?;
        Ok(rows.f_add(&part.f_mul_scalar(lora.scale)?)?)
    }

    /// x: `[rows, hidden]` at `positions` (three axes) → hidden states `[rows or 1, hidden]`; appends to the cache.
    ///
    /// `go_on` is asked before every layer.
    pub(super) fn forward(
        &self,
        mut x: Tensor,
        positions: &[Vec<i64>; 3],
        cache: &mut KvCache,
        wanted: Wanted,
        go_on: &mut GoOn<'_>,
    ) -> Result<Tensor> {
        let rows = x.size()[0];
        let rotary = self.rotary(positions)?;
        let mut delta = None;
        for (i, (layer, kept)) in self.layers.iter().zip(&cache.layers).enumerate() {
            ask(go_on)?;
            let normed = layer.input_norm.after(&mut x, delta.as_ref())?;
            let queries = if wanted == Wanted::Last && i + 1 == self.layers.len() {
                x = x.f_narrow(0, rows - 1, 1)?;
                1
            } else {
                rows
            };
            let attended = self.attention(layer, &normed, queries, &rotary, (kept, cache.length))?;
            let normed = layer.post_norm.after(&mut x, Some(&attended))?;
            delta = Some(layer.mlp.forward(&normed)?);
        }
        cache.length += rows;
        match delta {
            Some(delta) => Ok(x.f_add_(&delta)?),
            None => Ok(x),
        }
    }

    /// Hidden states `[rows, hidden]` → logits `[rows, vocab]` f32.
    pub(super) fn logits(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self
            .head
            .forward(&self.norm.forward(x)?)?
            .f_to_kind(Kind::Float)?)
    }

    /// Attention of the last `queries` rows of x: `[rows, hidden]` → `[queries, hidden]`.
    fn attention(
        &self,
        layer: &Layer,
        x: &Tensor,
        queries: i64,
        (cos, sin): &(Tensor, Tensor),
        ((keys, values), past): (&(Tensor, Tensor), i64),
    ) -> Result<Tensor> {
        let c = &self.config;
        let (rows, dim) = (x.size()[0], c.head_dim as i64);
        let last = |t: &Tensor| t.f_narrow(0, rows - queries, queries);
        let turn = |t: Tensor, count: usize, cos: &Tensor, sin: &Tensor| {
            let heads = Heads {
                count,
                dim: c.head_dim,
            };
            rotate(t, heads, cos, sin)
        };
        let by_head = |t: &Tensor, rows: i64| -> Result<Tensor> {
            Ok(t.f_view([rows, -1, dim])?.f_transpose(0, 1)?.f_unsqueeze(0)?)
        };
        let q = layer.q.forward(&last(x)?)?;
        let q = turn(q, c.num_attention_heads, &last(cos)?, &last(sin)?)?;
        let k = turn(layer.k.forward(x)?, c.num_key_value_heads, cos, sin)?;
        let v = layer.v.forward(x)?;
        keys.f_narrow(2, past, rows)?.f_copy_(&by_head(&k, rows)?)?;
        values.f_narrow(2, past, rows)?.f_copy_(&by_head(&v, rows)?)?;
        let (k, v) = (
            keys.f_narrow(2, 0, past + rows)?,
            values.f_narrow(2, 0, past + rows)?,
        );
        let grouped = c.num_attention_heads != c.num_key_value_heads;
        let causal = queries > 1; // a prompt goes in at once, on an empty cache
        let y = Tensor::f_scaled_dot_product_attention(
            &by_head(&q, queries)?,
            &k,
            &v,
            None::<Tensor>,
            0.0,
            causal,
            None,
            grouped,
        )?;
        let y = y.f_squeeze_dim(0)?.f_transpose(0, 1)?;
        layer.o.forward(&y.f_reshape([queries, -1])?)
    }

    /// cos and sin `[rows, head_dim]`: each frequency follows the axis its mrope section names.
    pub(super) fn rotary(&self, positions: &[Vec<i64>; 3]) -> Result<(Tensor, Tensor)> {
        let (mut parts, mut start) = (Vec::new(), 0);
        for (axis, &width) in positions.iter().zip(&self.config.rope.sections) {
            let p = upload(axis, self.device)?.f_to_kind(Kind::Float)?;
            let inverse = self.inverse.f_narrow(0, start, width as i64)?;
            parts.push(p.f_unsqueeze(1)?.f_mul(&inverse)?);
            start += width as i64;
        }
        let half = Tensor::f_cat(&parts, 1)?;
        let angles = Tensor::f_cat(&[&half, &half], 1)?;
        let scaled = |wave: Tensor| match self.config.rope.attention_factor() {
            1.0 => Ok(wave),
            factor => wave.f_mul_scalar(factor),
        };
        Ok((
            scaled(angles.f_cos()?)?.f_to_kind(self.kind)?,
            scaled(angles.f_sin()?)?.f_to_kind(self.kind)?,
        ))
    }
}
