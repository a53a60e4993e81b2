//! M-RoPE: position ids on the axes time, height and width, and the cos and sin tables of their sections.

use tch::{Kind, Tensor};

use super::{language::LanguageModel, token_grid::TokenGrid};
use crate::torch::upload;
use crate::{Error, Result};

/// M-RoPE position ids of a prompt.
pub struct Positions {
    /// Time, height and width, one entry per token each.
    pub ids: [Vec<i64>; 3],
    /// Position of the token that follows the prompt, on all three axes.
    pub next: i64,
}

/// M-RoPE positions of `input_ids`, in which runs of `image_token_id` are the tokens of `pages`, in order.
///
/// Text advances all three axes together. An image has a constant time per frame; height and width follow its merged grid.
/// The text after it continues from the largest position plus one.
///
/// Reference:
/// [`get_rope_index`](https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/models/qwen2_5_vl/modeling_qwen2_5_vl.py#L955-L1069),
/// [`get_vision_position_ids`](https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/models/qwen2_5_vl/modeling_qwen2_5_vl.py#L903-L953).
///
/// # Errors
/// [`Error::ImageTokens`] if the image tokens do not match `pages`.
pub fn rope_positions(input_ids: &[i64], image_token_id: i64, pages: &[TokenGrid]) -> Result<Positions> {
    let mismatch = || Error::ImageTokens {
        tokens: input_ids.iter().filter(|&&id| id == image_token_id).count(),
        features: pages.iter().map(|page| page.tokens).sum(),
    };
    let mut ids: [Vec<i64>; 3] = Default::default();
    let (mut next, mut at, mut pages) = (0i64, 0, pages.iter());
    while at < input_ids.len() {
        if input_ids[at] != image_token_id {
            ids.iter_mut().for_each(|axis| axis.push(next));
            next += 1;
            at += 1;
            continue;
        }
        let page = pages.next().ok_or_else(mismatch)?;
        let (rows, columns, tokens) = (page.rows, page.columns, page.tokens);
        let run = input_ids[at..]
            .iter()
            .take(tokens)
            .filter(|&&id| id == image_token_id)
            .count();
        if run != tokens {
            return Err(mismatch());
        }
        for i in 0..tokens {
            ids[0].push(next + (i / page.frame_tokens) as i64);
            ids[1].push(next + (i / columns % rows) as i64);
            ids[2].push(next + (i % columns) as i64);
        }
        next += page.frames.max(rows).max(columns) as i64;
        at += tokens;
    }
    if pages.next().is_some() {
        return Err(mismatch());
    }
    Ok(Positions { ids, next })
}

impl LanguageModel {
    /// cos and sin, `[rows, head_dim]` each; every frequency uses the position axis of its `mrope_section`.
    ///
    /// Reference: [`Qwen2_5_VLRotaryEmbedding`](https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/models/qwen2_5_vl/modeling_qwen2_5_vl.py#L509-L571).
    pub(super) fn rotary(&self, positions: &[Vec<i64>; 3]) -> Result<(Tensor, Tensor)> {
        let (mut parts, mut start) = (Vec::new(), 0);
        for (axis, &width) in positions.iter().zip(&self.config.rope.sections) {
            let p = upload(axis, self.device)?.f_to_kind(Kind::Float)?;
            let inverse = self.inverse.f_narrow(0, start, width as i64)?;
            parts.push(p.f_unsqueeze(1)?.f_mul(&inverse)?);
            start += width as i64;
        }
        let half = Tensor::f_cat(&parts, 1)?;
        let angles = Tensor::f_cat(&[&half, &half], 1)?;
        let scaled = |wave: Tensor| match self.config.rope.attention_factor() {
            1.0 => Ok(wave),
            factor => wave.f_mul_scalar(factor),
        };
        Ok((
            scaled(angles.f_cos()?)?.f_to_kind(self.kind)?,
            scaled(angles.f_sin()?)?.f_to_kind(self.kind)?,
        ))
    }
}
