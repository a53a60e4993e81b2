//! AWQ of one decoder layer: scales, clipping, rounding.

use tch::{Kind, Tensor};

use super::{
    decoder::{DecoderLayer, Dense, LayerInputs, Rotary},
    search,
    shapes::Shapes,
};
use crate::quant::awq::{Grouped, Packed};
use crate::quantize::Watch;
use crate::{Error, Result};

/// Hidden states of one calibration prompt.
pub struct Prompt {
    /// `[rows, hidden]`: input of the next layer.
    pub states: Tensor,
    /// Rotary factors of its positions.
    pub rotary: Rotary,
}

/// Output error of one Linear on the calibration pages, relative to the mean square of its output.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct LinearError {
    /// Module name: `model.layers.0.mlp.down_proj`.
    pub name: String,
    /// Rounded to nearest in the same groups.
    pub round_to_nearest: f64,
    /// AWQ: with scales and clipping.
    pub awq: f64,
}

/// A quantized layer.
pub struct QuantizedLayer {
    /// Tensors to write with their names, in the folder's order.
    pub tensors: Vec<(String, Tensor)>,
    /// One entry per quantized Linear.
    pub errors: Vec<LinearError>,
}

/// Inputs of one layer's Linears, over all prompts.
struct Samples {
    /// Inputs of q, k and v per prompt, since attention mixes rows.
    attention: Vec<Tensor>,
    /// Sampled rows of all prompts: inputs of q, k and v, of o, of gate and up, of down.
    rows: [Tensor; 4],
}

/// Scales of the four groups of Linears with a common input; `None` for a group without.
#[derive(Default)]
struct Scales {
    qkv: Option<Tensor>,
    o: Option<Tensor>,
    gate_up: Option<Tensor>,
    down: Option<Tensor>,
}

/// Replaces the prompts' states by the outputs of `layer`.
pub fn advance(layer: &DecoderLayer, prompts: &mut [Prompt]) -> Result<()> {
    for prompt in prompts {
        prompt.states = layer.inputs(&prompt.states, &prompt.rotary)?.next;
    }
    Ok(())
}

/// Quantizes `layer` and replaces the prompts' states by its outputs.
///
/// As in AutoAWQ the states are those of the unquantized layers: errors are not propagated. At most `most_rows` rows, evenly
/// spaced over the prompts, are used.
pub fn quantize(
    layer: &DecoderLayer,
    prompts: &mut [Prompt],
    shapes: &Shapes,
    most_rows: i64,
    watch: Watch<'_>,
) -> Result<QuantizedLayer> {
    let samples = collect(layer, prompts, most_rows)?;
    let rotary: Vec<&Rotary> = prompts.iter().map(|p| &p.rotary).collect();
    let mut scales = find_scales(layer, &samples, &rotary, shapes, (most_rows, watch))?;
    let input_norm = fold(&layer.input_norm, scales.qkv.as_mut())?;
    let post_norm = fold(&layer.post_norm, scales.gate_up.as_mut())?;

    let (mut tensors, mut errors) = (Vec::new(), Vec::new());
    let at = |part: &str| format!("{}.{part}", layer.name);
    let mut put = |part: &str, dense: &Dense, quantized: bool, rows: usize, clip: bool, columns, divide| {
        let task = Task {
            name: at(part),
            dense,
            inputs: &samples.rows[rows],
            columns,
            divide,
            clip,
            group: shapes.group,
        };
        if quantized {
            errors.push(task.quantize(&mut tensors)?);
        } else {
            task.keep(&mut tensors)?;
        }
        Ok::<_, Error>(())
    };
    let s = &scales;
    put(
        "self_attn.q_proj",
        &layer.q,
        shapes.qkv,
        0,
        false,
        s.qkv.as_ref(),
        None,
    )?;
    put(
        "self_attn.k_proj",
        &layer.k,
        shapes.qkv,
        0,
        false,
        s.qkv.as_ref(),
        None,
    )?;
    put(
        "self_attn.v_proj",
        &layer.v,
        shapes.qkv,
        0,
        true,
        s.qkv.as_ref(),
        s.o.as_ref(),
    )?;
    put(
        "self_attn.o_proj",
        &layer.o,
        shapes.o,
        1,
        true,
        s.o.as_ref(),
        None,
    )?;
    put(
        "mlp.gate_proj",
        &layer.gate,
        shapes.gate_up,
        2,
        true,
        s.gate_up.as_ref(),
        None,
    )?;
    put(
        "mlp.up_proj",
        &layer.up,
        shapes.gate_up,
        2,
        true,
        s.gate_up.as_ref(),
        s.down.as_ref(),
    )?;
    put(
        "mlp.down_proj",
        &layer.down,
        shapes.down,
        3,
        true,
        s.down.as_ref(),
        None,
    )?;
    tensors.push((
        at("input_layernorm.weight"),
        half(&at("input_layernorm.weight"), &input_norm)?,
    ));
    tensors.push((
        at("post_attention_layernorm.weight"),
        half(&at("post_attention_layernorm.weight"), &post_norm)?,
    ));
    Ok(QuantizedLayer { tensors, errors })
}

/// Runs all prompts through the layer and collects the inputs of its Linears.
fn collect(layer: &DecoderLayer, prompts: &mut [Prompt], most_rows: i64) -> Result<Samples> {
    let total: i64 = prompts.iter().map(|p| p.states.size()[0]).sum();
    let stride = (total as u64).div_ceil(most_rows as u64).max(1) as i64;
    let (mut attention, mut rows) = (Vec::new(), [const { Vec::new() }; 4]);
    for prompt in prompts {
        let inputs = layer.inputs(&prompt.states, &prompt.rotary)?;
        let LayerInputs {
            attention: a,
            heads,
            mlp,
            product,
            next,
        } = inputs;
        for (kept, all) in rows.iter_mut().zip([&a, &heads, &mlp, &product]) {
            kept.push(all.f_slice(0, None, None, stride)?.f_contiguous()?);
        }
        attention.push(a);
        prompt.states = next;
    }
    let [a, b, c, d] = rows.map(|kept: Vec<Tensor>| Tensor::f_cat(&kept, 0));
    Ok(Samples {
        attention,
        rows: [a?, b?, c?, d?],
    })
}

fn find_scales(
    layer: &DecoderLayer,
    samples: &Samples,
    rotary: &[&Rotary],
    shapes: &Shapes,
    (most_rows, watch): (i64, Watch<'_>),
) -> Result<Scales> {
    let group = shapes.group;
    let mut found = Scales::default();
    let importance = |x: &Tensor| x.f_abs()?.f_mean_dim(&[0i64][..], false, Kind::Float);
    if shapes.qkv {
        // The attention loss needs whole prompts: at least one, and up to `most_rows` rows.
        let mut budget = most_rows;
        let judged: Vec<(&Tensor, &Rotary)> = samples
            .attention
            .iter()
            .zip(rotary.iter().copied())
            .take_while(|(x, _)| {
                let wanted = budget > 0;
                budget -= x.size()[0];
                wanted
            })
            .collect();
        let weights = [&layer.q.weight, &layer.k.weight, &layer.v.weight];
        let expected = judged
            .iter()
            .map(|(x, rotary)| layer.attention(x, weights, rotary))
            .collect::<Result<Vec<_>>>()?;
        let loss = |w: &[Tensor]| {
            watch.done(0)?;
            let mut squares = 0.0;
            for ((x, rotary), expected) in judged.iter().zip(&expected) {
                squares += squared_distance(&layer.attention(x, [&w[0], &w[1], &w[2]], rotary)?, expected)?;
            }
            Ok(squares)
        };
        found.qkv = Some(search::scales(&weights, &importance(&samples.rows[0])?, group, loss)?.scales);
    }
    // With grouped-query attention several inputs of o share an output of v; AutoAWQ does not scale such layers either.
    if shapes.o && layer.v.weight.size() == layer.o.weight.size() {
        found.o = Some(single(&layer.o, &samples.rows[1], group, watch)?);
    }
    if shapes.gate_up {
        let x = &samples.rows[2];
        let weights = [&layer.gate.weight, &layer.up.weight];
        let expected = layer.mlp(x, weights)?;
        let loss = |w: &[Tensor]| {
            watch.done(0)?;
            squared_distance(&layer.mlp(x, [&w[0], &w[1]])?, &expected)
        };
        found.gate_up = Some(search::scales(&weights, &importance(x)?, group, loss)?.scales);
    }
    if shapes.down {
        found.down = Some(single(&layer.down, &samples.rows[3], group, watch)?);
    }
    Ok(found)
}

/// Scales of a Linear that does not share its input.
fn single(dense: &Dense, x: &Tensor, group: i64, watch: Watch<'_>) -> Result<Tensor> {
    let importance = x.f_abs()?.f_mean_dim(&[0i64][..], false, Kind::Float)?;
    let loss = |w: &[Tensor]| {
        watch.done(0)?;
        let off = w[0].f_sub(&dense.weight)?;
        Ok(x.f_matmul(&off.f_tr()?)?
            .f_square()?
            .f_sum(Kind::Double)?
            .f_double_value(&[])?)
    };
    Ok(search::scales(&[&dense.weight], &importance, group, loss)?.scales)
}

fn squared_distance(a: &Tensor, b: &Tensor) -> Result<f64> {
    Ok(a.f_sub(b)?.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])?)
}

/// Divides a norm's weight by the scales of the Linears that read it.
///
/// The quotient is stored in f16; the scales are adjusted to that rounding, so that it adds no error.
fn fold(norm: &Tensor, scales: Option<&mut Tensor>) -> Result<Tensor> {
    let Some(scales) = scales else {
        return Ok(norm.shallow_clone());
    };
    let folded = norm
        .f_div(scales)?
        .f_to_kind(Kind::Half)?
        .f_to_kind(Kind::Float)?;
    let exact = norm.f_div(&folded)?;
    let usable = folded.f_ne(0.0)?.f_logical_and(&exact.f_isfinite()?)?;
    *scales = exact.f_where_self(&usable, scales)?;
    Ok(folded)
}

/// Converts `tensor` to f16 on the CPU; values out of range are an error.
pub fn half(name: &str, tensor: &Tensor) -> Result<Tensor> {
    let half = tensor
        .f_to_kind(Kind::Half)?
        .f_to_device(tch::Device::Cpu)?
        .f_contiguous()?;
    if half.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
        return Err(Error::NonFinite(format!(
            "tensor \"{name}\" has values that AWQ's half precision does not hold"
        )));
    }
    Ok(half)
}

/// One Linear and the results of the searches.
struct Task<'a> {
    name: String,
    dense: &'a Dense,
    /// `[rows, in]`, unscaled.
    inputs: &'a Tensor,
    /// Input scales: columns are multiplied by them.
    columns: Option<&'a Tensor>,
    /// Output scales: rows are divided by them.
    divide: Option<&'a Tensor>,
    clip: bool,
    group: i64,
}

impl Task<'_> {
    fn scaled(&self) -> Result<Tensor> {
        let mut weight = self.dense.weight.shallow_clone();
        if let Some(s) = self.columns {
            weight = weight.f_mul(s)?;
        }
        if let Some(s) = self.divide {
            weight = weight.f_div(&s.f_unsqueeze(-1)?)?;
        }
        Ok(weight)
    }

    fn put_bias(&self, tensors: &mut Vec<(String, Tensor)>) -> Result<()> {
        if let Some(bias) = &self.dense.bias {
            let bias = match self.divide {
                Some(s) => bias.f_div(s)?,
                None => bias.shallow_clone(),
            };
            let name = format!("{}.bias", self.name);
            let bias = half(&name, &bias)?;
            tensors.push((name, bias));
        }
        Ok(())
    }

    /// Writes a Linear whose shape AWQ does not support: scaled if its neighbours require it, otherwise unchanged.
    fn keep(&self, tensors: &mut Vec<(String, Tensor)>) -> Result<()> {
        let name = format!("{}.weight", self.name);
        let weight = half(&name, &self.scaled()?)?;
        tensors.push((name, weight));
        self.put_bias(tensors)
    }

    fn quantize(&self, tensors: &mut Vec<(String, Tensor)>) -> Result<LinearError> {
        let mut weight = self.scaled()?;
        if weight.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
            return Err(Error::NonFinite(format!(
                "tensor \"{}.weight\" has non-finite values (NaN/Inf)",
                self.name
            )));
        }
        if self.clip {
            let inputs = match self.columns {
                Some(s) => self.inputs.f_div(s)?,
                None => self.inputs.shallow_clone(),
            };
            weight = search::clipped(&weight, &inputs, self.group)?;
        }
        let grouped = Grouped::round(&weight, self.group)?;
        let Packed {
            qweight,
            qzeros,
            scales,
        } = grouped.pack()?;
        tensors.push((format!("{}.qweight", self.name), qweight));
        tensors.push((format!("{}.qzeros", self.name), qzeros));
        tensors.push((format!("{}.scales", self.name), scales));
        self.put_bias(tensors)?;
        self.error(&grouped)
    }

    fn error(&self, grouped: &Grouped) -> Result<LinearError> {
        let mut values = grouped.values()?;
        if let Some(s) = self.columns {
            values = values.f_div_(s)?;
        }
        if let Some(s) = self.divide {
            values = values.f_mul_(&s.f_unsqueeze(-1)?)?;
        }
        let weight = &self.dense.weight;
        let square = |w: &Tensor| {
            Ok::<_, Error>(
                self.inputs
                    .f_matmul(&w.f_tr()?)?
                    .f_square()?
                    .f_sum(Kind::Double)?
                    .f_double_value(&[])?,
            )
        };
        let whole = square(weight)?.max(f64::MIN_POSITIVE);
        let plain = Grouped::round(weight, self.group)?.values()?;
        Ok(LinearError {
            name: self.name.clone(),
            round_to_nearest: square(&plain.f_sub(weight)?)? / whole,
            awq: square(&values.f_sub(weight)?)? / whole,
        })
    }
}
