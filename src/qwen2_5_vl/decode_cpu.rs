//! CPU decode step: one token through the language model in a single parallel region.
//!
//! libtorch's operations cost some microseconds each, two dozen of them per layer. Here the threads have five barriers per
//! layer, one more before a product with LoRA, and read every weight once in its storage format. The general path is
//! [`LanguageModel::forward`].

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

/// Scratch buffers of a step, reused for every token.
#[derive(Default)]
pub(super) struct DecodeScratch {
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

/// Scratch buffers of one thread.
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

/// A decoder layer and its KV cache, shared by the threads.
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

/// Sizes and shared buffers of one step.
struct Step<'a> {
    shape: AttentionShape,
    kv_heads: usize,
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
}

/// Output rows are divided among threads in multiples of this.
const GRAIN: usize = 16;
/// Rows of a LoRA A are divided among threads in multiples of this.
const LORA_GRAIN: usize = 4;

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

    /// Runs `token` at `position` on all axes; logits `[1, vocab]` f32 of what follows it.
    pub(super) fn step(&self, token: i64, position: i64, cache: &mut KvCache) -> Result<Tensor> {
        let c = &self.config;
        let threads = tch::get_num_threads().max(1) as usize;
        let past = cache.len();
        assert!(past < cache.capacity(), "the KV cache is full");
        let (kv_heads, dim) = (c.num_key_value_heads, c.head_dim);
        let splits = threads.div_ceil(kv_heads).min(past + 1);
        let group = c.num_attention_heads / kv_heads;
        let mut scratch = std::mem::take(&mut cache.scratch);
        scratch.resize(self, cache.adapter, threads, splits);
        scratch
            .x
            .copy_from_slice(floats(&self.embed(&[token], cache.adapter)?));
        scratch.set_rotary(floats(&self.inverse), c.rope.attention_factor() as f32, position);
        let mut thread_scratch = std::mem::take(&mut scratch.threads);
        {
            let step = Step {
                shape: AttentionShape { group, head_dim: dim },
                kv_heads,
                splits,
                past,
                capacity: cache.capacity(),
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
            };
            let thread_scratch = Shared::new(&mut thread_scratch);
            let adapter = cache.adapter;
            let layers = self.layers.iter().zip(&mut cache.layers);
            let layers: Vec<LayerRows<'_>> = layers
                .map(|(layer, kept)| LayerRows::new(layer, adapter, kept))
                .collect();
            let (norm, head) = (NormRow::new(&self.norm), self.head.rows(adapter));
            run(threads, |member| {
                // SAFETY: each thread uses its own element; the team is no larger than requested.
                let mine = unsafe { &mut thread_scratch.write(member.index..member.index + 1)[0] };
                for layer in &layers {
                    step.layer(layer, member, mine);
                }
                step.head(&norm, &head, member, mine);
            });
        }
        scratch.threads = thread_scratch;
        let logits = Tensor::f_from_slice(&scratch.logits)?.f_view([1, -1])?;
        cache.scratch = scratch;
        cache.length += 1;
        Ok(logits)
    }
}

/// Values of a cache tensor, of which this step writes one position.
fn shared(tensor: &mut Tensor) -> Shared<'_, f32> {
    let length = floats(tensor).len();
    // SAFETY: f32, contiguous, on the CPU (`floats` checks); borrowed mutably, and no view of it is in use.
    Shared::new(unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), length) })
}

impl DecodeScratch {
    fn resize(&mut self, model: &LanguageModel, adapter: AdapterIndex, threads: usize, splits: usize) {
        let c = &model.config;
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
    fn layer(&self, layer: &LayerRows<'_>, member: &Member<'_>, mine: &mut ThreadScratch) {
        self.norm(&layer.input_norm, mine);
        let (heads, kv) = (mine.attended.len(), self.kv_heads * self.shape.head_dim);
        let lora_ax = self.lora_ax([&layer.q, &layer.k, &layer.v], &mine.normed, member);
        for ((linear, start, rows), lora_ax) in [
            (&layer.q, 0, heads),
            (&layer.k, heads, kv),
            (&layer.v, heads + kv, kv),
        ]
        .into_iter()
        .zip(lora_ax)
        {
            let share = member.share(rows, GRAIN);
            // SAFETY: shares are disjoint.
            let out = unsafe { self.qkv.write(start + share.start..start + share.end) };
            linear.product(&mine.normed, lora_ax, share, out);
        }
        member.wait();
        for item in member.share(self.kv_heads * self.splits, 1) {
            self.attend(layer, (item / self.splits, item % self.splits), mine);
        }
        member.wait();
        self.combine_splits(mine);
        let [lora_ax] = self.lora_ax([&layer.o], &mine.attended, member);
        let share = member.share(mine.normed.len(), GRAIN);
        self.add(share, mine, |share, mine| {
            layer.o.product(&mine.attended, lora_ax, share, &mut mine.out)
        });
        member.wait();
        self.norm(&layer.post_norm, mine);
        let [gate_ax, up_ax] = self.lora_ax([&layer.gate, &layer.up], &mine.normed, member);
        let share = member.share(self.gate.len(), GRAIN);
        // SAFETY: shares are disjoint.
        let (gate, up) = unsafe { (self.gate.write(share.clone()), self.up.write(share.clone())) };
        layer.gate.product(&mine.normed, gate_ax, share.clone(), gate);
        layer.up.product(&mine.normed, up_ax, share, up);
        swiglu_row(gate, up);
        member.wait();
        let share = member.share(mine.normed.len(), GRAIN);
        // SAFETY: not written before the next layer's MLP.
        let inner = unsafe { self.gate.read(0..self.gate.len()) };
        let [lora_ax] = self.lora_ax([&layer.down], inner, member);
        self.add(share, mine, |share, mine| {
            layer.down.product(inner, lora_ax, share, &mut mine.out)
        });
        member.wait();
    }

    /// The final norm and the output head.
    fn head(&self, norm: &NormRow<'_>, head: &LinearRows<'_>, member: &Member<'_>, mine: &mut ThreadScratch) {
        self.norm(norm, mine);
        let [lora_ax] = self.lora_ax([head], &mine.normed, member);
        let share = member.share(self.logits.len(), GRAIN);
        // SAFETY: shares are disjoint.
        let out = unsafe { self.logits.write(share.clone()) };
        head.product(&mine.normed, lora_ax, share, out);
    }

    /// Scaled LoRA A·x of each of `linears`, computed by all threads together, with a barrier if there is any.
    ///
    /// The next call overwrites the buffer; there is a barrier between any two calls.
    fn lora_ax<const N: usize>(
        &self,
        linears: [&LinearRows<'_>; N],
        x: &[f32],
        member: &Member<'_>,
    ) -> [&[f32]; N] {
        let mut end = 0;
        let ranges = linears.map(|linear| {
            let (start, rank) = (end, linear.rank());
            end += rank;
            let share = member.share(rank, LORA_GRAIN);
            // SAFETY: shares are disjoint.
            let out = unsafe { self.lora_ax.write(start + share.start..start + share.end) };
            linear.lora_ax(x, share, out);
            start..end
        });
        if end > 0 {
            member.wait();
        }
        // SAFETY: not written before the next barrier.
        ranges.map(|range| unsafe { self.lora_ax.read(range) })
    }

    /// Norm of the whole residual, recomputed per thread: cheaper than a barrier.
    fn norm(&self, norm: &NormRow<'_>, mine: &mut ThreadScratch) {
        // SAFETY: the residual is written between other barriers.
        let x = unsafe { self.x.read(0..self.x.len()) };
        rms_norm_row(x, norm.weight, norm.eps, &mut mine.normed);
    }

    /// Adds the rows of this share, which `work` leaves in `mine.out`, to the residual.
    fn add(
        &self,
        share: std::ops::Range<usize>,
        mine: &mut ThreadScratch,
        work: impl FnOnce(std::ops::Range<usize>, &mut ThreadScratch),
    ) {
        mine.out.resize(share.len(), 0.0);
        // SAFETY: shares are disjoint, and the residual is not read before the next barrier.
        let x = unsafe { self.x.write(share.clone()) };
        work(share, mine);
        for (x, delta) in x.iter_mut().zip(&mine.out) {
            *x += delta;
        }
    }

    /// Attention of the queries of key and value head `head` over one split of the positions; writes the new position's key
    /// and value into the KV cache.
    fn attend(&self, layer: &LayerRows<'_>, (head, split): (usize, usize), mine: &mut ThreadScratch) {
        let AttentionShape { group, head_dim: dim } = self.shape;
        let queries = group * dim;
        // SAFETY: not written between these two barriers.
        let qkv = unsafe { self.qkv.read(0..self.qkv.len()) };
        mine.queries
            .copy_from_slice(&qkv[head * queries..(head + 1) * queries]);
        let scale = 1.0 / (dim as f32).sqrt();
        for query in mine.queries.chunks_exact_mut(dim) {
            rotate_head(query, self.cos, self.sin);
            query.iter_mut().for_each(|q| *q *= scale);
        }
        let positions = kv_split(self.past + 1, self.splits, split);
        let start = head * self.capacity;
        if positions.end == self.past + 1 {
            let own = self.kv_heads * queries + head * dim;
            let at = (start + self.past) * dim..(start + self.past + 1) * dim;
            // SAFETY: only this item reads or writes the new position of this head.
            let (key, value) = unsafe { (layer.keys.write(at.clone()), layer.values.write(at)) };
            key.copy_from_slice(&qkv[own..own + dim]);
            rotate_head(key, self.cos, self.sin);
            let own = own + self.kv_heads * dim;
            value.copy_from_slice(&qkv[own..own + dim]);
        }
        let range = (start + positions.start) * dim..(start + positions.end) * dim;
        let item = head * self.splits + split;
        // SAFETY: an item's positions and results are its own.
        unsafe {
            attend(
                self.shape,
                &mine.queries,
                (layer.keys.read(range.clone()), layer.values.read(range)),
                &mut mine.scores,
                self.split_outputs.write(item * queries..(item + 1) * queries),
                self.partials.write(item * group..(item + 1) * group),
            );
        }
    }

    /// Combines the splits of all heads into `mine.attended`; recomputed per thread.
    fn combine_splits(&self, mine: &mut ThreadScratch) {
        let AttentionShape { group, head_dim: dim } = self.shape;
        // SAFETY: not written between these two barriers.
        let (outputs, partials) = unsafe {
            (
                self.split_outputs.read(0..self.split_outputs.len()),
                self.partials.read(0..self.partials.len()),
            )
        };
        for head in 0..self.kv_heads * group {
            let (kv, query) = (head / group, head % group);
            for split in 0..self.splits {
                let row = (kv * self.splits + split) * group + query;
                mine.partials[split] = partials[row];
                mine.heads[split * dim..(split + 1) * dim]
                    .copy_from_slice(&outputs[row * dim..(row + 1) * dim]);
            }
            let out = &mut mine.attended[head * dim..(head + 1) * dim];
            combine(&mine.partials, &mine.heads, out);
        }
    }
}
