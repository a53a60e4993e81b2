//! Rotary frequencies: M-RoPE sections, and YaRN's scaling.
//!
//! Reference: `_compute_yarn_parameters` in `modeling_rope_utils.py` of transformers 5.17.

use std::f64::consts::PI;

use serde_json::Value;
use tch::{Device, Kind, Tensor};

use super::config::Section;
use crate::Result;
use crate::checkpoint::config_defaults::ConfigSection;

/// Rotary embedding of the language model.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// `mrope_section`: number of frequencies that use time, height and width; their sum is `head_dim / 2`.
    pub sections: [usize; 3],
    /// YaRN scaling, if any.
    pub yarn: Option<Yarn>,
}

/// YaRN: divides low frequencies by `factor`, keeps high ones, interpolates between them.
///
/// Reference: [`_compute_yarn_parameters`](https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/modeling_rope_utils.py#L345-L483).
#[derive(Debug, Clone, PartialEq)]
pub struct Yarn {
    /// Ratio of the extended to the original context length.
    pub factor: f64,
    /// Factor of cosines and sines.
    pub attention_factor: f64,
    /// Original context length.
    pub original_positions: usize,
    /// Frequencies with at least this many rotations over the original context are kept.
    pub beta_fast: f64,
    /// Frequencies with at most this many rotations over the original context are divided by `factor`.
    pub beta_slow: f64,
    /// Rounds the two bounds to whole frequency indices.
    pub truncate: bool,
}

impl Rope {
    /// Reads `rope_scaling` and `rope_theta`, or transformers 5's `rope_parameters`, in `s`.
    pub(super) fn read(s: &Section<'_>, head_dim: usize, max_positions: usize) -> Result<Self> {
        let is_there = |key| {
            s.present(key)
                .is_some_and(|value| value != &serde_json::json!({}))
        };
        let key = if is_there("rope_scaling") {
            "rope_scaling"
        } else {
            "rope_parameters"
        };
        let rope = s.section(key, ConfigSection::Rope)?;
        if rope.map.values().any(Value::is_object) {
            return Err(rope.error("settings by kind of layer are not supported"));
        }
        let theta = match rope.map.get("rope_theta") {
            Some(_) => rope.positive("rope_theta")?,
            None => s.positive("rope_theta")?,
        };
        let sections = rope.sizes("mrope_section")?;
        let sections: [usize; 3] = sections
            .try_into()
            .map_err(|_| rope.error("\"mrope_section\" must hold three numbers"))?;
        if sections.iter().sum::<usize>() != head_dim / 2 {
            return Err(rope.error(&format!(
                "\"mrope_section\" {sections:?} must add up to half of \"hidden_size\" / \"num_attention_heads\" ({}){}{}",
                head_dim / 2,
                rope.left_out(&["mrope_section"]),
                s.left_out(&["hidden_size", "num_attention_heads"]),
            )));
        }
        let kind = ["rope_type", "type"].iter().find_map(|key| rope.map.get(*key));
        let yarn = match kind.map(Value::as_str) {
            None | Some(Some("default" | "mrope")) => None,
            Some(Some("yarn")) if theta <= 1.0 => {
                return Err(rope.error("\"rope_theta\" must be above 1 with YaRN"));
            }
            Some(Some("yarn")) => Some(Yarn::read(s, &rope, max_positions)?),
            Some(_) => {
                return Err(rope.error(
                    "the rope type must be \"default\", \"mrope\" or \"yarn\"; other ways to scale are not supported",
                ));
            }
        };
        Ok(Self {
            theta,
            sections,
            yarn,
        })
    }

    /// Context length after YaRN; 0 without it.
    pub(super) fn context(&self) -> usize {
        self.yarn.as_ref().map_or(0, |yarn| {
            (yarn.factor * yarn.original_positions as f64).min(f64::from(u32::MAX)) as usize
        })
    }

    /// Factor of cosines and sines.
    pub fn attention_factor(&self) -> f64 {
        self.yarn.as_ref().map_or(1.0, |yarn| yarn.attention_factor)
    }

    /// Radians per position of each pair of a head's values, `[head_dim / 2]` f32, computed as in transformers.
    pub fn inverse_frequencies(&self, head_dim: usize) -> Result<Tensor> {
        let plain = inverse_frequencies(self.theta, head_dim as i64)?;
        match &self.yarn {
            None => Ok(plain),
            Some(yarn) => yarn.scale(&plain, self.theta, head_dim),
        }
    }
}

impl Yarn {
    fn read(s: &Section<'_>, rope: &Section<'_>, max_positions: usize) -> Result<Self> {
        if rope
            .present("partial_rotary_factor")
            .is_some_and(|part| part.as_f64() != Some(1.0))
        {
            return Err(rope.error("\"partial_rotary_factor\" is not supported"));
        }
        // In a nested file the text config's own value takes precedence, as in transformers.
        let original_positions = if s.is_nested() && s.present("original_max_position_embeddings").is_some() {
            s.size("original_max_position_embeddings")?
        } else if rope.present("original_max_position_embeddings").is_some() {
            rope.size("original_max_position_embeddings")?
        } else {
            max_positions
        };
        let factor = match rope.map.get("factor") {
            Some(Value::Null) => max_positions as f64 / original_positions as f64,
            _ => rope.positive("factor")?,
        };
        // Zero counts as absent, as in Python.
        let optional = |key| match rope.present(key).filter(|value| value.as_f64() != Some(0.0)) {
            Some(_) => rope.positive(key).map(Some),
            None => Ok(None),
        };
        let scaled = |mscale: f64| match factor <= 1.0 {
            true => 1.0,
            false => 0.1 * mscale * factor.ln() + 1.0,
        };
        let attention_factor = match (
            rope.present("attention_factor"),
            optional("mscale")?,
            optional("mscale_all_dim")?,
        ) {
            (Some(_), _, _) => rope.positive("attention_factor")?,
            (None, Some(mscale), Some(all)) => scaled(mscale) / scaled(all),
            (None, _, _) => scaled(1.0),
        };
        let beta = |key| match optional(key)? {
            Some(beta) => Ok(beta),
            None => rope.default(key),
        };
        Ok(Self {
            factor,
            attention_factor,
            original_positions,
            beta_fast: beta("beta_fast")?,
            beta_slow: beta("beta_slow")?,
            truncate: rope.present("truncate").is_none() || rope.flag("truncate")?,
        })
    }

    /// Index of the frequency with `turns` rotations over the original context.
    fn frequency_of(&self, turns: f64, theta: f64, head_dim: usize) -> f64 {
        let positions = self.original_positions as f64;
        head_dim as f64 * (positions / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln())
    }

    fn scale(&self, plain: &Tensor, theta: f64, head_dim: usize) -> Result<Tensor> {
        let (mut low, mut high) = (
            self.frequency_of(self.beta_fast, theta, head_dim),
            self.frequency_of(self.beta_slow, theta, head_dim),
        );
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(head_dim as f64 - 1.0));
        if low == high {
            high += 0.001;
        }
        let half = head_dim as i64 / 2;
        let ramp = Tensor::f_arange(half, (Kind::Float, Device::Cpu))?
            .f_sub_scalar(low)?
            .f_div_scalar(high - low)?
            .f_clamp(0.0, 1.0)?;
        let slow = plain.f_reciprocal()?.f_mul_scalar(self.factor)?.f_reciprocal()?;
        let stays = ramp.f_neg()?.f_add_scalar(1.0)?;
        let stretched = stays.f_neg()?.f_add_scalar(1.0)?;
        Ok(slow.f_mul(&stretched)?.f_add(&plain.f_mul(&stays)?)?)
    }
}

/// 1 / theta^(2i / dim), `[dim / 2]` f32, computed as in transformers.
pub(super) fn inverse_frequencies(theta: f64, dim: i64) -> Result<Tensor> {
    let exponent =
        Tensor::f_arange_start_step(0, dim, 2, (Kind::Float, Device::Cpu))?.f_div_scalar(dim as f64)?;
    let base = Tensor::f_full([] as [i64; 0], theta, (Kind::Float, Device::Cpu))?;
    Ok(base.f_pow(&exponent)?.f_reciprocal()?)
}
