//! The published shapes of Qwen2.5-VL, and the formats of their weights.

use std::fmt;

use clap::ValueEnum;
use serde_json::{Map, Value, json};

use crate::checkpoint::JsonFile;
use crate::quant::nf4::QuantType;
use crate::{Error, Result};

/// Values per scale of an NF4 or FP4 weight, as `quantize_base` writes them.
pub(super) const BLOCKSIZE: usize = 64;
/// Inputs per scale of an AWQ weight. All shapes here are multiples.
const AWQ_GROUP: usize = 128;

/// Shapes of a model: `config.json` of Qwen2.5-VL-*-Instruct, without what only training and sampling read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    /// The embedded model's.
    Tiny,
    /// Qwen2.5-VL-3B.
    #[value(name = "3b")]
    B3,
    /// Qwen2.5-VL-7B.
    #[value(name = "7b")]
    B7,
    /// Qwen2.5-VL-32B.
    #[value(name = "32b")]
    B32,
    /// Qwen2.5-VL-72B.
    #[value(name = "72b")]
    B72,
}

/// Format of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// Unquantized, as published.
    Bf16,
    /// bitsandbytes NF4 with double quantization.
    Nf4,
    /// bitsandbytes FP4 with double quantization.
    Fp4,
    /// AWQ in groups of 128.
    Awq,
}

impl Form {
    /// bitsandbytes' data type, if it is one of these.
    pub(super) fn bitsandbytes(self) -> Option<QuantType> {
        match self {
            Self::Nf4 => Some(QuantType::Nf4),
            Self::Fp4 => Some(QuantType::Fp4),
            Self::Bf16 | Self::Awq => None,
        }
    }

    /// `quantization_config` of a folder that `quantize_base` writes.
    fn config(self) -> Option<Value> {
        match self {
            Self::Bf16 => None,
            Self::Nf4 | Self::Fp4 => Some(json!({
                "bnb_4bit_quant_type": self.to_string(),
                "bnb_4bit_use_double_quant": true,
                "load_in_4bit": true,
                "quant_method": "bitsandbytes",
            })),
            Self::Awq => Some(json!({
                "bits": 4,
                "group_size": AWQ_GROUP,
                "modules_to_not_convert": ["visual", "model.visual", "lm_head"],
                "quant_method": "awq",
                "version": "gemm",
                "zero_point": true,
            })),
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Bf16 => "bf16",
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
            Self::Awq => "awq",
        })
    }
}

impl Shape {
    fn text(self) -> &'static str {
        match self {
            Self::Tiny => include_str!("../../../models/qwen25-vl-nano/config.json"),
            Self::B3 => include_str!("shapes/3b.json"),
            Self::B7 => include_str!("shapes/7b.json"),
            Self::B32 => include_str!("shapes/32b.json"),
            Self::B72 => include_str!("shapes/72b.json"),
        }
    }

    /// `config.json` of a folder of these shapes in `form`.
    pub fn config(self, form: Form) -> Result<JsonFile> {
        let damaged = |error| Error::Internal(format!("the shapes of {self}: {error}"));
        let mut keys: Map<String, Value> = serde_json::from_str(self.text()).map_err(damaged)?;
        if let Some(quantization) = form.config() {
            keys.insert("quantization_config".to_owned(), quantization);
        }
        JsonFile::new(format!("config.json of {self}"), Value::Object(keys))
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Tiny => "tiny",
            Self::B3 => "3b",
            Self::B7 => "7b",
            Self::B32 => "32b",
            Self::B72 => "72b",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::Quantization;
    use crate::qwen2_5_vl::Config;

    #[test]
    fn the_shapes_have_the_published_numbers_of_parameters() {
        // 3B and 7B: `total_size` of the published indices, two bytes a value.
        for (shape, values) in [
            (Shape::B3, 7_509_245_952 / 2),
            (Shape::B7, 16_584_333_312 / 2),
            (Shape::B32, 33_452_718_336),
            (Shape::B72, 73_410_777_344),
        ] {
            let config = Config::from_json(&shape.config(Form::Bf16).unwrap()).unwrap();
            let tensors = config.expected_tensors();
            let found: usize = tensors
                .iter()
                .map(|tensor| tensor.shape.iter().product::<usize>())
                .sum();
            assert_eq!(found, values, "{shape}");
        }
    }

    #[test]
    fn forms_are_read_as_folders_are() {
        for (form, precision) in [
            (Form::Bf16, None),
            (Form::Nf4, Some("NF4 (bitsandbytes)")),
            (Form::Fp4, Some("FP4 (bitsandbytes)")),
            (Form::Awq, Some("INT4 (AWQ)")),
        ] {
            for shape in Shape::value_variants() {
                let config = shape.config(form).unwrap();
                let quantization = Quantization::from_json(&config).unwrap();
                assert_eq!(quantization.precision(), precision);
                let Quantization::Awq(settings) = quantization else {
                    continue;
                };
                let text = Config::from_json(&config).unwrap().text;
                let kv = text.num_key_value_heads * text.head_dim;
                for [rows, columns] in [
                    [kv, text.hidden_size],
                    [text.intermediate_size, text.hidden_size],
                    [text.hidden_size, text.intermediate_size],
                ] {
                    assert!(settings.tensors([rows, columns]).is_ok(), "{shape}");
                }
            }
        }
    }
}
