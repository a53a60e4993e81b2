//! Training forward: packed sequences without KV cache and without padding.
//!
//! Linear layers run on the rows of all sequences at once; attention runs per segment. A prefix that consecutive sequences
//! about the same pages share, mostly the pages' image tokens, is computed once.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::{
    Config, Model,
    inputs::{image_rows, scatter_images},
    language::{LanguageModel, Layer},
    layers::apply_rotary,
    lora::FIRST_ADAPTER,
    model::never_cancel,
    mrope::rope_positions,
    token_grid::{TokenGrid, TokenGrids},
    varlen_attention::{Segment, Segments},
};
use crate::blackwell_compat::Reductions;
use crate::kernels::cpu::Heads;
use crate::processing::Grid;
use crate::torch::{
    autograd::{self, attach, detached, recomputed},
    upload,
};
use crate::{Error, Result};

/// Maximum number of logits in memory at once.
const LOGIT_VALUES: i64 = 32 << 20;

/// A prompt with its pages, and the answer.
#[derive(Clone, Copy)]
pub struct Sequence<'a> {
    /// Token ids.
    pub ids: &'a [i64],
    /// Indices of its pages among those of [`Packed`], in order.
    pub pages: &'a [usize],
}

/// Packed sequences; those with a shared prefix follow it.
pub struct Packed {
    ids: Vec<i64>,
    positions: [Vec<i64>; 3],
    segments: Vec<Segment>,
    /// See [`Segments::with_kv_indices`].
    kv_indices: Option<Vec<i64>>,
    sequences: Vec<SequenceRows>,
    /// Rows of image tokens.
    image_rows: Vec<i64>,
    /// Rows of the pages' features for `image_rows`; `None` if they are all of them in order.
    feature_rows: Option<Vec<i64>>,
    grids: Vec<Grid>,
}

/// Rows of one sequence: those of the shared prefix, then those of its suffix.
#[derive(Clone, Copy)]
struct SequenceRows {
    prefix_start: usize,
    prefix_len: usize,
    suffix_start: usize,
}

impl Packed {
    /// Packs `sequences` for a model of `config`. Each page is encoded once per batch.
    pub fn new(config: &Config, pages: &[Grid], sequences: &[Sequence<'_>]) -> Result<Self> {
        // Packed on the host, whatever device the model is on.
        let host = Reductions::on(Device::Cpu);
        let grids = TokenGrids::new(Device::Cpu, host, config.vision.spatial_merge_size).of(pages)?;
        let starts: Vec<usize> = grids
            .iter()
            .scan(0, |end, page| {
                let start = *end;
                *end += page.tokens;
                Some(start)
            })
            .collect();
        let mut packed = Self {
            ids: Vec::new(),
            positions: Default::default(),
            segments: Vec::new(),
            kv_indices: None,
            sequences: Vec::new(),
            image_rows: Vec::new(),
            feature_rows: None,
            grids: pages.to_vec(),
        };
        let (mut feature_rows, mut kv_indices) = (Vec::new(), Vec::new());
        for group in sequences.chunk_by(|a, b| !a.pages.is_empty() && a.pages == b.pages) {
            let prefix_len = shared_prefix(group);
            let prefix_start = packed.ids.len();
            let prefix = prefix_start as i64..(prefix_start + prefix_len) as i64;
            if prefix_len > 0 {
                packed.segments.push(Segment {
                    q_len: prefix_len as i64,
                    kv_len: prefix_len as i64,
                });
                kv_indices.extend(prefix.clone());
            }
            for (i, sequence) in group.iter().enumerate() {
                let own_pages: Vec<TokenGrid> = sequence.pages.iter().map(|&page| grids[page]).collect();
                let positions = rope_positions(sequence.ids, config.image_token_id, &own_pages)?;
                // The first sequence contributes the shared prefix.
                let first = if i == 0 { 0 } else { prefix_len };
                let suffix_start = packed.ids.len() + prefix_len - first;
                for (all, own) in packed.positions.iter_mut().zip(&positions.ids) {
                    all.extend(&own[first..]);
                }
                packed.ids.extend(&sequence.ids[first..]);
                let images = |ids: &[i64]| ids.iter().filter(|&&id| id == config.image_token_id).count();
                let rows = sequence.pages.iter().zip(&own_pages).flat_map(|(&page, grid)| {
                    let start = starts[page];
                    (start..start + grid.tokens).map(|row| row as i64)
                });
                feature_rows.extend(rows.skip(images(&sequence.ids[..first])));
                packed.sequences.push(SequenceRows {
                    prefix_start,
                    prefix_len,
                    suffix_start,
                });
                packed.segments.push(Segment {
                    q_len: (sequence.ids.len() - prefix_len) as i64,
                    kv_len: sequence.ids.len() as i64,
                });
                kv_indices.extend(prefix.clone());
                kv_indices.extend(suffix_start as i64..packed.ids.len() as i64);
            }
        }
        packed.kv_indices = packed
            .segments
            .iter()
            .any(|segment| segment.q_len != segment.kv_len)
            .then_some(kv_indices);
        let all: usize = grids.iter().map(|page| page.tokens).sum();
        let in_order = feature_rows.len() == all && feature_rows.iter().zip(0..).all(|(row, i)| *row == i);
        packed.feature_rows = (!in_order).then_some(feature_rows);
        packed.image_rows = image_rows(&packed.ids, config.image_token_id);
        Ok(packed)
    }

    /// Number of rows of all sequences.
    pub fn rows(&self) -> usize {
        self.ids.len()
    }

    /// The row of token `token` of sequence `sequence`.
    pub fn row(&self, sequence: usize, token: usize) -> i64 {
        let rows = self.sequences[sequence];
        let row = match token < rows.prefix_len {
            true => rows.prefix_start + token,
            false => rows.suffix_start + token - rows.prefix_len,
        };
        row as i64
    }
}

/// Length of the shared prefix of `group`; every sequence is at least one token longer.
fn shared_prefix(group: &[Sequence<'_>]) -> usize {
    let [first, others @ ..] = group else { return 0 };
    let shared = others.iter().map(|other| {
        let pairs = first.ids.iter().zip(other.ids);
        pairs.take_while(|(a, b)| a == b).count()
    });
    let shortest = group.iter().map(|sequence| sequence.ids.len()).min().unwrap_or(0);
    shared.min().unwrap_or(0).min(shortest.saturating_sub(1))
}

impl Model {
    /// Sets the seed of the LoRA dropout masks of the following passes; 0 disables dropout.
    pub fn set_dropout_seed(&self, seed: u64) {
        self.dropout_seed.set(seed);
    }

    /// Hidden states `[rows.len(), hidden]` of `rows`, before the final norm; tracked by autograd if the adapter is being
    /// trained. `pixel_values`: patches of [`Packed`]'s pages, concatenated, `[patches, patch_values]`.
    ///
    /// `recompute`: activation checkpointing; layers save only their inputs and are recomputed in the backward pass.
    ///
    /// # Errors
    /// [`Error::ImageTokens`] if the pages do not match the image tokens.
    pub fn packed_hidden(
        &self,
        packed: &Packed,
        pixel_values: Option<&Tensor>,
        rows: &[i64],
        recompute: bool,
    ) -> Result<Tensor> {
        let x = tch::no_grad(|| self.language.embed(&packed.ids, FIRST_ADAPTER))?;
        let mut features = match pixel_values {
            Some(pixels) => Some(self.vision.forward(
                pixels,
                &packed.grids,
                FIRST_ADAPTER,
                recompute,
                &mut never_cancel,
            )?),
            None => None,
        };
        if let (Some(all), Some(rows)) = (&features, &packed.feature_rows) {
            features = Some(all.f_index_select(0, &upload(rows, all.device())?)?);
        }
        let x = scatter_images(x, &packed.image_rows, features.as_ref())?;
        let rows = upload(rows, x.device())?;
        self.language.packed(x, packed, &rows, recompute)
    }

    /// Sum of the cross-entropy of `labels` over the rows, times `scale`; an f32 scalar, tracked by autograd.
    ///
    /// hidden: `[labels.len(), hidden]`. Logits are computed for a chunk of rows at a time, in both passes.
    pub fn packed_loss(&self, hidden: &Tensor, labels: &[i64], scale: f64) -> Result<Tensor> {
        self.language.loss(hidden, labels, scale)
    }
}

/// Inputs of a layer's attention besides its weights.
struct AttentionContext {
    heads: usize,
    kv_heads: usize,
    dim: usize,
    /// Rotary tables, `[rows, dim]` each.
    cos: Tensor,
    sin: Tensor,
    segments: Segments,
}

// SAFETY: its tables are only read, which libtorch allows on any thread.
unsafe impl Sync for AttentionContext {}

impl LanguageModel {
    fn packed(&self, mut x: Tensor, packed: &Packed, rows: &Tensor, recompute: bool) -> Result<Tensor> {
        let (cos, sin) = self.rotary(&packed.positions)?;
        let context = Arc::new(AttentionContext {
            heads: self.config.num_attention_heads,
            kv_heads: self.config.num_key_value_heads,
            dim: self.config.head_dim,
            cos,
            sin,
            segments: Segments::with_kv_indices(
                packed.segments.clone(),
                packed.kv_indices.as_deref(),
                self.kind,
                self.device,
            )?,
        });
        if recompute && !x.requires_grad() {
            // A recomputed layer gets its gradient through its input, which must be tracked.
            x = x.set_requires_grad(true);
        }
        for (i, layer) in self.layers.iter().enumerate() {
            let rows = (i + 1 == self.layers.len()).then(|| rows.shallow_clone());
            x = if recompute {
                let (layer, context) = (Arc::clone(layer), Arc::clone(&context));
                recomputed(&x, move |x| layer.packed(x, &context, rows.as_ref()))?
            } else {
                layer.packed(&x, &context, rows.as_ref())?
            };
        }
        Ok(x)
    }

    fn loss(&self, hidden: &Tensor, labels: &[i64], scale: f64) -> Result<Tensor> {
        let normed = self.norm.forward(hidden)?;
        let labels = upload(labels, normed.device())?;
        if self.head.loras.of(FIRST_ADAPTER).is_some() {
            let logits = self
                .head
                .forward(&normed, FIRST_ADAPTER)?
                .f_to_kind(Kind::Float)?;
            let loss =
                logits.f_cross_entropy_loss(&labels, None::<&Tensor>, tch::Reduction::Sum, -100, 0.0)?;
            return Ok(loss.f_mul_scalar(scale)?);
        }
        let with_gradient = autograd::tracks(&[&normed]);
        let saved = detached(&normed);
        let (loss, gradient) =
            tch::no_grad(|| self.loss_and_gradient(&saved, &labels, scale, with_gradient))?;
        attach(&[&normed], loss, move |outer, _| {
            Ok(vec![Some(gradient.f_mul(&outer.f_to_kind(gradient.kind())?)?)])
        })
    }

    /// The loss and, `with_gradient`, its gradient with respect to `x` (else empty), in one pass over the output head.
    fn loss_and_gradient(
        &self,
        x: &Tensor,
        labels: &Tensor,
        scale: f64,
        with_gradient: bool,
    ) -> Result<(Tensor, Tensor)> {
        let (rows, chunk) = (x.size()[0], (LOGIT_VALUES / self.config.vocab_size as i64).max(1));
        let mut loss = Tensor::f_zeros([] as [i64; 0], (Kind::Float, x.device()))?;
        let gradient = Tensor::f_empty(
            if with_gradient { x.size() } else { vec![0] },
            (x.kind(), x.device()),
        )?;
        self.head.weight.values(&self.head.scratch, x.kind(), |w| {
            for start in (0..rows).step_by(chunk as usize) {
                let length = chunk.min(rows - start);
                let part = x.f_narrow(0, start, length)?;
                let labels = labels.f_narrow(0, start, length)?.f_unsqueeze(1)?;
                let logits = part.f_matmul(&w.f_tr()?)?.f_to_kind(Kind::Float)?;
                let mut log_probs = logits.f_log_softmax(-1, Kind::Float)?;
                let own = log_probs.f_gather(1, &labels, false)?.f_sum(Kind::Float)?;
                loss = loss.f_sub(&own)?;
                if with_gradient {
                    let mut probs = log_probs.f_exp_()?;
                    let minus = Tensor::f_full([length, 1], -1.0, (Kind::Float, x.device()))?;
                    let probs = probs.f_scatter_add_(1, &labels, &minus)?.f_mul_scalar_(scale)?;
                    gradient
                        .f_narrow(0, start, length)?
                        .f_copy_(&probs.f_to_kind(x.kind())?.f_matmul(w)?)?;
                }
            }
            Ok::<(), Error>(())
        })?;
        Ok((loss.f_mul_scalar(scale)?, gradient))
    }
}

impl Layer {
    /// x: `[rows, hidden]` → the same, or its rows `rows` only.
    fn packed(&self, x: &Tensor, context: &AttentionContext, rows: Option<&Tensor>) -> Result<Tensor> {
        let normed = self.input_norm.forward(x)?;
        let attended = self.packed_attention(&normed, context)?;
        let select = |t: Tensor| match rows {
            Some(rows) => t.f_index_select(0, rows),
            None => Ok(t),
        };
        let attended = self.o.forward(&select(attended)?, FIRST_ADAPTER)?;
        let x = select(x.shallow_clone())?.f_add(&attended)?;
        let delta = self.mlp.forward(&self.post_norm.forward(&x)?, FIRST_ADAPTER)?;
        Ok(x.f_add(&delta)?)
    }

    /// x: `[rows, hidden]` → input of the output projection, `[rows, heads * dim]`.
    fn packed_attention(&self, x: &Tensor, context: &AttentionContext) -> Result<Tensor> {
        let dim = context.dim as i64;
        let rotate = |t: Tensor, count: usize| {
            let heads = Heads {
                count,
                dim: context.dim,
            };
            apply_rotary(t, heads, &context.cos, &context.sin)
        };
        let rows = x.size()[0];
        let by_head = |t: Tensor| t.f_view([rows, -1, dim]);
        let q = by_head(rotate(self.q.forward(x, FIRST_ADAPTER)?, context.heads)?)?;
        let k = by_head(rotate(self.k.forward(x, FIRST_ADAPTER)?, context.kv_heads)?)?;
        let v = by_head(self.v.forward(x, FIRST_ADAPTER)?)?;
        context.segments.attention(&q, &k, &v, true)
    }
}
