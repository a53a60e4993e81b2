//! Whole sequences at once, one behind the other and without a cache: what a training computes.
//!
//! Linear layers take the rows of all sequences together; attention goes by sequence. No row is padding. What several
//! sequences about one page have in common at their beginning, the page above all, is computed once.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::{
    Config, Model,
    attention::{Run, Runs},
    extents::{Extent, Extents},
    language::{LanguageModel, Layer},
    layers::rotate,
    model::to_the_end,
    positions::rope_positions,
};
use crate::blackwell_compat::Reductions;
use crate::error::PromptError;
use crate::kernels::cpu::Heads;
use crate::processing::Grid;
use crate::torch::{
    autograd::{self, attach, detached, recomputed},
    upload,
};
use crate::{Error, Result};

/// Values of logits that exist at once.
const LOGIT_VALUES: i64 = 32 << 20;

/// One sequence: a prompt with its pages, and what follows.
#[derive(Clone, Copy)]
pub struct Sequence<'a> {
    /// Token ids.
    pub ids: &'a [i64],
    /// Its pages, in order: numbers of [`Packed`]'s.
    pub pages: &'a [usize],
}

/// Sequences, one behind the other, those with a common beginning behind it.
pub struct Packed {
    ids: Vec<i64>,
    positions: [Vec<i64>; 3],
    runs: Vec<Run>,
    /// Rows that the runs see; `None` where each sees its own.
    seen: Option<Vec<i64>>,
    sequences: Vec<Place>,
    /// Rows that stand for image tokens.
    places: Vec<i64>,
    /// Rows of the pages' features that stand there; `None` where it is all of them in their order.
    features: Option<Vec<i64>>,
    grids: Vec<Grid>,
}

/// Where a sequence's rows are.
#[derive(Clone, Copy)]
struct Place {
    /// Where those begin that it shares with its neighbours.
    common: usize,
    /// How many those are.
    shared: usize,
    /// Where the others begin.
    own: usize,
}

impl Packed {
    /// Puts sequences together for a model of `config`. A page that several of them have is looked at once.
    pub fn new(config: &Config, pages: &[Grid], sequences: &[Sequence<'_>]) -> Result<Self> {
        // Assembled by the host, whatever the model computes on.
        let host = Reductions::on(Device::Cpu);
        let extents = Extents::new(Device::Cpu, host, config.vision.spatial_merge_size).of(pages)?;
        let starts: Vec<usize> = extents
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
            runs: Vec::new(),
            seen: None,
            sequences: Vec::new(),
            places: Vec::new(),
            features: None,
            grids: pages.to_vec(),
        };
        let (mut features, mut seen) = (Vec::new(), Vec::new());
        for group in sequences.chunk_by(|a, b| !a.pages.is_empty() && a.pages == b.pages) {
            let shared = common(group);
            let start = packed.ids.len();
            let beginning = start as i64..(start + shared) as i64;
            if shared > 0 {
                packed.runs.push(Run {
                    queries: shared as i64,
                    keys: shared as i64,
                });
                seen.extend(beginning.clone());
            }
            for (i, sequence) in group.iter().enumerate() {
                let own_pages: Vec<Extent> = sequence.pages.iter().map(|&page| extents[page]).collect();
                let positions = rope_positions(sequence.ids, config.image_token_id, &own_pages)?;
                // The first one brings what all have.
                let first = if i == 0 { 0 } else { shared };
                let own = packed.ids.len() + shared - first;
                for (all, own) in packed.positions.iter_mut().zip(&positions.ids) {
                    all.extend(&own[first..]);
                }
                packed.ids.extend(&sequence.ids[first..]);
                let images = |ids: &[i64]| ids.iter().filter(|&&id| id == config.image_token_id).count();
                let rows = sequence.pages.iter().zip(&own_pages).flat_map(|(&page, extent)| {
                    let start = starts[page];
                    (start..start + extent.tokens).map(|row| row as i64)
                });
                features.extend(rows.skip(images(&sequence.ids[..first])));
                packed.sequences.push(Place {
                    common: start,
                    shared,
                    own,
                });
                packed.runs.push(Run {
                    queries: (sequence.ids.len() - shared) as i64,
                    keys: sequence.ids.len() as i64,
                });
                seen.extend(beginning.clone());
                seen.extend(own as i64..packed.ids.len() as i64);
            }
        }
        packed.seen = packed
            .runs
            .iter()
            .any(|run| run.queries != run.keys)
            .then_some(seen);
        let all: usize = extents.iter().map(|page| page.tokens).sum();
        let in_order = features.len() == all && features.iter().zip(0..).all(|(row, i)| *row == i);
        packed.features = (!in_order).then_some(features);
        let rows = packed.ids.iter().enumerate();
        packed.places = rows
            .filter(|(_, id)| **id == config.image_token_id)
            .map(|(row, _)| row as i64)
            .collect();
        Ok(packed)
    }

    /// Rows of all sequences.
    pub fn rows(&self) -> usize {
        self.ids.len()
    }

    /// The row of a sequence's token, both by number.
    pub fn row(&self, sequence: usize, token: usize) -> i64 {
        let place = self.sequences[sequence];
        let row = match token < place.shared {
            true => place.common + token,
            false => place.own + token - place.shared,
        };
        row as i64
    }
}

/// How many tokens all of `group` begin with; each has one more at least.
fn common(group: &[Sequence<'_>]) -> usize {
    let [first, others @ ..] = group else { return 0 };
    let shared = others.iter().map(|other| {
        let pairs = first.ids.iter().zip(other.ids);
        pairs.take_while(|(a, b)| a == b).count()
    });
    let shortest = group.iter().map(|sequence| sequence.ids.len()).min().unwrap_or(0);
    shared.min().unwrap_or(0).min(shortest.saturating_sub(1))
}

impl Model {
    /// Lets the adapter in training drop inputs by this seed from now on; 0: none.
    pub fn set_dropout_seed(&self, seed: u64) {
        self.dropout_seed.set(seed);
    }

    /// Hidden states `[rows.len(), hidden]` of some rows, before the final norm; with a history where the adapter is in
    /// training. `pixel_values` are the patches of [`Packed`]'s pages, one after the other.
    ///
    /// `recompute`: layers keep their inputs alone, and are computed again in the backward pass.
    pub fn packed_hidden(
        &self,
        packed: &Packed,
        pixel_values: Option<&Tensor>,
        rows: &[i64],
        recompute: bool,
    ) -> Result<Tensor> {
        let mut x = tch::no_grad(|| self.language.embed(&packed.ids))?;
        let mut features = match pixel_values {
            Some(pixels) => Some(
                self.vision
                    .forward(pixels, &packed.grids, recompute, &mut to_the_end)?,
            ),
            None => None,
        };
        if let (Some(all), Some(rows)) = (&features, &packed.features) {
            features = Some(all.f_index_select(0, &upload(rows, all.device())?)?);
        }
        let images = features.as_ref().map_or(0, |features| features.size()[0]) as usize;
        if images != packed.places.len() {
            let places = packed.places.len();
            return Err(PromptError::ImageCount { places, images }.into());
        }
        if let Some(features) = features.filter(|_| images > 0) {
            let at = upload(&packed.places, x.device())?;
            x = x.f_index_copy(0, &at, &features.f_to_kind(x.kind())?)?;
        }
        let rows = upload(rows, x.device())?;
        self.language.packed(x, packed, &rows, recompute)
    }

    /// Sum over rows of the cross-entropy of `labels` times `scale`; f32, with a history.
    ///
    /// hidden: `[labels.len(), hidden]`. Logits exist for some rows at a time, in both passes.
    pub fn packed_loss(&self, hidden: &Tensor, labels: &[i64], scale: f64) -> Result<Tensor> {
        self.language.loss(hidden, labels, scale)
    }
}

/// What a layer's attention needs beside its weights.
struct Frame {
    heads: usize,
    kv_heads: usize,
    dim: usize,
    /// Rotary tables, `[rows, dim]` each.
    cos: Tensor,
    sin: Tensor,
    runs: Runs,
}

// SAFETY: its tables are only read, which libtorch allows any thread.
unsafe impl Sync for Frame {}

impl LanguageModel {
    fn packed(&self, mut x: Tensor, packed: &Packed, rows: &Tensor, recompute: bool) -> Result<Tensor> {
        let (cos, sin) = self.rotary(&packed.positions)?;
        let frame = Arc::new(Frame {
            heads: self.config.num_attention_heads,
            kv_heads: self.config.num_key_value_heads,
            dim: self.config.head_dim,
            cos,
            sin,
            runs: Runs::seeing(
                packed.runs.clone(),
                packed.seen.as_deref(),
                self.kind,
                self.device,
            )?,
        });
        if recompute && !x.requires_grad() {
            // What is computed again gets its gradient through its input.
            x = x.set_requires_grad(true);
        }
        for (i, layer) in self.layers.iter().enumerate() {
            let wanted = (i + 1 == self.layers.len()).then(|| rows.shallow_clone());
            x = if recompute {
                let (layer, frame) = (Arc::clone(layer), Arc::clone(&frame));
                recomputed(&x, move |x| layer.packed(x, &frame, wanted.as_ref()))?
            } else {
                layer.packed(&x, &frame, wanted.as_ref())?
            };
        }
        Ok(x)
    }

    fn loss(&self, hidden: &Tensor, labels: &[i64], scale: f64) -> Result<Tensor> {
        let normed = self.norm.forward(hidden)?;
        let labels = upload(labels, normed.device())?;
        if self.head.lora.is_some() {
            let logits = self.head.forward(&normed)?.f_to_kind(Kind::Float)?;
            let loss =
                logits.f_cross_entropy_loss(&labels, None::<&Tensor>, tch::Reduction::Sum, -100, 0.0)?;
            return Ok(loss.f_mul_scalar(scale)?);
        }
        let with_gradient = autograd::tracks(&[&normed]);
        let kept = detached(&normed);
        let (loss, gradient) = tch::no_grad(|| self.loss_and_gradient(&kept, &labels, scale, with_gradient))?;
        attach(&[&normed], loss, move |outer, _| {
            Ok(vec![Some(gradient.f_mul(&outer.f_to_kind(gradient.kind())?)?)])
        })
    }

    /// The loss, and its gradient by `x` (empty where it is not wanted): both in one pass over the head.
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
                let mut likely = logits.f_log_softmax(-1, Kind::Float)?;
                let own = likely.f_gather(1, &labels, false)?.f_sum(Kind::Float)?;
                loss = loss.f_sub(&own)?;
                if with_gradient {
                    let mut odds = likely.f_exp_()?;
                    let minus = Tensor::f_full([length, 1], -1.0, (Kind::Float, x.device()))?;
                    let odds = odds.f_scatter_add_(1, &labels, &minus)?.f_mul_scalar_(scale)?;
                    gradient
                        .f_narrow(0, start, length)?
                        .f_copy_(&odds.f_to_kind(x.kind())?.f_matmul(w)?)?;
                }
            }
            Ok::<(), Error>(())
        })?;
        Ok((loss.f_mul_scalar(scale)?, gradient))
    }
}

impl Layer {
    /// x: `[rows, hidden]` → the same, or the `wanted` rows of it.
    fn packed(&self, x: &Tensor, frame: &Frame, wanted: Option<&Tensor>) -> Result<Tensor> {
        let normed = self.input_norm.forward(x)?;
        let attended = self.packed_attention(&normed, frame)?;
        let select = |t: Tensor| match wanted {
            Some(rows) => t.f_index_select(0, rows),
            None => Ok(t),
        };
        let attended = self.o.forward(&select(attended)?)?;
        let x = select(x.shallow_clone())?.f_add(&attended)?;
        let delta = self.mlp.forward(&self.post_norm.forward(&x)?)?;
        Ok(x.f_add(&delta)?)
    }

    /// x: `[rows, hidden]` → what the output projection takes, `[rows, heads * dim]`.
    fn packed_attention(&self, x: &Tensor, frame: &Frame) -> Result<Tensor> {
        let dim = frame.dim as i64;
        let turn = |t: Tensor, count: usize| {
            let heads = Heads {
                count,
                dim: frame.dim,
            };
            rotate(t, heads, &frame.cos, &frame.sin)
        };
        let rows = x.size()[0];
        let by_head = |t: Tensor| t.f_view([rows, -1, dim]);
        let q = by_head(turn(self.q.forward(x)?, frame.heads)?)?;
        let k = by_head(turn(self.k.forward(x)?, frame.kv_heads)?)?;
        let v = by_head(self.v.forward(x)?)?;
        frame.runs.attention(&q, &k, &v, true)
    }
}
