//! CPU decode step: one token of one or several sequences through the language model in a single parallel region.
//!
//! libtorch's operations cost some microseconds each, two dozen of them per layer. Here the threads have five barriers per
//! layer, one more before a product with LoRA, and read every weight once in its storage format for all sequences. A sequence
//! gets the same bits alone and beside others. The general path is
//! [`LanguageModel::forward`].

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use super::Activation;
use super::kv_cache::KvCache;
use super::language::{LanguageModel, Layer};
use super::layers::RmsNorm;
use super::linear::{Linear, LinearRows, floats};
use super::lora::AdapterIndex;
use crate::Result;
use crate::kernels::cpu::{
    AttentionShape, Member, Partial, Shared, attend, combine, kv_split, rms_norm_row, rotate_head, run,
    swiglu_row,
};

/// Scratch buffers of a sequence, reused for every token.
#[derive(Default)]
pub(super) struct DecodeScratch {
    /// KV splits per key and value head.
    splits: usize,
    /// Residual stream, `[hidden]`.
    x: Vec<f32>,
    /// Queries, keys and values of the token, concatenated.
    qkv: Vec<f32>,
    /// Partial attention outputs of each KV split: `[kv_heads, splits, group, head_dim]`.
    split_outputs: Vec<f32>,
    /// Their softmax statistics, `[kv_heads, splits, group]`.
    partials: Vec<Partial>,
    /// `[intermediate]` each.
    gate: Vec<f32>,
    up: Vec<f32>,
    /// LoRA A·x activations.
    lora_ax: Vec<f32>,
    /// `[vocab]`.
    logits: Vec<f32>,
    /// `[head_dim]` each.
    cos: Vec<f32>,
    sin: Vec<f32>,
    threads: Vec<ThreadScratch>,
}

/// Scratch buffers of one thread for one sequence.
#[derive(Default, Clone)]
struct ThreadScratch {
    normed: Vec<f32>,
    attended: Vec<f32>,
    out: Vec<f32>,
    queries: Vec<f32>,
    heads: Vec<f32>,
    partials: Vec<Partial>,
    scores: Vec<f32>,
}

/// A norm's weight and epsilon.
struct NormRow<'a> {
    weight: &'a [f32],
    eps: f32,
}

impl<'a> NormRow<'a> {
    fn new(norm: &'a RmsNorm) -> Self {
        Self {
            weight: floats(&norm.weight),
            eps: norm.eps as f32,
        }
    }
}

/// A decoder layer with the adapter and the KV cache of a sequence, shared by the threads.
struct LayerRows<'a> {
    input_norm: NormRow<'a>,
    q: LinearRows<'a>,
    k: LinearRows<'a>,
    v: LinearRows<'a>,
    o: LinearRows<'a>,
    post_norm: NormRow<'a>,
    gate: LinearRows<'a>,
    up: LinearRows<'a>,
    down: LinearRows<'a>,
    keys: Shared<'a, f32>,
    values: Shared<'a, f32>,
}

impl<'a> LayerRows<'a> {
    fn new(layer: &'a Layer, adapter: AdapterIndex, (keys, values): &'a mut (Tensor, Tensor)) -> Self {
        Self {
            input_norm: NormRow::new(&layer.input_norm),
            q: layer.q.rows(adapter),
            k: layer.k.rows(adapter),
            v: layer.v.rows(adapter),
            o: layer.o.rows(adapter),
            post_norm: NormRow::new(&layer.post_norm),
            gate: layer.mlp.gate.rows(adapter),
            up: layer.mlp.up.rows(adapter),
            down: layer.mlp.down.rows(adapter),
            keys: shared(keys),
            values: shared(values),
        }
    }
}

/// Layers and shared buffers of one sequence in a step.
struct Sequence<'a> {
    layers: Vec<LayerRows<'a>>,
    head: LinearRows<'a>,
    /// KV splits per key and value head.
    splits: usize,
    /// Tokens in the cache before this one.
    past: usize,
    capacity: usize,
    cos: &'a [f32],
    sin: &'a [f32],
    x: Shared<'a, f32>,
    qkv: Shared<'a, f32>,
    split_outputs: Shared<'a, f32>,
    partials: Shared<'a, Partial>,
    gate: Shared<'a, f32>,
    up: Shared<'a, f32>,
    lora_ax: Shared<'a, f32>,
    logits: Shared<'a, f32>,
    threads: Shared<'a, ThreadScratch>,
}

/// A step of several sequences.
struct Step<'a> {
    sequences: Vec<Sequence<'a>>,
    norm: NormRow<'a>,
    shape: AttentionShape,
    kv_heads: usize,
}

/// Output rows are divided among threads in multiples of this.
const GRAIN: usize = 16;
/// Rows of a LoRA A are divided among threads in multiples of this.
const LORA_GRAIN: usize = 4;
/// Values of weights that all sequences multiply by before the next ones are read: they stay in a core's nearest cache.
const BLOCK_VALUES: usize = 8192;
/// Fewest rows of such a block: a product also has work that does not depend on its rows.
const BLOCK_ROWS: usize = 32;

impl LanguageModel {
    /// Whether [`LanguageModel::step`] supports this model: SiLU in f32 on a CPU.
    pub(super) fn steps_on_cpu(&self) -> bool {
        self.device == Device::Cpu && self.kind == Kind::Float && self.config.hidden_act == Activation::Silu
    }

    /// Largest sum of LoRA ranks of `adapter` in a layer: the size of `lora_ax`.
    fn max_lora_ranks(&self, adapter: AdapterIndex) -> usize {
        let of = |layer: &Layer| {
            let (attention, mlp) = ([&layer.q, &layer.k, &layer.v, &layer.o], &layer.mlp);
            let linears = attention.into_iter().chain([&mlp.gate, &mlp.up, &mlp.down]);
            linears.map(|linear: &Linear| linear.rank(adapter)).sum::<usize>()
        };
        self.layers
            .iter()
            .map(|layer| of(layer))
            .max()
            .unwrap_or(0)
            .max(self.head.rank(adapter))
    }

    /// Runs the next token of each sequence, `(token, cache)`; logits `[sequences, vocab]` f32 of what follows it.
    pub(super) fn step(&self, sequences: &mut [(i64, &mut KvCache)]) -> Result<Tensor> {
        let c = &self.config;
        let threads = tch::get_num_threads().max(1) as usize;
        let mut scratches = Vec::with_capacity(sequences.len());
        for (token, cache) in &mut *sequences {
            assert!(cache.len() < cache.capacity(), "the KV cache is full");
            let mut scratch = std::mem::take(&mut cache.scratch);
            scratch.resize(self, cache, threads);
            scratch
                .x
                .copy_from_slice(floats(&self.embed(&[*token], cache.adapter)?));
            let factor = c.rope.attention_factor() as f32;
            scratch.set_rotary(floats(&self.inverse), factor, cache.next_position);
            scratches.push(scratch);
        }
        {
            let step = Step {
                sequences: sequences
                    .iter_mut()
                    .zip(&mut scratches)
                    .map(|((_, cache), scratch)| Sequence::new(self, cache, scratch))
                    .collect(),
                norm: NormRow::new(&self.norm),
                shape: AttentionShape {
                    group: c.num_attention_heads / c.num_key_value_heads,
                    head_dim: c.head_dim,
                },
                kv_heads: c.num_key_value_heads,
            };
            run(threads, |member| {
                let own = member.index..member.index + 1;
                // SAFETY: each thread uses its own element of each; the team is no larger than requested.
                let mine = step
                    .sequences
                    .iter()
                    .map(|sequence| unsafe { sequence.threads.write(own.clone()) });
                let mut mine: Vec<_> = mine.map(|mine| &mut mine[0]).collect();
                for layer in 0..c.num_hidden_layers {
                    step.layer(layer, member, &mut mine);
                }
                step.head(member, &mut mine);
            });
        }
        let mut rows = Vec::with_capacity(sequences.len());
        for ((_, cache), scratch) in sequences.iter_mut().zip(scratches) {
            rows.push(Tensor::f_from_slice(&scratch.logits)?);
            cache.scratch = scratch;
            cache.length += 1;
            cache.next_position += 1;
        }
        Ok(Tensor::f_stack(&rows, 0)?)
    }
}

impl<'a> Sequence<'a> {
    fn new(model: &'a LanguageModel, cache: &'a mut KvCache, scratch: &'a mut DecodeScratch) -> Self {
        let (adapter, past, capacity) = (cache.adapter, cache.len(), cache.capacity());
        let layers = model.layers.iter().zip(&mut cache.layers);
        Self {
            layers: layers
                .map(|(layer, kept)| LayerRows::new(layer, adapter, kept))
                .collect(),
            head: model.head.rows(adapter),
            splits: scratch.splits,
            past,
            capacity,
            cos: &scratch.cos,
            sin: &scratch.sin,
            x: Shared::new(&mut scratch.x),
            qkv: Shared::new(&mut scratch.qkv),
            split_outputs: Shared::new(&mut scratch.split_outputs),
            partials: Shared::new(&mut scratch.partials),
            gate: Shared::new(&mut scratch.gate),
            up: Shared::new(&mut scratch.up),
            lora_ax: Shared::new(&mut scratch.lora_ax),
            logits: Shared::new(&mut scratch.logits),
            threads: Shared::new(&mut scratch.threads),
        }
    }
}

/// Values of a cache tensor, of which this step writes one position.
fn shared(tensor: &mut Tensor) -> Shared<'_, f32> {
    let length = floats(tensor).len();
    // SAFETY: f32, contiguous, on the CPU (`floats` checks); borrowed mutably, and no view of it is in use.
    Shared::new(unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), length) })
}

impl DecodeScratch {
    fn resize(&mut self, model: &LanguageModel, cache: &KvCache, threads: usize) {
        let (c, adapter) = (&model.config, cache.adapter);
        let splits = threads.div_ceil(c.num_key_value_heads).min(cache.len() + 1);
        self.splits = splits;
        let heads = c.num_attention_heads * c.head_dim;
        self.x.resize(c.hidden_size, 0.0);
        self.qkv
            .resize(heads + 2 * c.num_key_value_heads * c.head_dim, 0.0);
        self.split_outputs.resize(heads * splits, 0.0);
        let none = Partial {
            largest: 0.0,
            sum: 0.0,
        };
        self.partials.resize(c.num_attention_heads * splits, none);
        self.gate.resize(c.intermediate_size, 0.0);
        self.up.resize(c.intermediate_size, 0.0);
        self.lora_ax.resize(model.max_lora_ranks(adapter), 0.0);
        self.logits.resize(c.vocab_size, 0.0);
        self.threads.resize(threads, ThreadScratch::default());
        let group = c.num_attention_heads / c.num_key_value_heads;
        for thread in &mut self.threads {
            thread.normed.resize(c.hidden_size, 0.0);
            thread.out.resize(c.hidden_size, 0.0);
            thread.attended.resize(heads, 0.0);
            thread.queries.resize(group * c.head_dim, 0.0);
            thread.heads.resize(splits * c.head_dim, 0.0);
            thread.partials.resize(splits, none);
        }
    }

    /// cos and sin of `position`, which is the same on all three axes, so that M-RoPE's sections do not matter.
    fn set_rotary(&mut self, inverse: &[f32], factor: f32, position: i64) {
        let angles = || inverse.iter().chain(inverse).map(|f| position as f32 * f);
        self.cos.clear();
        self.cos.extend(angles().map(|angle| angle.cos() * factor));
        self.sin.clear();
        self.sin.extend(angles().map(|angle| angle.sin() * factor));
    }
}

impl Step<'_> {
    /// One decoder layer. Between two barriers every shared buffer is either only read, or written in disjoint parts: the
    /// unsafe blocks below rely on this.
    fn layer(&self, index: usize, member: &Member<'_>, mine: &mut [&mut ThreadScratch]) {
        let kv = self.kv_heads * self.shape.head_dim;
        let heads = kv * self.shape.group;
        for (sequence, mine) in self.sequences.iter().zip(&mut *mine) {
            sequence.norm(&sequence.layers[index].input_norm, mine);
        }
        self.lora_ax(member, mine, |sequence, mine| {
            let layer = &sequence.layers[index];
            ([&layer.q, &layer.k, &layer.v].into(), &mine.normed)
        });
        let parts: [(Projection, usize, usize); 3] = [
            (|layer| &layer.q, 0, heads),
            (|layer| &layer.k, heads, kv),
            (|layer| &layer.v, heads + kv, kv),
        ];
        let mut ranks = vec![0; mine.len()];
        for (linear, start, rows) in parts {
            self.blocks(member.share(rows, GRAIN), mine[0].normed.len(), |s, rows| {
                let (sequence, linear) = (&self.sequences[s], linear(&self.sequences[s].layers[index]));
                // SAFETY: shares are disjoint.
                let out = unsafe { sequence.qkv.write(start + rows.start..start + rows.end) };
                let ax = sequence.ax(ranks[s], linear);
                linear.product(&mine[s].normed, ax, rows, out);
            });
            for (rank, sequence) in ranks.iter_mut().zip(&self.sequences) {
                *rank += linear(&sequence.layers[index]).rank();
            }
        }
        member.wait();
        let items = self
            .sequences
            .iter()
            .map(|sequence| self.kv_heads * sequence.splits);
        for mut item in member.share(items.sum(), 1) {
            for (sequence, mine) in self.sequences.iter().zip(&mut *mine) {
                let own = self.kv_heads * sequence.splits;
                if item < own {
                    let (head, split) = (item / sequence.splits, item % sequence.splits);
                    self.attend(sequence, index, (head, split), mine);
                    break;
                }
                item -= own;
            }
        }
        member.wait();
        for (sequence, mine) in self.sequences.iter().zip(&mut *mine) {
            self.combine_splits(sequence, mine);
        }
        self.lora_ax(member, mine, |sequence, mine| {
            ([&sequence.layers[index].o].into(), &mine.attended)
        });
        self.add(member, mine, heads, |sequence, mine, rows, out| {
            let o = &sequence.layers[index].o;
            o.product(&mine.attended, sequence.ax(0, o), rows, out);
        });
        member.wait();
        for (sequence, mine) in self.sequences.iter().zip(&mut *mine) {
            sequence.norm(&sequence.layers[index].post_norm, mine);
        }
        self.lora_ax(member, mine, |sequence, mine| {
            let layer = &sequence.layers[index];
            ([&layer.gate, &layer.up].into(), &mine.normed)
        });
        let inner = self.sequences[0].gate.len();
        self.blocks(member.share(inner, GRAIN), mine[0].normed.len(), |s, rows| {
            let sequence = &self.sequences[s];
            let (gate, up) = (&sequence.layers[index].gate, &sequence.layers[index].up);
            // SAFETY: shares are disjoint.
            let (gated, out) =
                unsafe { (sequence.gate.write(rows.clone()), sequence.up.write(rows.clone())) };
            gate.product(&mine[s].normed, sequence.ax(0, gate), rows.clone(), gated);
            up.product(&mine[s].normed, sequence.ax(gate.rank(), up), rows, out);
            swiglu_row(gated, out);
        });
        member.wait();
        self.lora_ax(member, mine, |sequence, _| {
            // SAFETY: not written before the next layer's MLP.
            ([&sequence.layers[index].down].into(), unsafe {
                sequence.gate.read(0..inner)
            })
        });
        self.add(member, mine, inner, |sequence, _, rows, out| {
            let down = &sequence.layers[index].down;
            // SAFETY: not written before the next layer's MLP.
            let x = unsafe { sequence.gate.read(0..inner) };
            down.product(x, sequence.ax(0, down), rows, out);
        });
        member.wait();
    }

    /// The final norm and the output head.
    fn head(&self, member: &Member<'_>, mine: &mut [&mut ThreadScratch]) {
        for (sequence, mine) in self.sequences.iter().zip(&mut *mine) {
            sequence.norm(&self.norm, mine);
        }
        self.lora_ax(member, mine, |sequence, mine| {
            ([&sequence.head].into(), &mine.normed)
        });
        let share = member.share(self.sequences[0].logits.len(), GRAIN);
        self.blocks(share, mine[0].normed.len(), |s, rows| {
            let sequence = &self.sequences[s];
            // SAFETY: shares are disjoint.
            let out = unsafe { sequence.logits.write(rows.clone()) };
            sequence
                .head
                .product(&mine[s].normed, sequence.ax(0, &sequence.head), rows, out);
        });
    }

    /// Calls `work` for each sequence and each block of the rows of `share`, which have `columns` values: a block is read from memory once.
    fn blocks(&self, share: Range<usize>, columns: usize, mut work: impl FnMut(usize, Range<usize>)) {
        let rows = match self.sequences.len() {
            1 => share.len().max(1),
            _ => (BLOCK_VALUES / columns.max(1)).max(BLOCK_ROWS),
        };
        for start in share.clone().step_by(rows) {
            for sequence in 0..self.sequences.len() {
                work(sequence, start..(start + rows).min(share.end));
            }
        }
    }

    /// Scaled LoRA A·x of the linear layers that `of` returns with their x, computed by all threads together, with a barrier if there is
    /// any. [`Sequence::ax`] reads them.
    ///
    /// The next call overwrites the buffer; there is a barrier between any two calls.
    fn lora_ax<'s>(
        &'s self,
        member: &Member<'_>,
        mine: &'s [&mut ThreadScratch],
        of: impl Fn(&'s Sequence<'_>, &'s ThreadScratch) -> (Vec<&'s LinearRows<'s>>, &'s [f32]),
    ) {
        let mut any = false;
        for (sequence, mine) in self.sequences.iter().zip(mine) {
            let (linears, x) = of(sequence, mine);
            let mut start = 0;
            for linear in linears {
                let share = member.share(linear.rank(), LORA_GRAIN);
                // SAFETY: shares are disjoint.
                let out = unsafe { sequence.lora_ax.write(start + share.start..start + share.end) };
                linear.lora_ax(x, share, out);
                start += linear.rank();
            }
            any |= start > 0;
        }
        if any {
            member.wait();
        }
    }

    /// Adds what `work` writes for a block of rows, products of `columns` values, to the residual.
    fn add(
        &self,
        member: &Member<'_>,
        mine: &mut [&mut ThreadScratch],
        columns: usize,
        mut work: impl FnMut(&Sequence<'_>, &ThreadScratch, Range<usize>, &mut [f32]),
    ) {
        let share = member.share(mine[0].normed.len(), GRAIN);
        self.blocks(share, columns, |s, rows| {
            let (sequence, mine) = (&self.sequences[s], &mut *mine[s]);
            let mut out = std::mem::take(&mut mine.out);
            out.resize(rows.len(), 0.0);
            work(sequence, mine, rows.clone(), &mut out);
            // SAFETY: shares are disjoint, and the residual is not read before the next barrier.
            let x = unsafe { sequence.x.write(rows) };
            for (x, delta) in x.iter_mut().zip(&out) {
                *x += delta;
            }
            mine.out = out;
        });
    }

    /// Attention of the queries of key and value head `head` over one split of the positions; writes the new position's key
    /// and value into the KV cache.
    fn attend(
        &self,
        sequence: &Sequence<'_>,
        layer: usize,
        (head, split): (usize, usize),
        mine: &mut ThreadScratch,
    ) {
        let AttentionShape { group, head_dim: dim } = self.shape;
        let (queries, layer, past) = (group * dim, &sequence.layers[layer], sequence.past);
        // SAFETY: not written between these two barriers.
        let qkv = unsafe { sequence.qkv.read(0..sequence.qkv.len()) };
        mine.queries
            .copy_from_slice(&qkv[head * queries..(head + 1) * queries]);
        let scale = 1.0 / (dim as f32).sqrt();
        for query in mine.queries.chunks_exact_mut(dim) {
            rotate_head(query, sequence.cos, sequence.sin);
            query.iter_mut().for_each(|q| *q *= scale);
        }
        let positions = kv_split(past + 1, sequence.splits, split);
        let start = head * sequence.capacity;
        if positions.end == past + 1 {
            let own = self.kv_heads * queries + head * dim;
            let at = (start + past) * dim..(start + past + 1) * dim;
            // SAFETY: only this item reads or writes the new position of this head.
            let (key, value) = unsafe { (layer.keys.write(at.clone()), layer.values.write(at)) };
            key.copy_from_slice(&qkv[own..own + dim]);
            rotate_head(key, sequence.cos, sequence.sin);
            let own = own + self.kv_heads * dim;
            value.copy_from_slice(&qkv[own..own + dim]);
        }
        let range = (start + positions.start) * dim..(start + positions.end) * dim;
        let item = head * sequence.splits + split;
        // SAFETY: an item's positions and results are its own.
        unsafe {
            attend(
                self.shape,
                &mine.queries,
                (layer.keys.read(range.clone()), layer.values.read(range)),
                &mut mine.scores,
                sequence.split_outputs.write(item * queries..(item + 1) * queries),
                sequence.partials.write(item * group..(item + 1) * group),
            );
        }
    }

    /// Combines the splits of all heads into `mine.attended`; recomputed per thread.
    fn combine_splits(&self, sequence: &Sequence<'_>, mine: &mut ThreadScratch) {
        let AttentionShape { group, head_dim: dim } = self.shape;
        // SAFETY: not written between these two barriers.
        let (outputs, partials) = unsafe {
            (
                sequence.split_outputs.read(0..sequence.split_outputs.len()),
                sequence.partials.read(0..sequence.partials.len()),
            )
        };
        for head in 0..self.kv_heads * group {
            let (kv, query) = (head / group, head % group);
            for split in 0..sequence.splits {
                let row = (kv * sequence.splits + split) * group + query;
                mine.partials[split] = partials[row];
                mine.heads[split * dim..(split + 1) * dim]
                    .copy_from_slice(&outputs[row * dim..(row + 1) * dim]);
            }
            let out = &mut mine.attended[head * dim..(head + 1) * dim];
            combine(&mine.partials, &mine.heads, out);
        }
    }
}

/// A linear layer of a decoder layer.
type Projection = for<'l> fn(&'l LayerRows<'_>) -> &'l LinearRows<'l>;

impl Sequence<'_> {
    /// LoRA A·x of `linear`, whose ranks begin at `start` among those that were computed last.
    fn ax(&self, start: usize, linear: &LinearRows<'_>) -> &[f32] {
        // SAFETY: not written before the next barrier.
        unsafe { self.lora_ax.read(start..start + linear.rank()) }
    }

    /// Norm of the whole residual, recomputed per thread: cheaper than a barrier.
    fn norm(&self, norm: &NormRow<'_>, mine: &mut ThreadScratch) {
        // SAFETY: the residual is written between other barriers.
        let x = unsafe { self.x.read(0..self.x.len()) };
        rms_norm_row(x, norm.weight, norm.eps, &mut mine.normed);
    }
}
