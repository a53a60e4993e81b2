//! GPU decode step: one token of up to eight sequences through the language model in a single kernel
//! ([`StepKernel`](crate::kernels::cuda::StepKernel)). The general path is [`LanguageModel::forward`].

use std::sync::Arc;

use half::f16;
use tch::{Device, Kind, Tensor};

use super::kv_cache::KvCache;
use super::language::{LanguageModel, Layer};
use super::linear::{Linear, LinearWeight};
use super::lora::{AdapterIndex, Lora};
use super::{Activation, TextConfig};
use crate::kernels::cuda::{
    LayerPointers, MAX_RANK, PairPointers, RANK_UNIT, SequencePointers, StepAdapters, StepForm, StepKernel,
    StepShape, StepWeights,
};
use crate::quant::nf4::QuantType;
use crate::quant::tiles::{Arrangement, Tiles, arrange};
use crate::{Error, Result};

/// The kernel and its weights.
pub(super) struct CudaStep {
    kernel: StepKernel,
    weights: StepWeights,
    adapters: Vec<StepAdapter>,
    /// What the pointers of layers and adapters point to beside the model's own tensors.
    _tensors: Vec<Tensor>,
}

// SAFETY: weights are only read, which libtorch allows on any thread; the kernel locks its buffers.
unsafe impl Sync for CudaStep {}

/// How the step applies an adapter.
enum StepAdapter {
    /// It leaves the layers and the output head as they are.
    Plain,
    /// u8: [`PairPointers`] of all layers and the head.
    Pairs(Tensor),
    /// It does not.
    Refused,
}

impl TextConfig {
    fn step_shape(&self) -> StepShape {
        StepShape {
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            heads: self.num_attention_heads,
            kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            layers: self.num_hidden_layers,
            vocab: self.vocab_size,
        }
    }
}

impl CudaStep {
    /// Builds the step for `model`, whose layers' weights change places; the error says why the model has none, for a log.
    pub(super) fn build(model: &mut LanguageModel) -> Result<std::result::Result<Self, String>> {
        let config = model.config.clone();
        if config.hidden_act != Activation::Silu {
            return Ok(Err(format!("activation {:?}", config.hidden_act)));
        }
        let form = match form_of(model) {
            Ok(form) => form,
            Err(reason) => return Ok(Err(reason)),
        };
        let mut tensors = Vec::new();
        let (adapters, sizes) = adapters(model, &mut tensors)?;
        let kernel = match StepKernel::new(model.device, model.kind, config.step_shape(), form, sizes) {
            Ok(kernel) => kernel,
            Err(reason) => return Ok(Err(reason)),
        };
        let head = match &*model.head.weight {
            LinearWeight::Dense(head) if head.kind() == model.kind && head.is_contiguous() => {
                head.shallow_clone()
            }
            _ => return Ok(Err("an output head that is quantized".into())),
        };
        if (model.layers.iter()).any(|layer| !fits(layer, form, &config, kernel.splits())) {
            return Ok(Err("weights that do not fit the kernel's tiles".into()));
        }
        let mut pointers = Vec::with_capacity(model.layers.len());
        let mut table = QuantType::Nf4;
        for layer in &mut model.layers {
            let Some(layer) = Arc::get_mut(layer) else {
                return Err(Error::Internal("a layer is in use while the model loads".into()));
            };
            if let LinearWeight::Nf4(weight) = &*layer.q.weight {
                table = weight.quant_type();
            }
            pointers.push(arranged(
                layer,
                form,
                (config.num_key_value_heads, kernel.splits()),
                &mut tensors,
            )?);
        }
        let float =
            |tensor: &Tensor| -> Result<Tensor> { Ok(tensor.f_to_kind(Kind::Float)?.f_contiguous()?) };
        let weights = StepWeights {
            // SAFETY: no padding: 8-byte fields, then four f32.
            layers: unsafe { uploaded(&pointers, model.device) }?,
            head,
            norm: float(&model.norm.weight)?,
            inverse: float(&model.inverse)?,
            pairs: f16_pairs(table, model.device)?,
            eps: model.norm.eps as f32,
            rotary_factor: config.rope.attention_factor() as f32,
        };
        Ok(Ok(Self {
            kernel,
            weights,
            adapters,
            _tensors: tensors,
        }))
    }

    /// Whether the step serves sequences with `adapter` and room for `capacity` tokens.
    pub(super) fn serves(&self, adapter: AdapterIndex, capacity: usize) -> bool {
        let refused =
            adapter.is_some_and(|index| matches!(self.adapters.get(index), Some(StepAdapter::Refused)));
        !refused && capacity <= self.kernel.max_positions()
    }

    /// Sequences that fit a step.
    pub(super) fn max_sequences(&self) -> usize {
        self.kernel.max_sequences()
    }

    /// Runs one token of each sequence: `(token, cache)`; logits `[sequences, vocab]` f32.
    pub(super) fn run(&self, model: &LanguageModel, sequences: &mut [(i64, &mut KvCache)]) -> Result<Tensor> {
        let embedding = embeddings(model, sequences)?;
        // The adapters of this step, and the place of each sequence's among them.
        let mut used: Vec<(usize, &Tensor)> = Vec::new();
        let pointers: Vec<SequencePointers> = sequences
            .iter()
            .enumerate()
            .map(|(row, (_, cache))| {
                let found = cache.adapter.and_then(|index| match self.adapters.get(index)? {
                    StepAdapter::Pairs(pairs) => Some((index, pairs)),
                    _ => None,
                });
                let place = found.map(|(index, pairs)| {
                    used.iter()
                        .position(|&(other, _)| other == index)
                        .unwrap_or_else(|| {
                            used.push((index, pairs));
                            used.len() - 1
                        })
                });
                cache.pointers(row, place)
            })
            .collect();
        let adapters: Vec<&Tensor> = used.iter().map(|&(_, pairs)| pairs).collect();
        let logits = self.kernel.run(&self.weights, &embedding, &pointers, &adapters)?;
        for (_, cache) in sequences {
            cache.length += 1;
            cache.next_position += 1;
        }
        Ok(logits)
    }
}

impl KvCache {
    fn pointers(&self, row: usize, adapter: Option<usize>) -> SequencePointers {
        let (keys, values) = &self.layers[0];
        SequencePointers {
            keys: keys.data_ptr() as u64,
            values: values.data_ptr() as u64,
            layer_stride: self.layer_stride as u64,
            capacity: self.capacity as i32,
            length: self.length as i32,
            position: self.next_position as i32,
            row: row as i32,
            adapter: adapter.map_or(-1, |place| place as i64),
        }
    }
}

/// `[sequences, hidden]`.
fn embeddings(model: &LanguageModel, sequences: &[(i64, &mut KvCache)]) -> Result<Tensor> {
    if sequences
        .iter()
        .any(|(_, cache)| model.embeds_with(cache.adapter))
    {
        let rows = sequences
            .iter()
            .map(|(token, cache)| model.embed(&[*token], cache.adapter));
        return Ok(Tensor::f_cat(&rows.collect::<Result<Vec<_>>>()?, 0)?);
    }
    let tokens: Vec<i64> = sequences.iter().map(|(token, _)| *token).collect();
    model.embed(&tokens, None)
}

/// How the step applies each of the model's adapters; what their pointers point to is kept in `tensors`.
fn adapters(model: &LanguageModel, tensors: &mut Vec<Tensor>) -> Result<(Vec<StepAdapter>, StepAdapters)> {
    let linears = || {
        let layers = model.layers.iter().flat_map(|layer| linears(layer));
        layers.chain([&model.head])
    };
    let mut sizes = StepAdapters::default();
    let mut made = Vec::new();
    for index in 0..model.head.loras.0.len() {
        let rank = linears()
            .map(|linear| linear.rank(Some(index)))
            .max()
            .unwrap_or(0);
        made.push(match rank {
            0 => StepAdapter::Plain,
            1..=MAX_RANK => {
                let pairs = linears().map(|linear| match linear.loras.of(Some(index)) {
                    Some(lora) => pair(lora, model.kind, tensors),
                    None => Ok(PairPointers::default()),
                });
                let pairs = pairs.collect::<Result<Vec<_>>>()?;
                sizes.count += 1;
                sizes.rank = sizes.rank.max(rank);
                // SAFETY: no padding: two 8-byte fields and two of 4 bytes.
                StepAdapter::Pairs(unsafe { uploaded(&pairs, model.device) }?)
            }
            _ => {
                tracing::info!(
                    "decoding with adapter {index} layer by layer: rank {rank}, the kernel has room for {MAX_RANK}"
                );
                StepAdapter::Refused
            }
        });
    }
    Ok((made, sizes))
}

/// The pair's tensors, or copies that fit the kernel.
fn pair(lora: &Lora, kind: Kind, tensors: &mut Vec<Tensor>) -> Result<PairPointers> {
    let rank = lora.a.size()[0];
    let more = (rank as usize).next_multiple_of(RANK_UNIT) as i64 - rank;
    let mut at = |tensor: &Tensor, pad: [i64; 4]| -> Result<u64> {
        let fits = more == 0 && (tensor.data_ptr() as u64).is_multiple_of(16);
        let fitting = match fits {
            true => tensor.f_to_kind(kind)?.f_contiguous()?,
            false => tensor.f_to_kind(kind)?.f_constant_pad_nd(pad)?.f_contiguous()?,
        };
        let at = fitting.data_ptr() as u64;
        tensors.push(fitting);
        Ok(at)
    };
    Ok(PairPointers {
        a: at(&lora.a, [0, 0, 0, more])?,
        b: at(&lora.b, [0, more, 0, 0])?,
        rank: (rank + more) as i32,
        scale: lora.scale as f32,
    })
}

/// The bytes of `values` on `device`.
///
/// # Safety
/// `T` has no padding.
unsafe fn uploaded<T: Copy>(values: &[T], device: Device) -> Result<Tensor> {
    // SAFETY: as many initialized bytes as the slice has.
    let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) };
    Ok(Tensor::f_from_slice(bytes)?.f_to_device(device)?)
}

fn linears(layer: &Layer) -> [&Linear; 7] {
    let mlp = &layer.mlp;
    [
        &layer.q, &layer.k, &layer.v, &layer.o, &mlp.gate, &mlp.up, &mlp.down,
    ]
}

/// How all linear layers are stored; the error names what the step does not support.
fn form_of(model: &LanguageModel) -> std::result::Result<StepForm, String> {
    let mut form = None;
    for linear in model.layers.iter().flat_map(|layer| linears(layer)) {
        let found = match &*linear.weight {
            LinearWeight::Dense(weight) if weight.kind() == model.kind => (StepForm::Rows, None),
            LinearWeight::Nf4(weight) => (StepForm::Tiles, Some(weight.quant_type())),
            LinearWeight::Dense(weight) => return Err(format!("{:?} weights", weight.kind())),
            LinearWeight::Awq(_) => (StepForm::GroupedTiles, None),
            LinearWeight::Tiled(_) => return Err("weights that are arranged already".into()),
        };
        if *form.get_or_insert(found) != found {
            return Err("weights in several forms".into());
        }
    }
    let all = model
        .layers
        .iter()
        .flat_map(|layer| linears(layer))
        .chain([&model.head]);
    if all.flat_map(|linear| linear.loras.all()).any(Lora::is_trained) {
        return Err("an adapter that is being trained".into());
    }
    form.map(|(form, _)| form)
        .ok_or_else(|| "a model without layers".into())
}

/// Whether the layer's weights fit the kernel's tiles.
fn fits(layer: &Layer, form: StepForm, config: &TextConfig, splits: usize) -> bool {
    let kv_heads = config.num_key_value_heads;
    linears(layer)
        .iter()
        .zip([1, 1, 1, kv_heads, 1, 1, splits])
        .all(|(linear, splits)| match &*linear.weight {
            LinearWeight::Nf4(weight) => weight.fits_tiles(splits),
            LinearWeight::Awq(weight) => weight.fits_tiles(splits),
            LinearWeight::Dense(weight) => form == StepForm::Rows && weight.is_contiguous(),
            _ => false,
        })
        && [&layer.o, &layer.mlp.gate, &layer.mlp.up, &layer.mlp.down]
            .iter()
            .all(|linear| linear.bias.is_none())
}

/// Brings the layer's weights into the kernel's order, and keeps what it points to in `tensors`.
fn arranged(
    layer: &mut Layer,
    form: StepForm,
    (kv_heads, splits): (usize, usize),
    tensors: &mut Vec<Tensor>,
) -> Result<LayerPointers> {
    let mut keep = |tensor: Tensor| {
        let at = tensor.data_ptr() as u64;
        tensors.push(tensor);
        at
    };
    let float = |tensor: &Tensor| -> Result<Tensor> { Ok(tensor.f_to_kind(Kind::Float)?.f_contiguous()?) };
    let biases = [&layer.q, &layer.k, &layer.v]
        .into_iter()
        .flat_map(|linear| &linear.bias);
    let biases = biases.map(float).collect::<Result<Vec<_>>>()?;
    let mut pointers = LayerPointers {
        qkv: 0,
        o: 0,
        gate_up: 0,
        down: 0,
        up: 0,
        bias: keep(Tensor::f_cat(&biases, 0)?),
        input_norm: keep(float(&layer.input_norm.weight)?),
        post_norm: keep(float(&layer.post_norm.weight)?),
        units: [1.0; 4],
    };
    match form {
        StepForm::Tiles | StepForm::GroupedTiles => {
            let mlp = &mut layer.mlp;
            let made = [
                tiled(
                    [&mut layer.q, &mut layer.k, &mut layer.v],
                    Arrangement::Stacked(1),
                )?,
                tiled([&mut layer.o], Arrangement::Stacked(kv_heads))?,
                tiled([&mut mlp.gate, &mut mlp.up], Arrangement::Interleaved)?,
                tiled([&mut mlp.down], Arrangement::Stacked(splits))?,
            ];
            pointers.units = made.each_ref().map(|tiles| tiles.unit);
            let [qkv, o, gate_up, down] = made.map(|tiles| keep(tiles.tensor));
            pointers = LayerPointers {
                qkv,
                o,
                gate_up,
                down,
                ..pointers
            };
        }
        StepForm::Rows => {
            let rows = |linear: &Linear| match &*linear.weight {
                LinearWeight::Dense(weight) => Ok(weight.shallow_clone()),
                _ => Err(Error::Internal("a weight that is not dense".into())),
            };
            // One tensor, of which the layers hold views.
            let parts = [&layer.q, &layer.k, &layer.v]
                .map(rows)
                .into_iter()
                .collect::<Result<Vec<_>>>()?;
            let qkv = Tensor::f_cat(&parts, 0)?;
            let mut start = 0;
            for (linear, part) in [&mut layer.q, &mut layer.k, &mut layer.v].into_iter().zip(&parts) {
                let count = part.size()[0];
                linear.weight = Arc::new(LinearWeight::Dense(qkv.f_narrow(0, start, count)?));
                start += count;
            }
            pointers = LayerPointers {
                qkv: keep(qkv),
                o: keep(rows(&layer.o)?),
                gate_up: keep(rows(&layer.mlp.gate)?),
                up: keep(rows(&layer.mlp.up)?),
                down: keep(rows(&layer.mlp.down)?),
                ..pointers
            };
        }
    }
    Ok(pointers)
}

/// Replaces the layers' weights by views of common tiles.
fn tiled<const N: usize>(linears: [&mut Linear; N], arrangement: Arrangement) -> Result<Tiles> {
    let sources = linears.iter().map(|linear| match &*linear.weight {
        LinearWeight::Nf4(weight) => weight.tile_source(),
        LinearWeight::Awq(weight) => weight.tile_source(),
        _ => Err(Error::Internal("a weight that does not fit tiles".into())),
    });
    let sources = sources.collect::<Result<Vec<_>>>()?;
    let (tiles, parts) = arrange(&sources, arrangement)?;
    for (linear, part) in linears.into_iter().zip(parts) {
        linear.weight = Arc::new(LinearWeight::Tiled(part));
    }
    Ok(tiles)
}

/// Both values of each byte of codes as f16, the first one in the low half: int `[256]`.
fn f16_pairs(table: QuantType, device: Device) -> Result<Tensor> {
    let bits = |value: f32| u32::from(f16::from_f32(value).to_bits());
    let pairs = table.code_table();
    let pairs: Vec<i32> = pairs
        .pairs()
        .iter()
        .map(|&[first, second]| (bits(first) | bits(second) << 16).cast_signed())
        .collect();
    Ok(Tensor::f_from_slice(&pairs)?.f_to_device(device)?)
}
