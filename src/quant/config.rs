//! `quantization_config` of `config.json`: how a folder's weights are stored.

use std::path::Path;

use serde_json::{Map, Value};

use super::nf4::{BLOCKSIZES, QuantType};
use crate::checkpoint::{JsonFile, ModelFolder};
use crate::{Error, Result};

/// How a folder's weights are stored.
#[derive(Debug, Clone, PartialEq)]
pub enum Quantization {
    /// Unquantized (dense).
    None,
    /// bitsandbytes, 4 bits.
    BitsAndBytes(BitsAndBytes),
    /// AWQ, 4 bits, in AutoAWQ's GEMM layout.
    Awq(Awq),
}

/// AWQ's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Awq {
    /// Group size: inputs that share a scale and a zero point; `None` for whole rows (`-1` in the file).
    pub group_size: Option<usize>,
    /// Modules that are not quantized.
    pub modules_to_not_convert: Option<Vec<String>>,
}

/// bitsandbytes' settings.
#[derive(Debug, Clone, PartialEq)]
pub struct BitsAndBytes {
    /// 4-bit data type.
    pub quant_type: QuantType,
    /// Whether the scales are quantized too (double quantization).
    pub double_quant: bool,
    /// Block size, if the config has it; each weight's `quant_state` has precedence.
    pub blocksize: Option<usize>,
    /// Modules that are not quantized.
    pub skip_modules: Option<Vec<String>>,
}

impl Quantization {
    /// Reads `config.json` of the model folder `dir`.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        Self::from_json(ModelFolder::new(dir).config()?)
    }

    /// Label of the format for users; `None` for dense weights.
    pub fn precision(&self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Awq(_) => Some("INT4 (AWQ)"),
            Self::BitsAndBytes(settings) => Some(match settings.quant_type {
                QuantType::Nf4 => "NF4 (bitsandbytes)",
                QuantType::Fp4 => "FP4 (bitsandbytes)",
            }),
        }
    }

    /// Reads a parsed `config.json`.
    pub fn from_json(file: &JsonFile) -> Result<Self> {
        let error =
            |reason: String| Error::invalid_file(&file.path, format!("in \"quantization_config\": {reason}"));
        let map = match file.keys.get("quantization_config") {
            None | Some(Value::Null) => return Ok(Self::None),
            Some(Value::Object(map)) => map,
            Some(_) => return Err(error("must be a JSON object".to_owned())),
        };
        match map.get("quant_method").and_then(Value::as_str) {
            Some("bitsandbytes") => bits_and_bytes(map).map(Self::BitsAndBytes).map_err(error),
            Some("awq") => awq(map).map(Self::Awq).map_err(error),
            other => Err(error(format!(
                "\"quant_method\" is {}; \"bitsandbytes\" and \"awq\" are supported: \
                 quantize the original model with quantize_base",
                other.map_or("missing".to_owned(), |name| format!("{name:?}"))
            ))),
        }
    }
}

fn awq(map: &Map<String, Value>) -> Result<Awq, String> {
    let get = |key: &str| map.get(key).filter(|value| !value.is_null());
    // The first key is AutoAWQ's in a model folder, the second that of its older files.
    let either = |keys: [&str; 2]| keys.iter().find_map(|key| get(key));
    match either(["bits", "w_bit"]) {
        Some(bits) if bits.as_u64() != Some(4) => return Err(format!("\"bits\" is {bits}; 4 is supported")),
        Some(_) => {}
        None => return Err("\"bits\" is missing; 4 is supported".to_owned()),
    }
    if get("zero_point").is_some_and(|flag| flag != &Value::Bool(true)) {
        return Err("\"zero_point\" must be true".to_owned());
    }
    let version = get("version").map_or(Some("gemm"), Value::as_str);
    if !version.is_some_and(|name| name.eq_ignore_ascii_case("gemm")) {
        let found = get("version").unwrap_or(&Value::Null);
        return Err(format!(
            "\"version\" is {found}; AutoAWQ's \"gemm\" layout is supported"
        ));
    }
    let group_size = match either(["group_size", "q_group_size"]) {
        Some(value) if value.as_i64() == Some(-1) => None,
        Some(value) => match value.as_u64().and_then(|size| usize::try_from(size).ok()) {
            Some(size) if size >= 8 && size.is_multiple_of(8) => Some(size),
            _ => {
                return Err(format!(
                    "\"group_size\" is {value}; a multiple of 8 or -1 is supported"
                ));
            }
        },
        None => return Err("\"group_size\" is missing".to_owned()),
    };
    let modules_to_not_convert = get("modules_to_not_convert")
        .map(|value| serde_json::from_value(value.clone()))
        .transpose()
        .map_err(|_| "\"modules_to_not_convert\" must be a list of module names".to_owned())?;
    Ok(Awq {
        group_size,
        modules_to_not_convert,
    })
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
        Quantization::from_json(&JsonFile::new("config.json", config)?)
    }

    #[test]
    fn the_config_of_transformers_is_read() {
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
    fn the_config_of_autoawq_is_read() {
        let config = json!({
            "bits": 4, "group_size": 128, "modules_to_not_convert": ["visual"], "quant_method": "awq",
            "version": "GEMM", "zero_point": true
        });
        let expected = Awq {
            group_size: Some(128),
            modules_to_not_convert: Some(vec!["visual".to_owned()]),
        };
        assert_eq!(read(config).unwrap(), Quantization::Awq(expected));
        let older = json!({"quant_method": "awq", "w_bit": 4, "q_group_size": -1, "zero_point": true});
        let expected = Awq {
            group_size: None,
            modules_to_not_convert: None,
        };
        assert_eq!(read(older).unwrap(), Quantization::Awq(expected));
    }

    #[test]
    fn unsupported_settings_are_named() {
        let base = |key: &str, value: Value| {
            let mut config = json!({"quant_method": "bitsandbytes", "load_in_4bit": true});
            config[key] = value;
            read(config).unwrap_err().to_string()
        };
        let awq = |key: &str, value: Value| {
            let mut config = json!({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"});
            config[key] = value;
            read(config).unwrap_err().to_string()
        };
        for (key, value, words) in [
            ("bits", json!(8), ["\"bits\" is 8", "4 is supported"]),
            ("bits", Value::Null, ["\"bits\" is missing", "4 is supported"]),
            ("zero_point", json!(false), ["zero_point", "true"]),
            ("version", json!("gemv"), ["\"gemv\"", "gemm"]),
            ("version", json!(3), ["is 3", "gemm"]),
            ("group_size", json!(12), ["is 12", "multiple of 8"]),
            ("group_size", json!(0), ["is 0", "multiple of 8"]),
            ("group_size", Value::Null, ["group_size", "missing"]),
            (
                "modules_to_not_convert",
                json!("visual"),
                ["modules_to_not_convert", "list"],
            ),
        ] {
            let message = awq(key, value);
            assert!(words.iter().all(|word| message.contains(word)), "{message}");
        }
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
