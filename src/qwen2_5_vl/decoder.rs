//! One token through the language model on the CPU: the whole step in one visit to the threads.
//!
//! libtorch's operations cost some microseconds each, two dozen of them a layer; here the threads meet five times a layer
//! and read every weight once, as it rests in memory. The plain path is [`LanguageModel::forward`].

use tch::{Device, Kind, Tensor};

use super::Activation;
use super::language::{KvCache, LanguageModel, Layer};
use super::layers::RmsNorm;
use super::linear::{Linear, LinearRows, floats};
use crate::Result;
use crate::kernels::cpu::{
    AttentionShape, Member, Partial, Shared, attend, combine, rms_norm_row, rotate_head, run, stretch,
    swiglu_row,
};

/// Buffers of a step, kept between tokens.
#[derive(Default)]
pub(super) struct StepRoom {
    /// The residual, `[hidden]`.
    x: Vec<f32>,
    /// Queries, keys and values of the token, one after the other.
    qkv: Vec<f32>,
    /// Attention of each stretch of positions: `[kv_heads, parts, group, head_dim]`.
    stretches: Vec<f32>,
    /// `[kv_heads, parts, group]`.
    partials: Vec<Partial>,
    /// `[intermediate]` each.
    gate: Vec<f32>,
    up: Vec<f32>,
    /// Lower halves of adapters.
    low: Vec<f32>,
    /// `[vocab]`.
    logits: Vec<f32>,
    /// `[head_dim]` each.
    cos: Vec<f32>,
    sin: Vec<f32>,
    members: Vec<MemberRoom>,
}

/// Buffers of one thread.
#[derive(Default, Clone)]
struct MemberRoom {
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

/// A decoder layer as threads share it.
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
    fn new(layer: &'a Layer, (keys, values): &'a mut (Tensor, Tensor)) -> Self {
        Self {
            input_norm: NormRow::new(&layer.input_norm),
            q: layer.q.rows(),
            k: layer.k.rows(),
            v: layer.v.rows(),
            o: layer.o.rows(),
            post_norm: NormRow::new(&layer.post_norm),
            gate: layer.mlp.gate.rows(),
            up: layer.mlp.up.rows(),
            down: layer.mlp.down.rows(),
            keys: shared(keys),
            values: shared(values),
        }
    }
}

/// One step's sizes and shared buffers.
struct Step<'a> {
    shape: AttentionShape,
    kv_heads: usize,
    /// Stretches that the positions are cut into for each key and value head.
    parts: usize,
    /// Positions before this token.
    past: usize,
    capacity: usize,
    cos: &'a [f32],
    sin: &'a [f32],
    x: Shared<'a, f32>,
    qkv: Shared<'a, f32>,
    stretches: Shared<'a, f32>,
    partials: Shared<'a, Partial>,
    gate: Shared<'a, f32>,
    up: Shared<'a, f32>,
    low: Shared<'a, f32>,
    logits: Shared<'a, f32>,
}

/// Rows that threads take at a time.
const GRAIN: usize = 16;
/// Rows of an adapter's A that threads take at a time.
const LOW_GRAIN: usize = 4;

impl LanguageModel {
    /// Whether [`LanguageModel::step`] serves this model: f32 on a CPU.
    pub(super) fn steps_on_cpu(&self) -> bool {
        self.device == Device::Cpu && self.kind == Kind::Float && self.config.hidden_act == Activation::Silu
    }

    /// Room for the lower halves of the adapters of any stage.
    fn largest_ranks(&self) -> usize {
        let of = |layer: &Layer| {
            let (attention, mlp) = ([&layer.q, &layer.k, &layer.v, &layer.o], &layer.mlp);
            let linears = attention.into_iter().chain([&mlp.gate, &mlp.up, &mlp.down]);
            linears.map(Linear::rank).sum::<usize>()
        };
        self.layers
            .iter()
            .map(|layer| of(layer))
            .max()
            .unwrap_or(0)
            .max(self.head.rank())
    }

    /// Runs `token` at `position` on all axes; logits `[1, vocab]` f32 of what follows it.
    pub(super) fn step(&self, token: i64, position: i64, cache: &mut KvCache) -> Result<Tensor> {
        let c = &self.config;
        let threads = tch::get_num_threads().max(1) as usize;
        let past = cache.len();
        assert!(past < cache.capacity(), "the cache holds the whole answer");
        let (kv_heads, dim) = (c.num_key_value_heads, c.head_dim);
        let parts = threads.div_ceil(kv_heads).min(past + 1);
        let group = c.num_attention_heads / kv_heads;
        let mut room = std::mem::take(&mut cache.room);
        room.fit(self, threads, parts);
        room.x.copy_from_slice(floats(&self.embed(&[token])?));
        room.turn(floats(&self.inverse), c.rope.attention_factor() as f32, position);
        let mut members = std::mem::take(&mut room.members);
        {
            let step = Step {
                shape: AttentionShape { group, head_dim: dim },
                kv_heads,
                parts,
                past,
                capacity: cache.capacity(),
                cos: &room.cos,
                sin: &room.sin,
                x: Shared::new(&mut room.x),
                qkv: Shared::new(&mut room.qkv),
                stretches: Shared::new(&mut room.stretches),
                partials: Shared::new(&mut room.partials),
                gate: Shared::new(&mut room.gate),
                up: Shared::new(&mut room.up),
                low: Shared::new(&mut room.low),
                logits: Shared::new(&mut room.logits),
            };
            let rooms = Shared::new(&mut members);
            let layers = self.layers.iter().zip(&mut cache.layers);
            let layers: Vec<LayerRows<'_>> =
                layers.map(|(layer, kept)| LayerRows::new(layer, kept)).collect();
            let (norm, head) = (NormRow::new(&self.norm), self.head.rows());
            run(threads, |member| {
                // SAFETY: each member has its own room; the team is no larger than asked for.
                let mine = unsafe { &mut rooms.write(member.index..member.index + 1)[0] };
                for layer in &layers {
                    step.layer(layer, member, mine);
                }
                step.head(&norm, &head, member, mine);
            });
        }
        room.members = members;
        let logits = Tensor::f_from_slice(&room.logits)?.f_view([1, -1])?;
        cache.room = room;
        cache.length += 1;
        Ok(logits)
    }
}

/// The values of a cache tensor, which this step writes its own position of.
fn shared(tensor: &mut Tensor) -> Shared<'_, f32> {
    let length = floats(tensor).len();
    // SAFETY: f32, contiguous, on the CPU (`floats` checks); borrowed mutably, and no view of it is in use.
    Shared::new(unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), length) })
}

impl StepRoom {
    fn fit(&mut self, model: &LanguageModel, threads: usize, parts: usize) {
        let c = &model.config;
        let heads = c.num_attention_heads * c.head_dim;
        self.x.resize(c.hidden_size, 0.0);
        self.qkv
            .resize(heads + 2 * c.num_key_value_heads * c.head_dim, 0.0);
        self.stretches.resize(heads * parts, 0.0);
        let none = Partial {
            largest: 0.0,
            sum: 0.0,
        };
        self.partials.resize(c.num_attention_heads * parts, none);
        self.gate.resize(c.intermediate_size, 0.0);
        self.up.resize(c.intermediate_size, 0.0);
        self.low.resize(model.largest_ranks(), 0.0);
        self.logits.resize(c.vocab_size, 0.0);
        self.members.resize(threads, MemberRoom::default());
        let group = c.num_attention_heads / c.num_key_value_heads;
        for member in &mut self.members {
            member.normed.resize(c.hidden_size, 0.0);
            member.out.resize(c.hidden_size, 0.0);
            member.attended.resize(heads, 0.0);
            member.queries.resize(group * c.head_dim, 0.0);
            member.heads.resize(parts * c.head_dim, 0.0);
            member.partials.resize(parts, none);
        }
    }

    /// The rotary table of `position`; all three axes agree, so that mrope's sections do not matter.
    fn turn(&mut self, inverse: &[f32], factor: f32, position: i64) {
        let angles = || inverse.iter().chain(inverse).map(|f| position as f32 * f);
        self.cos.clear();
        self.cos.extend(angles().map(|angle| angle.cos() * factor));
        self.sin.clear();
        self.sin.extend(angles().map(|angle| angle.sin() * factor));
    }
}

impl Step<'_> {
    /// One decoder layer. Between two meetings every shared buffer is either only read, or written in parts that do not
    /// meet: that is what the unsafe blocks below rely on.
    fn layer(&self, layer: &LayerRows<'_>, member: &Member<'_>, mine: &mut MemberRoom) {
        self.norm(&layer.input_norm, mine);
        let (heads, kv) = (mine.attended.len(), self.kv_heads * self.shape.head_dim);
        let lows = self.reduce([&layer.q, &layer.k, &layer.v], &mine.normed, member);
        for ((linear, start, rows), low) in [
            (&layer.q, 0, heads),
            (&layer.k, heads, kv),
            (&layer.v, heads + kv, kv),
        ]
        .into_iter()
        .zip(lows)
        {
            let share = member.share(rows, GRAIN);
            // SAFETY: shares do not meet.
            let out = unsafe { self.qkv.write(start + share.start..start + share.end) };
            linear.product(&mine.normed, low, share, out);
        }
        member.wait();
        for item in member.share(self.kv_heads * self.parts, 1) {
            self.attend(layer, (item / self.parts, item % self.parts), mine);
        }
        member.wait();
        self.gather(mine);
        let [low] = self.reduce([&layer.o], &mine.attended, member);
        let share = member.share(mine.normed.len(), GRAIN);
        self.add(share, mine, |share, mine| {
            layer.o.product(&mine.attended, low, share, &mut mine.out)
        });
        member.wait();
        self.norm(&layer.post_norm, mine);
        let [gate_low, up_low] = self.reduce([&layer.gate, &layer.up], &mine.normed, member);
        let share = member.share(self.gate.len(), GRAIN);
        // SAFETY: shares do not meet.
        let (gate, up) = unsafe { (self.gate.write(share.clone()), self.up.write(share.clone())) };
        layer.gate.product(&mine.normed, gate_low, share.clone(), gate);
        layer.up.product(&mine.normed, up_low, share, up);
        swiglu_row(gate, up);
        member.wait();
        let share = member.share(mine.normed.len(), GRAIN);
        // SAFETY: nobody writes it before the next layer's MLP.
        let inner = unsafe { self.gate.read(0..self.gate.len()) };
        let [low] = self.reduce([&layer.down], inner, member);
        self.add(share, mine, |share, mine| {
            layer.down.product(inner, low, share, &mut mine.out)
        });
        member.wait();
    }

    /// The final norm and the output head.
    fn head(&self, norm: &NormRow<'_>, head: &LinearRows<'_>, member: &Member<'_>, mine: &mut MemberRoom) {
        self.norm(norm, mine);
        let [low] = self.reduce([head], &mine.normed, member);
        let share = member.share(self.logits.len(), GRAIN);
        // SAFETY: shares do not meet.
        let out = unsafe { self.logits.write(share.clone()) };
        head.product(&mine.normed, low, share, out);
    }

    /// The lower halves of the adapters of `linears`, computed once by all members, who meet where there are any.
    ///
    /// The next stage writes the buffer anew: a meeting lies between every two stages.
    fn reduce<const N: usize>(
        &self,
        linears: [&LinearRows<'_>; N],
        x: &[f32],
        member: &Member<'_>,
    ) -> [&[f32]; N] {
        let mut end = 0;
        let places = linears.map(|linear| {
            let (start, rank) = (end, linear.rank());
            end += rank;
            let share = member.share(rank, LOW_GRAIN);
            // SAFETY: shares do not meet.
            let out = unsafe { self.low.write(start + share.start..start + share.end) };
            linear.reduce(x, share, out);
            start..end
        });
        if end > 0 {
            member.wait();
        }
        // SAFETY: nobody writes them before the next meeting.
        places.map(|place| unsafe { self.low.read(place) })
    }

    /// Every member norms the whole residual for itself: cheaper than meeting.
    fn norm(&self, norm: &NormRow<'_>, mine: &mut MemberRoom) {
        // SAFETY: the residual is written between other meetings.
        let x = unsafe { self.x.read(0..self.x.len()) };
        rms_norm_row(x, norm.weight, norm.eps, &mut mine.normed);
    }

    /// Adds `work`'s rows of this share, left at the start of `mine.out`, to the residual.
    fn add(
        &self,
        share: std::ops::Range<usize>,
        mine: &mut MemberRoom,
        work: impl FnOnce(std::ops::Range<usize>, &mut MemberRoom),
    ) {
        mine.out.resize(share.len(), 0.0);
        // SAFETY: shares do not meet, and nobody reads the residual before the next meeting.
        let x = unsafe { self.x.write(share.clone()) };
        work(share, mine);
        for (x, delta) in x.iter_mut().zip(&mine.out) {
            *x += delta;
        }
    }

    /// Attention of the queries of key and value head `head` over stretch `part` of the positions.
    fn attend(&self, layer: &LayerRows<'_>, (head, part): (usize, usize), mine: &mut MemberRoom) {
        let AttentionShape { group, head_dim: dim } = self.shape;
        let queries = group * dim;
        // SAFETY: nobody writes it between these two meetings.
        let qkv = unsafe { self.qkv.read(0..self.qkv.len()) };
        mine.queries
            .copy_from_slice(&qkv[head * queries..(head + 1) * queries]);
        let scale = 1.0 / (dim as f32).sqrt();
        for query in mine.queries.chunks_exact_mut(dim) {
            rotate_head(query, self.cos, self.sin);
            query.iter_mut().for_each(|q| *q *= scale);
        }
        let positions = stretch(self.past + 1, self.parts, part);
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
        let item = head * self.parts + part;
        // SAFETY: an item's positions and results are its own.
        unsafe {
            attend(
                self.shape,
                &mine.queries,
                (layer.keys.read(range.clone()), layer.values.read(range)),
                &mut mine.scores,
                self.stretches.write(item * queries..(item + 1) * queries),
                self.partials.write(item * group..(item + 1) * group),
            );
        }
    }

    /// Joins the stretches of all heads into `mine.attended`; every member for itself.
    fn gather(&self, mine: &mut MemberRoom) {
        let AttentionShape { group, head_dim: dim } = self.shape;
        // SAFETY: nobody writes them between these two meetings.
        let (stretches, partials) = unsafe {
            (
                self.stretches.read(0..self.stretches.len()),
                self.partials.read(0..self.partials.len()),
            )
        };
        for head in 0..self.kv_heads * group {
            let (kv, query) = (head / group, head % group);
            for part in 0..self.parts {
                let row = (kv * self.parts + part) * group + query;
                mine.partials[part] = partials[row];
                mine.heads[part * dim..(part + 1) * dim]
                    .copy_from_slice(&stretches[row * dim..(row + 1) * dim]);
            }
            let out = &mut mine.attended[head * dim..(head + 1) * dim];
            combine(&mine.partials, &mine.heads, out);
        }
    }
}
