//! `quantization_config` of a `config.json`: how a folder's weights are stored.

use std::path::Path;

use serde_json::{Map, Value};

use super::nf4::{BLOCKSIZES, QuantType};
use crate::{Error, Result};

/// How a folder's weights are stored.
#[derive(Debug, Clone, PartialEq)]
pub enum Quantization {
    /// As numbers.
    None,
    /// bitsandbytes, 4 bits.
    BitsAndBytes(BitsAndBytes),
}

/// bitsandbytes' settings.
#[derive(Debug, Clone, PartialEq)]
pub struct BitsAndBytes {
    /// Number format.
    pub quant_type: QuantType,
    /// The blocks' scales are quantized too.
    pub double_quant: bool,
    /// Values that share a scale, where the config says so; each weight's own state is what counts.
    pub blocksize: Option<usize>,
    /// Modules whose weights stay as they are.
    pub skip_modules: Option<Vec<String>>,
}

impl Quantization {
    /// Reads `config.json` of the folder `dir`.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        match crate::json::read_object(&path)? {
            Some(config) => Self::from_json(&path, &config),
            None => Err(Error::io(path, std::io::ErrorKind::NotFound.into())),
        }
    }

    /// What weights are stored as, for the reader; `None` where that is the number format of the computation.
    pub fn precision(&self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::BitsAndBytes(settings) => Some(match settings.quant_type {
                QuantType::Nf4 => "NF4 (bitsandbytes)",
                QuantType::Fp4 => "FP4 (bitsandbytes)",
            }),
        }
    }

    /// Reads a parsed `config.json`; `path` is for errors alone.
    pub fn from_json(path: &Path, config: &Map<String, Value>) -> Result<Self> {
        let error = |reason: String| Error::checkpoint(path, format!("in \"quantization_config\": {reason}"));
        let map = match config.get("quantization_config") {
            None | Some(Value::Null) => return Ok(Self::None),
            Some(Value::Object(map)) => map,
            Some(_) => return Err(error("must be a JSON object".to_owned())),
        };
        match map.get("quant_method").and_then(Value::as_str) {
            Some("bitsandbytes") => bits_and_bytes(map).map(Self::BitsAndBytes).map_err(error),
            other => Err(error(format!(
                "\"quant_method\" is {}; \"bitsandbytes\" is supported: \
                 quantize the original model with quantize_base",
                other.map_or("missing".to_owned(), |name| format!("{name:?}"))
            ))),
        }
    }
}

fn bits_and_bytes(map: &Map<String, Value>) -> Result<BitsAndBytes, String> {
    let flag = |keys: [&str; 2]| -> Result<bool, String> {
        match keys
            .iter()
            .find_map(|key| map.get(*key).filter(|value| !value.is_null()))
        {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(format!("\"{}\" must be true or false", keys[0])),
        }
    };
    if flag(["load_in_8bit", "_load_in_8bit"])? || !flag(["load_in_4bit", "_load_in_4bit"])? {
        return Err(
            "\"load_in_4bit\" must be true; bitsandbytes' 8-bit weights are not supported".to_owned(),
        );
    }
    let text = |key: &str, default: &'static str| match map.get(key) {
        None | Some(Value::Null) => Ok(default.to_owned()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(format!("\"{key}\" must be a text")),
    };
    let quant_type = match text("bnb_4bit_quant_type", "fp4")?.as_str() {
        "nf4" => QuantType::Nf4,
        "fp4" => QuantType::Fp4,
        other => {
            return Err(format!(
                "\"bnb_4bit_quant_type\" is {other:?}; \"nf4\" and \"fp4\" are supported"
            ));
        }
    };
    let storage = text("bnb_4bit_quant_storage", "uint8")?;
    if storage != "uint8" {
        return Err(format!(
            "\"bnb_4bit_quant_storage\" is {storage:?}; \"uint8\" is supported"
        ));
    }
    let blocksize = match map.get("bnb_4bit_blocksize") {
        None | Some(Value::Null) => None,
        Some(value) => match value.as_u64().and_then(|size| usize::try_from(size).ok()) {
            Some(size) if BLOCKSIZES.contains(&size) => Some(size),
            _ => {
                return Err(format!(
                    "\"bnb_4bit_blocksize\" is {value}; bitsandbytes knows {BLOCKSIZES:?}"
                ));
            }
        },
    };
    let skip_modules = match map.get("llm_int8_skip_modules") {
        None | Some(Value::Null) => None,
        Some(value) => Some(
            serde_json::from_value(value.clone())
                .map_err(|_| "\"llm_int8_skip_modules\" must be a list of module names".to_owned())?,
        ),
    };
    Ok(BitsAndBytes {
        quant_type,
        double_quant: flag(["bnb_4bit_use_double_quant"; 2])?,
        blocksize,
        skip_modules,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(config: Value) -> Result<Quantization> {
        let config = json!({"quantization_config": config});
        Quantization::from_json(Path::new("config.json"), config.as_object().unwrap())
    }

    #[test]
    fn what_transformers_writes_is_read() {
        let config = json!({
            "_load_in_4bit": true, "_load_in_8bit": false, "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_quant_storage": "uint8", "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": true,
            "llm_int8_skip_modules": ["lm_head", "model.visual"], "llm_int8_threshold": 6.0,
            "load_in_4bit": true, "load_in_8bit": false, "quant_method": "bitsandbytes"
        });
        let expected = BitsAndBytes {
            quant_type: QuantType::Nf4,
            double_quant: true,
            blocksize: None,
            skip_modules: Some(vec!["lm_head".to_owned(), "model.visual".to_owned()]),
        };
        assert_eq!(read(config).unwrap(), Quantization::BitsAndBytes(expected));
        assert_eq!(read(Value::Null).unwrap(), Quantization::None);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let base = |key: &str, value: Value| {
            let mut config = json!({"quant_method": "bitsandbytes", "load_in_4bit": true});
            config[key] = value;
            read(config).unwrap_err().to_string()
        };
        for (key, value, words) in [
            ("quant_method", json!("gptq"), ["\"gptq\"", "\"bitsandbytes\""]),
            ("quant_method", json!(4), ["missing", "\"bitsandbytes\""]),
            ("load_in_4bit", json!(false), ["load_in_4bit", "8-bit"]),
            ("load_in_8bit", json!(true), ["load_in_4bit", "8-bit"]),
            ("load_in_4bit", json!("yes"), ["load_in_4bit", "true or false"]),
            ("bnb_4bit_quant_type", json!("int4"), ["\"int4\"", "\"nf4\""]),
            ("bnb_4bit_quant_storage", json!("bfloat16"), ["bfloat16", "uint8"]),
            ("bnb_4bit_blocksize", json!(65), ["65", "64"]),
            (
                "llm_int8_skip_modules",
                json!("lm_head"),
                ["llm_int8_skip_modules", "list"],
            ),
        ] {
            let message = base(key, value);
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
    }
}
