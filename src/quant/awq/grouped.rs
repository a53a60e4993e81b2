//! Rounding to nearest in groups with a zero point, as AWQ stores weights.

use tch::{Device, Kind, Tensor};

use super::layout;
use crate::Result;

/// Largest code.
const TOP: f64 = 15.0;
/// Minimum range of a group, as in AutoAWQ.
const SMALLEST_SPAN: f64 = 1e-5;

/// Codes, zero points and scales of one weight; all f32 with exactly the stored values.
pub struct Grouped {
    /// `[out, groups, group]`: integers from 0 to 15.
    codes: Tensor,
    /// `[out, groups, 1]`: integers from 0 to 15.
    zeros: Tensor,
    /// `[out, groups, 1]`: values representable in f16.
    scales: Tensor,
}

/// The three stored tensors of one Linear, on the CPU.
pub struct Packed {
    /// i32 `[in, out / 8]`.
    pub qweight: Tensor,
    /// i32 `[groups, out / 8]`.
    pub qzeros: Tensor,
    /// f16 `[groups, out]`.
    pub scales: Tensor,
}

impl Grouped {
    /// Rounds `weight`, f32 `[out, in]`, in groups of `group` inputs.
    ///
    /// As AutoAWQ's `pseudo_quantize_tensor` with two differences: the scale is rounded to f16 before the codes are computed, so
    /// that they fit the stored scale; and the range always includes zero, so that a group of one sign is not clipped.
    ///
    /// Reference: [`pseudo_quantize_tensor`](https://github.com/casper-hansen/AutoAWQ/blob/88e4c76b20755db275574e6a03c83c84ba3bece5/awq/quantize/quantizer.py#L74-L109).
    pub fn round(weight: &Tensor, group: i64) -> Result<Self> {
        let out = weight.size()[0];
        let w = weight.f_view([out, -1, group])?;
        let high = w.f_amax([-1i64], true)?.f_clamp_min(0.0)?;
        let low = w.f_amin([-1i64], true)?.f_clamp_max(0.0)?;
        let span = high.f_sub(&low)?.f_clamp_min(SMALLEST_SPAN)?;
        let scales = span
            .f_div_scalar(TOP)?
            .f_to_kind(Kind::Half)?
            .f_to_kind(Kind::Float)?;
        let zeros = low.f_div(&scales)?.f_round()?.f_neg()?.f_clamp(0.0, TOP)?;
        let codes = w.f_div(&scales)?.f_round_()?.f_add_(&zeros)?.f_clamp_(0.0, TOP)?;
        Ok(Self { codes, zeros, scales })
    }

    /// Dequantizes: f32 `[out, in]`.
    pub fn values(&self) -> Result<Tensor> {
        let out = self.codes.size()[0];
        Ok(self
            .codes
            .f_sub(&self.zeros)?
            .f_mul_(&self.scales)?
            .f_view([out, -1])?)
    }

    /// Packs into AutoAWQ's GEMM layout; the number of outputs must be a multiple of eight.
    pub fn pack(&self) -> Result<Packed> {
        let out = self.codes.size()[0];
        Ok(Packed {
            qweight: words(&self.codes.f_view([out, -1])?)?,
            qzeros: words(&self.zeros.f_view([out, -1])?)?,
            scales: self
                .scales
                .f_view([out, -1])?
                .f_tr()?
                .f_to_kind(Kind::Half)?
                .f_to_device(Device::Cpu)?
                .f_contiguous()?,
        })
    }
}

/// Codes `[out, n]` → words `[n, out / 8]`.
fn words(codes: &Tensor) -> Result<Tensor> {
    let codes = codes
        .f_to_kind(Kind::Uint8)?
        .f_tr()?
        .f_contiguous()?
        .f_to_device(Device::Cpu)?;
    let (rows, out) = codes.size2()?;
    let mut natural = vec![0u8; (rows * out) as usize];
    codes
        .f_view([-1])?
        .f_copy_data_u8(&mut natural, (rows * out) as usize)?;
    let words = layout::pack(&natural);
    Ok(Tensor::f_from_slice(&words)?.f_view([rows, out / layout::PER_WORD as i64])?)
}
