//! The two searches of AWQ: scales that protect channels with large activations, and clipping ranges of weights.
//!
//! Lin et al., "AWQ: Activation-aware Weight Quantization" (2023), section 3, with the choices of AutoAWQ's
//! `awq/quantize/quantizer.py`: twenty exponents, scales normalised by √(max · min), ten clipping ranges down to 55 %.

use tch::{Kind, Tensor};

use crate::Result;
use crate::quant::awq::Grouped;

/// Number of exponents tried.
const EXPONENTS: usize = 20;
/// Number of steps, 1 / 20 each, by which a range is reduced.
const CLIP_STEPS: usize = 10;
/// Weights per clipping search; bounds its memory.
const CLIP_WEIGHTS: i64 = 1 << 23;

/// Result of a scale search.
pub struct Scaling {
    /// `[in]`: weight columns are multiplied by them, inputs divided.
    pub scales: Tensor,
    /// Mean square error of the block's output with them.
    pub loss: f64,
}

/// Searches scales for Linears with a common input.
///
/// `importance`: `[in]`, the mean magnitude of each input channel. `loss` returns the mean square error of the output with
/// the given weights (already divided by the scales again). Not scaling is a candidate, so that the result is never worse than
/// rounding to nearest.
///
/// Reference: [`_compute_best_scale`](https://github.com/casper-hansen/AutoAWQ/blob/88e4c76b20755db275574e6a03c83c84ba3bece5/awq/quantize/quantizer.py#L295-L442).
pub fn scales(
    weights: &[&Tensor],
    importance: &Tensor,
    group: i64,
    mut loss: impl FnMut(&[Tensor]) -> Result<f64>,
) -> Result<Scaling> {
    let magnitude = relative_magnitude(weights, group)?;
    let mut attempt = |scales: &Tensor| {
        let rounded = weights
            .iter()
            .map(|w| {
                Ok(Grouped::round(&w.f_mul(scales)?, group)?
                    .values()?
                    .f_div_(scales)?)
            })
            .collect::<Result<Vec<_>>>()?;
        loss(&rounded)
    };
    let ones = importance.f_ones_like()?;
    let mut best = Scaling {
        loss: attempt(&ones)?,
        scales: ones,
    };
    for step in 0..EXPONENTS {
        let exponent = step as f64 / EXPONENTS as f64;
        let Some(scales) = candidate(importance, &magnitude, exponent)? else {
            continue;
        };
        let loss = attempt(&scales)?;
        if loss < best.loss {
            best = Scaling { scales, loss };
        }
    }
    Ok(best)
}

/// importance^α / magnitude^(1 - α), normalized; `None` if that is not finite and positive.
fn candidate(importance: &Tensor, magnitude: &Tensor, exponent: f64) -> Result<Option<Tensor>> {
    let scales = importance
        .f_pow_tensor_scalar(exponent)?
        .f_div(
            &magnitude
                .f_pow_tensor_scalar(1.0 - exponent)?
                .f_add_scalar(1e-4)?,
        )?
        .f_clamp_min(1e-4)?;
    let spread = scales.f_max()?.f_mul(&scales.f_min()?)?.f_sqrt()?;
    let scales = scales.f_div(&spread)?;
    let usable = scales.f_isfinite()?.f_all()?.f_int64_value(&[])? != 0;
    Ok(usable.then_some(scales))
}

/// `[in]`: mean over all outputs of |w| relative to the largest of its group.
fn relative_magnitude(weights: &[&Tensor], group: i64) -> Result<Tensor> {
    let (mut sum, mut rows) = (None::<Tensor>, 0);
    for weight in weights {
        let (out, input) = weight.size2()?;
        let grouped = weight.f_view([out, -1, group])?.f_abs()?;
        let largest = grouped.f_amax([-1i64], true)?.f_add_scalar(1e-6)?;
        let part = grouped
            .f_div(&largest)?
            .f_sum_dim_intlist(0, false, Kind::Float)?
            .f_view([input])?;
        sum = Some(match sum {
            Some(sum) => sum.f_add(&part)?,
            None => part,
        });
        rows += out;
    }
    let sum = sum.expect("at least one weight");
    Ok(sum.f_div_scalar(rows as f64)?)
}

/// Clips each group of `weight`, `[out, in]`, to the range with the smallest output error of that group.
///
/// inputs: `[rows, in]`. The error of a group with a weight error d is dᵀ (XᵀX) d, so that one Gram matrix per group stands for
/// all inputs.
///
/// Reference: [`_compute_best_clip`](https://github.com/casper-hansen/AutoAWQ/blob/88e4c76b20755db275574e6a03c83c84ba3bece5/awq/quantize/quantizer.py#L496-L554).
pub fn clipped(weight: &Tensor, inputs: &Tensor, group: i64) -> Result<Tensor> {
    let (out, input) = weight.size2()?;
    // [groups, rows, group] → [groups, group, group]
    let x = inputs.f_view([-1, input / group, group])?.f_transpose(0, 1)?;
    let gram = x.f_transpose(1, 2)?.f_bmm(&x)?;
    let step = (CLIP_WEIGHTS / input).max(1);
    let parts = (0..out)
        .step_by(step as usize)
        .map(|row| clipped_rows(&weight.f_narrow(0, row, step.min(out - row))?, &gram, group))
        .collect::<Result<Vec<_>>>()?;
    Ok(Tensor::f_cat(&parts, 0)?)
}

fn clipped_rows(weight: &Tensor, gram: &Tensor, group: i64) -> Result<Tensor> {
    let (out, input) = weight.size2()?;
    let grouped = weight.f_view([out, -1, group])?;
    let largest = grouped.f_abs()?.f_amax([-1i64], true)?;
    let (mut best, mut best_error) = (largest.shallow_clone(), None::<Tensor>);
    for step in 0..CLIP_STEPS {
        let range = largest.f_mul_scalar(1.0 - step as f64 / 20.0)?;
        let narrowed = clamp(&grouped, &range)?.f_view([out, input])?;
        let off = Grouped::round(&narrowed, group)?
            .values()?
            .f_sub_(weight)?
            .f_view([out, -1, group])?
            .f_transpose(0, 1)?;
        // [groups, out] → [out, groups, 1]
        let error = off
            .f_bmm(gram)?
            .f_mul_(&off)?
            .f_sum_dim_intlist(-1, false, Kind::Float)?
            .f_tr()?
            .f_unsqueeze(-1)?;
        best_error = Some(match best_error {
            None => error,
            Some(least) => {
                best = range.f_where_self(&error.f_lt_tensor(&least)?, &best)?;
                least.f_minimum(&error)?
            }
        });
    }
    Ok(clamp(&grouped, &best)?.f_view([out, input])?)
}

fn clamp(grouped: &Tensor, range: &Tensor) -> Result<Tensor> {
    Ok(grouped.f_clamp_tensor(Some(&range.f_neg()?), Some(range))?)
}
