//! One decode step of the language model as one kernel (`stream.cu`, `step.cu`): compilation for a shape, buffers, launch.

use std::sync::{Mutex, OnceLock, PoisonError};

use tch::{Device, Kind, Tensor};

use super::compiler::compile;
use super::launch::{Argument, Gpu, Kernel};
use super::step_shape::{StepAdapters, StepForm, StepShape};
use super::{TILE_BYTES, address};
use crate::{Error, Result};

/// Sources of the kernel.
pub(super) const SOURCE: &str = concat!(
    include_str!("values.cu"),
    include_str!("stream.cu"),
    include_str!("lora.cu"),
    include_str!("producer.cu"),
    include_str!("attention.cu"),
    include_str!("products.cu"),
    include_str!("step.cu")
);

/// Sequences of a step, at most.
pub const MAX_SEQUENCES: usize = 8;
/// Numbers of sequences that the kernel is compiled for; others use the next larger one.
const BATCHES: [usize; 4] = [1, 2, 4, MAX_SEQUENCES];

const THREADS: usize = 512;
const WARPS: usize = THREADS / 32;
/// Positions per partial attention.
const CHUNK: usize = 128;
/// Static shared memory of the kernel beside that of the layers.
const STATIC_BYTES: usize = 3072;
/// Static shared memory of a layer: its pointers, and counts of its stages.
const LAYER_BYTES: usize = size_of::<LayerPointers>() + 8;
/// Pairs of a layer: queries, keys, values, attention's output, gate, up, the MLP's output.
pub const LAYER_PAIRS: usize = 7;
/// Of a pair, at most.
pub const MAX_RANK: usize = 256;
/// Ranks of a pair are a multiple of this.
pub const RANK_UNIT: usize = 8;
/// Tiles of a warp under way, at least and at most.
const STAGES: std::ops::RangeInclusive<usize> = 3..=6;

/// Layout of `Layer` in `stream.cu`: the weights of a decoder layer on the GPU.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct LayerPointers {
    /// Queries, keys and values.
    pub qkv: u64,
    /// Attention's output.
    pub o: u64,
    /// Gate, and up in tiles.
    pub gate_up: u64,
    /// The MLP's output.
    pub down: u64,
    /// Up, where weights are rows.
    pub up: u64,
    /// f32, of queries, keys and values.
    pub bias: u64,
    /// f32.
    pub input_norm: u64,
    /// f32.
    pub post_norm: u64,
    /// Factors of the sums of `qkv`, `o`, `gate_up` and `down`.
    pub units: [f32; 4],
}

/// Layout of `Sequence` in `stream.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct SequencePointers {
    /// `[layers, .., kv_heads, capacity, head_dim]`, 16 bits.
    pub keys: u64,
    /// As `keys`.
    pub values: u64,
    /// Values from layer to layer.
    pub layer_stride: u64,
    /// Tokens that fit.
    pub capacity: i32,
    /// Tokens held before the step.
    pub length: i32,
    /// Rotary position of the step's token.
    pub position: i32,
    /// Row of the embeddings.
    pub row: i32,
    /// Which of the step's adapters; negative: none.
    pub adapter: i64,
}

/// Layout of `Pair` in `stream.cu`: a LoRA pair, which adds `scale * b (a x)`; zeros stand for none.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct PairPointers {
    /// `[rank, in]`, 16 bits.
    pub a: u64,
    /// `[out, rank]`.
    pub b: u64,
    /// A multiple of [`RANK_UNIT`].
    pub rank: i32,
    /// Factor.
    pub scale: f32,
}

/// Weights of the model beside its layers.
pub struct StepWeights {
    /// u8: [`LayerPointers`] of all layers.
    pub layers: Tensor,
    /// `[vocab, hidden]` in 16 bits.
    pub head: Tensor,
    /// f32 `[hidden]`.
    pub norm: Tensor,
    /// f32 `[head_dim / 2]`.
    pub inverse: Tensor,
    /// int `[256]`: both f16 values of a byte of codes.
    pub pairs: Tensor,
    /// Epsilon of the norms.
    pub eps: f32,
    /// Factor of the rotary cosines and sines.
    pub rotary_factor: f32,
}

/// The kernel of one shape on one GPU.
pub struct StepKernel {
    gpu: Gpu,
    shape: StepShape,
    form: StepForm,
    splits: usize,
    kind: Kind,
    device: Device,
    adapters: StepAdapters,
    /// Compiled at first use, for each of [`BATCHES`]: without and with adapters.
    compiled: [[OnceLock<std::result::Result<Kernel, String>>; BATCHES.len()]; 2],
    buffers: Mutex<Vec<Buffers>>,
}

/// What the blocks of a step share.
struct Buffers {
    batch: usize,
    chunks: usize,
    /// `x` to `down_parts` of `Step` in `stream.cu`, in its order.
    shared: [Tensor; 10],
    logits: Tensor,
    barrier: Tensor,
    /// Parts of LoRA's inner products, tagged by step and stage; `None` without adapters.
    inner_parts: Option<Tensor>,
    /// Of the last step.
    epoch: u32,
}

/// Layout of `Step` in `stream.cu`.
#[repr(C)]
struct Arguments {
    layers: u64,
    embedding: u64,
    head: u64,
    norm: u64,
    inverse: u64,
    pairs: u64,
    /// `x` to `down_parts`.
    shared: [u64; 10],
    logits: u64,
    barrier: u64,
    times: u64,
    inner_parts: u64,
    adapters: [u64; MAX_SEQUENCES],
    eps: f32,
    rotary_factor: f32,
    chunks: i32,
    adapter_count: i32,
    epoch: u32,
    sequences: [SequencePointers; MAX_SEQUENCES],
}

impl StepKernel {
    /// The kernel for a model in `kind` on `device`; the error says what does not fit, for a log.
    pub fn new(
        device: Device,
        kind: Kind,
        shape: StepShape,
        form: StepForm,
        adapters: StepAdapters,
    ) -> std::result::Result<Self, String> {
        let Device::Cuda(index) = device else {
            return Err("the device is no GPU".into());
        };
        if !matches!(kind, Kind::BFloat16 | Kind::Half) {
            return Err(format!("{kind:?} is not a 16-bit type"));
        }
        if let Some(reason) = shape.unsupported(form) {
            return Err(reason);
        }
        let splits = shape.splits(form).ok_or("the MLP cannot be divided")?;
        let kernel = Self {
            gpu: Gpu::find(index)?,
            shape,
            form,
            splits,
            kind,
            device,
            adapters,
            compiled: [const { [const { OnceLock::new() }; BATCHES.len()] }; 2],
            buffers: Mutex::default(),
        };
        if (kernel.gpu.multiprocessors as usize) < kernel.splits.max(shape.kv_heads) {
            return Err(format!(
                "{} multiprocessors are too few",
                kernel.gpu.multiprocessors
            ));
        }
        // Later a first step would wait for the compiler, or find out that there is none.
        kernel.kernel(0, false).clone()?;
        if adapters.count > 0 {
            kernel.kernel(0, true).clone()?;
        }
        Ok(kernel)
    }

    /// Parts of the columns of the MLP's last matrix.
    pub fn splits(&self) -> usize {
        self.splits
    }

    /// Sequences that fit a step.
    pub fn max_sequences(&self) -> usize {
        let lora = self.adapters.count > 0;
        let fits = BATCHES
            .iter()
            .filter(|&&batch| self.stages(batch, lora).is_some());
        fits.max().copied().unwrap_or(0)
    }

    /// Tokens that a sequence can hold.
    pub fn max_positions(&self) -> usize {
        let group = self.shape.heads / self.shape.kv_heads;
        let floats = |batch: usize| acc_floats(batch) / if gathers(batch) { WARPS } else { batch * group };
        BATCHES.map(floats).into_iter().min().unwrap_or(0) * CHUNK
    }

    /// Runs one token of each sequence; logits `[sequences, vocab]` f32 on the GPU.
    ///
    /// `embedding`: `[rows, hidden]` in the model's type on the GPU, of which each sequence names a row. `adapters`: of the
    /// sequences, each u8: [`PairPointers`] of all layers' pairs ([`LAYER_PAIRS`]) and of the output head.
    ///
    /// # Errors
    /// [`Error::Device`] if the GPU does not start the kernel.
    pub fn run(
        &self,
        weights: &StepWeights,
        embedding: &Tensor,
        sequences: &[SequencePointers],
        adapters: &[&Tensor],
    ) -> Result<Tensor> {
        let index = BATCHES.iter().position(|&batch| batch >= sequences.len());
        let Some(index) = index.filter(|_| !sequences.is_empty()) else {
            return Err(Error::Internal(format!(
                "a step of {} sequences",
                sequences.len()
            )));
        };
        let batch = BATCHES[index];
        let lora = !adapters.is_empty();
        let kernel = (self.kernel(index, lora).clone())
            .map_err(|reason| Error::Device(format!("the decode step: {reason}")))?;
        let longest = sequences
            .iter()
            .map(|sequence| sequence.length)
            .max()
            .unwrap_or(0);
        let chunks = longest as usize / CHUNK + 1;
        let mut all = self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let found = all.iter().position(|buffers| buffers.batch == batch);
        let index = match found {
            Some(index) if all[index].chunks >= chunks => index,
            _ => {
                all.retain(|buffers| buffers.batch != batch);
                all.push(self.buffers(batch, chunks.next_power_of_two())?);
                all.len() - 1
            }
        };
        let buffers = &mut all[index];
        buffers.next_epoch(self.shape.stages())?;
        // Places beyond the last sequence repeat it: they write what it writes.
        let last = sequences[sequences.len() - 1];
        let mut padded = [last; MAX_SEQUENCES];
        padded[..sequences.len()].copy_from_slice(sequences);
        let mut tables = [0; MAX_SEQUENCES];
        for (table, adapter) in tables.iter_mut().zip(adapters) {
            *table = address(adapter);
        }
        let arguments = Arguments {
            layers: address(&weights.layers),
            embedding: address(embedding),
            head: address(&weights.head),
            norm: address(&weights.norm),
            inverse: address(&weights.inverse),
            pairs: address(&weights.pairs),
            shared: buffers.shared.each_ref().map(address),
            logits: address(&buffers.logits),
            barrier: address(&buffers.barrier),
            times: 0,
            inner_parts: buffers.inner_parts.as_ref().map_or(0, address),
            adapters: tables,
            eps: weights.eps,
            rotary_factor: weights.rotary_factor,
            chunks: buffers.chunks as i32,
            adapter_count: adapters.len() as i32,
            epoch: buffers.epoch,
            sequences: padded,
        };
        let stages = self.stages(batch, lora).unwrap_or(*STAGES.start());
        let grid = (
            self.gpu.multiprocessors,
            THREADS as u32,
            self.shared_bytes(batch, stages, lora) as u32,
        );
        self.gpu
            .launch_cooperative(kernel, grid, &[Argument::new(&arguments)])?;
        let logits = buffers.logits.f_narrow(0, 0, sequences.len() as i64)?;
        let mut copy = logits.f_empty_like()?;
        copy.f_copy_(&logits)?;
        Ok(copy)
    }

    fn buffers(&self, batch: usize, chunks: usize) -> Result<Buffers> {
        let s = &self.shape;
        let zeros = |sizes: &[usize], kind: Kind| {
            let sizes: Vec<i64> = sizes.iter().map(|&n| n as i64).collect();
            Tensor::f_zeros(&sizes, (kind, self.device))
        };
        let float = Kind::Float;
        let width = s.heads * s.head_dim;
        let qkv = width + 2 * s.kv_heads * s.head_dim;
        let shared = [
            zeros(&[2, batch, s.hidden], float)?,
            zeros(&[batch, qkv], float)?,
            zeros(&[batch, chunks, s.heads, s.head_dim], float)?,
            zeros(&[batch, chunks, s.heads, 2], float)?,
            zeros(&[batch, width], float)?,
            zeros(&[batch, s.hidden], self.kind)?,
            zeros(&[batch], float)?,
            zeros(&[s.kv_heads, batch, s.hidden], float)?,
            zeros(&[batch, s.intermediate], float)?,
            zeros(&[self.splits, batch, s.hidden], float)?,
        ];
        let parts = [batch, 3, s.inner_parts(self.splits), self.adapters.ranks()];
        Ok(Buffers {
            batch,
            chunks,
            shared,
            logits: zeros(&[batch, s.vocab], float)?,
            barrier: zeros(&[2], Kind::Int)?,
            inner_parts: match self.adapters.count {
                0 => None,
                _ => Some(zeros(&parts, Kind::Int64)?),
            },
            epoch: 0,
        })
    }

    fn kernel(&self, index: usize, lora: bool) -> &std::result::Result<Kernel, String> {
        self.compiled[usize::from(lora)][index].get_or_init(|| {
            let batch = BATCHES[index];
            let stages = (self.stages(batch, lora))
                .ok_or_else(|| format!("{batch} sequences need more shared memory than the GPU has"))?;
            let adapters = if lora {
                self.adapters
            } else {
                StepAdapters::default()
            };
            let options = step_options(
                &self.shape,
                self.form,
                self.kind,
                self.splits,
                (batch, stages),
                adapters,
            );
            let code = compile(SOURCE, self.gpu.capability, &options)?;
            let static_bytes = self.static_bytes() as u32;
            let [kernel] = self.gpu.load(&code, [c"step"], static_bytes)?;
            Ok(kernel)
        })
    }

    fn static_bytes(&self) -> usize {
        STATIC_BYTES + LAYER_BYTES * self.shape.layers
    }

    /// The most tiles under way per warp for which shared memory suffices.
    fn stages(&self, batch: usize, lora: bool) -> Option<usize> {
        let room = (self.gpu.most_shared_bytes as usize).saturating_sub(self.static_bytes());
        STAGES
            .rev()
            .find(|&stages| self.shared_bytes(batch, stages, lora) <= room)
    }

    /// Dynamic shared memory, as the kernel divides it.
    fn shared_bytes(&self, batch: usize, stages: usize, lora: bool) -> usize {
        let s = &self.shape;
        let group = s.heads / s.kv_heads;
        let (table, slot) = match self.form {
            StepForm::Tiles => (256 * 32 * 4, TILE_BYTES as usize),
            StepForm::GroupedTiles => (0, TILE_BYTES as usize),
            StepForm::Rows => (0, 2048),
        };
        let attention = 8 * (s.head_dim + 8) * 2 + 2 * 8 * 8 * 4 + 8 * group * s.head_dim * 4;
        let widest = s.hidden.max(group * s.head_dim).max(s.intermediate / self.splits);
        let inputs = ((widest + 8) * 2 * batch).max(2 * attention.next_multiple_of(128));
        let pairs = if lora {
            let tables =
                self.adapters.count.min(batch) * (s.layers * LAYER_PAIRS + 1) * size_of::<PairPointers>();
            batch * (3 * self.adapters.ranks() + 8) * 2 + tables.next_multiple_of(16)
        } else {
            0
        };
        table + WARPS * stages * slot + acc_floats(batch) * 4 + 2 * batch * WARPS * 4 + 128 + pairs + inputs
    }
}

impl Buffers {
    /// A number that no tag in `inner_parts` is of.
    fn next_epoch(&mut self, stages: u32) -> Result<()> {
        self.epoch += 1;
        if self.epoch >= u32::MAX / stages {
            if let Some(parts) = &mut self.inner_parts {
                let _ = parts.f_zero_()?;
            }
            self.epoch = 1;
        }
        Ok(())
    }
}

/// Partial sums that a block keeps in shared memory.
fn acc_floats(batch: usize) -> usize {
    if batch == 1 { 4096 } else { 8192 }
}

/// As `GATHER` in `stream.cu`.
fn gathers(batch: usize) -> bool {
    batch >= 4
}

/// Options of the compiler.
fn step_options(
    shape: &StepShape,
    form: StepForm,
    kind: Kind,
    splits: usize,
    (batch, stages): (usize, usize),
    adapters: StepAdapters,
) -> Vec<String> {
    let value_type = if kind == Kind::BFloat16 { 1 } else { 2 };
    let form = match form {
        StepForm::Tiles => 0,
        StepForm::GroupedTiles => 1,
        StepForm::Rows => 2,
    };
    let defines = [
        ("HIDDEN", shape.hidden),
        ("INTER", shape.intermediate),
        ("HEADS", shape.heads),
        ("KV_HEADS", shape.kv_heads),
        ("DIM", shape.head_dim),
        ("LAYERS", shape.layers),
        ("VOCAB", shape.vocab),
        ("SPLITS", splits),
        ("BATCH", batch),
        ("STAGES", stages),
        ("ACC_FLOATS", acc_floats(batch)),
        ("FORM", form),
        ("VALUE_TYPE", value_type),
        ("LORA", adapters.ranks()),
        ("ADAPTERS", adapters.count.min(batch)),
    ];
    let defines = defines.iter().map(|(name, value)| format!("-D{name}={value}"));
    defines
        .chain(["--device-as-default-execution-space".to_owned()])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::step_shape::tests::{FORMS, SHAPES};
    use super::*;

    /// Needs no GPU, but NVRTC, which a machine without one lacks as a rule.
    #[test]
    fn the_step_compiles_where_the_compiler_is_there() {
        let adapters = StepAdapters { count: 2, rank: 40 };
        for (shape, batch, adapters) in [
            (SHAPES[0].1, 1, StepAdapters::default()),
            (SHAPES[4].1, 8, adapters),
        ] {
            for form in FORMS {
                let splits = shape.splits(form).unwrap();
                for (capability, kind) in [((8, 0), Kind::Half), ((9, 0), Kind::BFloat16)] {
                    let options = step_options(&shape, form, kind, splits, (batch, 3), adapters);
                    match compile(SOURCE, capability, &options) {
                        Ok(code) => assert!(code.starts_with(b"\x7fELF")),
                        Err(reason) => assert!(reason.starts_with("libnvrtc cannot be loaded"), "{reason}"),
                    }
                }
            }
        }
    }
}
