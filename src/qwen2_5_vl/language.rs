//! The language model: embeddings → logits, over a KV cache. Used for prefill, and for decoding except on a CPU in f32.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::{
    TextConfig,
    decode_cuda::CudaStep,
    kv_cache::KvCache,
    layers::{Mlp, RmsNorm, apply_rotary},
    linear::{Linear, LinearWeight},
    lora::{AdapterIndex, Loras},
    model::{CancelCheck, check_cancelled},
    weight_tying::Tying,
    weights::Weights,
};
use crate::Result;
use crate::kernels::cpu::Heads;
use crate::torch::upload;

/// One decoder layer.
///
/// Reference: [`Qwen2_5_VLDecoderLayer`](https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/models/qwen2_5_vl/modeling_qwen2_5_vl.py#L703-L768).
pub(super) struct Layer {
    pub(super) input_norm: RmsNorm,
    pub(super) q: Linear,
    pub(super) k: Linear,
    pub(super) v: Linear,
    pub(super) o: Linear,
    pub(super) post_norm: RmsNorm,
    pub(super) mlp: Mlp,
}

// SAFETY: a layer is shared only by its model and autograd's graph, whose backward pass runs while the model's thread waits.
unsafe impl Sync for Layer {}

/// Tokens of a prompt whose hidden states are returned, as `logits_to_keep` in transformers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogitsToKeep {
    /// Every token.
    All,
    /// The last token; the last layer is computed for it only.
    Last,
}

/// Decoder layers, embedding and head.
///
/// Reference: [`Qwen2_5_VLTextModel`](https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/models/qwen2_5_vl/modeling_qwen2_5_vl.py#L772-L883).
pub(super) struct LanguageModel {
    pub(super) config: TextConfig,
    pub(super) embed: Tensor,
    /// LoRA pairs of the embedding table.
    embed_loras: Loras,
    /// Shared with autograd's graph.
    pub(super) layers: Vec<Arc<Layer>>,
    pub(super) norm: RmsNorm,
    pub(super) head: Linear,
    /// Rotary frequencies, `[head_dim / 2]` f32.
    pub(super) inverse: Tensor,
    pub(super) kind: Kind,
    pub(super) device: Device,
    /// The GPU's decode step, where the model fits it.
    pub(super) cuda_step: Option<CudaStep>,
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
                .with_loras(w.loras("lm_head")?)
        } else {
            w.linear("lm_head", c.vocab_size, c.hidden_size, false)?
        };
        let mut model = Self {
            norm: w.rms_norm("model.norm", c.hidden_size, c.rms_norm_eps)?,
            inverse: c.rope.inverse_frequencies(c.head_dim)?.f_to_device(w.device)?,
            config: config.clone(),
            embed,
            embed_loras: w.loras("model.embed_tokens")?,
            layers,
            head,
            kind: w.kind,
            device: w.device,
            cuda_step: None,
        };
        if w.device.is_cuda() && w.samples.is_none() {
            match CudaStep::build(&mut model)? {
                Ok(step) => model.cuda_step = Some(step),
                Err(reason) => tracing::info!("decoding on the GPU layer by layer: no kernel for {reason}"),
            }
        }
        Ok(model)
    }

    /// Whether `adapter` changes the embeddings.
    pub(super) fn embeds_with(&self, adapter: AdapterIndex) -> bool {
        self.embed_loras.of(adapter).is_some()
    }

    /// An empty cache for `capacity` tokens.
    pub(super) fn cache(&self, capacity: usize, adapter: AdapterIndex) -> Result<KvCache> {
        KvCache::new(&self.config, capacity, adapter, (self.kind, self.device))
    }

    /// ids: `[rows]` → `[rows, hidden]`.
    pub(super) fn embed(&self, ids: &[i64], adapter: AdapterIndex) -> Result<Tensor> {
        let at = upload(ids, self.embed.device())?;
        let rows = self.embed.f_index_select(0, &at)?;
        let rows = rows.f_to_device(self.device)?.f_to_kind(self.kind)?;
        let Some(lora) = self.embed_loras.of(adapter) else {
            return Ok(rows);
        };
        let at = upload(ids, self.device)?;
        let bx = lora.b.f_index_select(0, &at)?.f_to_kind(self.kind)?;
        let part = bx.f_matmul(&lora.a.f_to_kind(self.kind)?)?;
        Ok(rows.f_add(&part.f_mul_scalar(lora.scale)?)?)
    }

    /// x: `[rows, hidden]` at `positions` (three axes), after the tokens of the cache → hidden states `[rows or 1, hidden]` before
    /// the final norm; appends to the cache. `cancel` is polled before every layer.
    pub(super) fn forward(
        &self,
        mut x: Tensor,
        positions: &[Vec<i64>; 3],
        cache: &mut KvCache,
        keep: LogitsToKeep,
        cancel: &mut CancelCheck<'_>,
    ) -> Result<Tensor> {
        let rows = x.size()[0];
        let rotary = self.rotary(positions)?;
        let mut delta = None;
        for (i, layer) in self.layers.iter().enumerate() {
            check_cancelled(cancel)?;
            let normed = layer.input_norm.add_and_norm(&mut x, delta.as_ref())?;
            let queries = if keep == LogitsToKeep::Last && i + 1 == self.layers.len() {
                x = x.f_narrow(0, rows - 1, 1)?;
                1
            } else {
                rows
            };
            let attended = self.attention(layer, &normed, queries, &rotary, (&*cache, i))?;
            let normed = layer.post_norm.add_and_norm(&mut x, Some(&attended))?;
            delta = Some(layer.mlp.forward(&normed, cache.adapter)?);
        }
        cache.length += rows;
        match delta {
            Some(delta) => Ok(x.f_add_(&delta)?),
            None => Ok(x),
        }
    }

    /// Hidden states `[rows, hidden]` → logits `[rows, vocab]` f32.
    pub(super) fn logits(&self, x: &Tensor, adapter: AdapterIndex) -> Result<Tensor> {
        let logits = self.head.forward(&self.norm.forward(x)?, adapter)?;
        Ok(logits.f_to_kind(Kind::Float)?)
    }

    /// Attention of the last `queries` rows of x, over layer `i` of the cache: `[rows, hidden]` → `[queries, hidden]`.
    ///
    /// Reference: [`Qwen2_5_VLAttention`](https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/models/qwen2_5_vl/modeling_qwen2_5_vl.py#L617-L700).
    fn attention(
        &self,
        layer: &Layer,
        x: &Tensor,
        queries: i64,
        (cos, sin): &(Tensor, Tensor),
        (cache, i): (&KvCache, usize),
    ) -> Result<Tensor> {
        let (c, adapter) = (&self.config, cache.adapter);
        let (rows, dim) = (x.size()[0], c.head_dim as i64);
        let last = |t: &Tensor| t.f_narrow(0, rows - queries, queries);
        let rotate = |t: Tensor, count: usize, cos: &Tensor, sin: &Tensor| {
            let heads = Heads {
                count,
                dim: c.head_dim,
            };
            apply_rotary(t, heads, cos, sin)
        };
        let by_head = |t: &Tensor, rows: i64| -> Result<Tensor> {
            Ok(t.f_view([rows, -1, dim])?.f_transpose(0, 1)?.f_unsqueeze(0)?)
        };
        let q = layer.q.forward(&last(x)?, adapter)?;
        let q = rotate(q, c.num_attention_heads, &last(cos)?, &last(sin)?)?;
        let k = rotate(layer.k.forward(x, adapter)?, c.num_key_value_heads, cos, sin)?;
        let v = layer.v.forward(x, adapter)?;
        let (k, v) = cache.append(i, &by_head(&k, rows)?, &by_head(&v, rows)?)?;
        let grouped = c.num_attention_heads != c.num_key_value_heads;
        let q = by_head(&q, queries)?;
        let y = match cache.length {
            past @ 1.. if queries > 1 => attend_after(&q, (&k, &v), past, grouped)?,
            _ => attend(&q, (&k, &v), None, queries > 1, grouped)?,
        };
        let y = y.f_squeeze_dim(0)?.f_transpose(0, 1)?;
        layer.o.forward(&y.f_reshape([queries, -1])?, adapter)
    }
}

/// `[1, heads, rows, head_dim]` of queries over `[1, kv_heads, tokens, head_dim]` of keys and values.
fn attend(
    q: &Tensor,
    (k, v): (&Tensor, &Tensor),
    mask: Option<&Tensor>,
    causal: bool,
    grouped: bool,
) -> Result<Tensor> {
    Ok(Tensor::f_scaled_dot_product_attention(
        q, k, v, mask, 0.0, causal, None, grouped,
    )?)
}

/// As [`attend`], causal, of queries that follow `past` tokens: in parts, so that no mask is quadratic.
fn attend_after(q: &Tensor, (k, v): (&Tensor, &Tensor), past: i64, grouped: bool) -> Result<Tensor> {
    /// Queries of a part.
    const PART: i64 = 128;
    let rows = q.size()[2];
    let parts = (0..rows).step_by(PART as usize).map(|start| {
        let count = PART.min(rows - start);
        let tokens = past + start + count;
        let mask = Tensor::f_ones([count, tokens], (Kind::Bool, q.device()))?.f_tril(past + start)?;
        let (k, v) = (k.f_narrow(2, 0, tokens)?, v.f_narrow(2, 0, tokens)?);
        attend(
            &q.f_narrow(2, start, count)?,
            (&k, &v),
            Some(&mask),
            false,
            grouped,
        )
    });
    Ok(Tensor::f_cat(&parts.collect::<Result<Vec<_>>>()?, 2)?)
}
