//! `adapter_config.json`, PEFT's description of a LoRA adapter.
//!
//! An unknown key that could change the computation is an error: an adapter is never computed in part.

use std::collections::BTreeMap;
use std::path::Path;

use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use super::{
    file::ADAPTER_CONFIG,
    targets::{Targets, is_match, whole},
};
use crate::fs::{CONFIG_BYTES, json::read_object, read_text};
use crate::{Error, Result};

/// Maximum rank; published adapters have at most 512.
const MAX_RANK: u64 = 4096;

/// Keys about the training, which do not change the computation.
const WITHOUT_EFFECT: [&str; 10] = [
    "auto_mapping",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "loftq_config",
];

/// Initializations that do not change the base's weights.
const INITIAL: [&str; 3] = ["gaussian", "orthogonal", "eva"];

/// Configuration of a LoRA adapter.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraConfig {
    /// Rank: rows of A.
    pub r: usize,
    /// Alpha: divided by the rank it is the scale of B(A x).
    pub lora_alpha: f64,
    /// rsLoRA: the scale is `lora_alpha / sqrt(r)`.
    pub use_rslora: bool,
    /// Dropout probability of A's inputs in training.
    pub lora_dropout: f64,
    /// Modules with an adapter.
    pub target_modules: Targets,
    /// Modules without an adapter although `target_modules` matches them.
    pub exclude_modules: Option<Targets>,
    /// Layers that a list of `target_modules` applies to; `None` for all.
    pub layers_to_transform: Option<Vec<usize>>,
    /// Module names before a layer's number; empty for any one name.
    pub layers_pattern: Vec<String>,
    /// Whether a target of the embedding also applies to an output head that is tied to it, and vice versa.
    pub ensure_weight_tying: bool,
    /// Other ranks of some modules by pattern; the first matching pattern applies.
    pub rank_pattern: Vec<(String, usize)>,
    /// As `rank_pattern`, for `lora_alpha`.
    pub alpha_pattern: Vec<(String, f64)>,
    /// The base's folder or hub name.
    pub base_model_name_or_path: Option<String>,
    /// PEFT's class of model; "CAUSAL_LM" for ours.
    pub task_type: Option<String>,
}

impl Default for LoraConfig {
    /// The original project's: rank 64, alpha 128, dropout 0.05, all projections of a decoder layer.
    fn default() -> Self {
        Self {
            r: 64,
            lora_alpha: 128.0,
            use_rslora: false,
            lora_dropout: 0.05,
            target_modules: Targets::decoder_projections(),
            exclude_modules: None,
            layers_to_transform: None,
            layers_pattern: Vec::new(),
            ensure_weight_tying: false,
            rank_pattern: Vec::new(),
            alpha_pattern: Vec::new(),
            base_model_name_or_path: None,
            task_type: Some("CAUSAL_LM".to_owned()),
        }
    }
}

impl LoraConfig {
    /// The scale of B(A x) without patterns.
    pub fn scale(&self) -> f64 {
        self.scale_of(self.lora_alpha, self.r)
    }

    fn scale_of(&self, alpha: f64, rank: usize) -> f64 {
        let rank = rank as f64;
        alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    /// Rank and scale of the module of transformers' `name`; `file` is for errors.
    pub fn rank_and_scale(&self, file: &Path, name: &str) -> Result<(usize, f64)> {
        let rank = pattern(file, "rank_pattern", &self.rank_pattern, name)?.unwrap_or(self.r);
        let alpha = pattern(file, "alpha_pattern", &self.alpha_pattern, name)?.unwrap_or(self.lora_alpha);
        Ok((rank, self.scale_of(alpha, rank)))
    }

    /// Reads `adapter_config.json` in `dir`.
    pub fn read(dir: &Path) -> Result<Self> {
        let file = dir.join(ADAPTER_CONFIG);
        let Some(map) = read_object(&file)? else {
            return Err(Error::not_found(
                file,
                "is missing: a PEFT adapter folder holds it beside the tensors",
            ));
        };
        let mut config = Self::from_json(&file, &Value::Object(map))?;
        let text = read_text(&file, CONFIG_BYTES).map_err(|error| Error::io(&file, error))?;
        let order: PatternOrder = serde_json::from_str(&text)
            .map_err(|error| Error::invalid_file(&file, format!("not valid JSON: {error}")))?;
        order.rank_pattern.apply(&mut config.rank_pattern);
        order.alpha_pattern.apply(&mut config.alpha_pattern);
        Ok(config)
    }

    /// Reads a parsed `adapter_config.json`, whose patterns are in alphabetical order; `file` is for errors.
    pub fn from_json(file: &Path, value: &Value) -> Result<Self> {
        let Some(map) = value.as_object() else {
            return Err(Error::invalid_file(file, "must hold a JSON object"));
        };
        let keys = Keys { file, map };
        match keys.text("peft_type")?.as_deref() {
            Some("LORA") => {}
            other => {
                let found = other.unwrap_or("none");
                return Err(keys.error(&format!(
                    "\"peft_type\" is \"{found}\"; only \"LORA\" is supported"
                )));
            }
        }
        keys.refuse_what_is_not_computed()?;
        let target_modules = keys
            .targets("target_modules")?
            .ok_or_else(|| keys.error("required key \"target_modules\" is missing"))?;
        Ok(Self {
            r: keys.rank("r", keys.required("r")?)?,
            lora_alpha: keys.positive("lora_alpha", keys.required("lora_alpha")?)?,
            use_rslora: keys.flag("use_rslora")?,
            lora_dropout: keys.dropout()?,
            target_modules,
            exclude_modules: keys.targets("exclude_modules")?,
            layers_to_transform: keys.layers()?,
            layers_pattern: keys.texts("layers_pattern")?,
            ensure_weight_tying: keys.flag("ensure_weight_tying")?,
            rank_pattern: keys.pattern("rank_pattern", Keys::rank)?,
            alpha_pattern: keys.pattern("alpha_pattern", Keys::positive)?,
            base_model_name_or_path: keys.text("base_model_name_or_path")?,
            task_type: keys.text("task_type")?,
        })
    }

    /// Content of `adapter_config.json`, as PEFT reads it.
    pub fn to_json(&self) -> Value {
        // Integers without a decimal point, as PEFT declares them.
        let number = |value: f64| match value {
            whole if whole.fract() == 0.0 && whole.abs() < 1e15 => json!(whole as i64),
            other => json!(other),
        };
        let alphas: BTreeMap<&String, Value> = self
            .alpha_pattern
            .iter()
            .map(|(key, alpha)| (key, number(*alpha)))
            .collect();
        let ranks: BTreeMap<&String, usize> =
            self.rank_pattern.iter().map(|(key, rank)| (key, *rank)).collect();
        json!({
            "alpha_pattern": alphas,
            "base_model_name_or_path": self.base_model_name_or_path,
            "bias": "none",
            "ensure_weight_tying": self.ensure_weight_tying,
            "exclude_modules": self.exclude_modules,
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layers_pattern": (!self.layers_pattern.is_empty()).then_some(&self.layers_pattern),
            "layers_to_transform": self.layers_to_transform,
            "lora_alpha": number(self.lora_alpha),
            "lora_bias": false,
            "lora_dropout": self.lora_dropout,
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": self.r,
            "rank_pattern": ranks,
            "target_modules": self.target_modules,
            "task_type": self.task_type,
            "use_dora": false,
            "use_rslora": self.use_rslora,
        })
    }
}

/// The value of the first pattern that matches `name`. As in PEFT a pattern matches a whole name or the part after a dot.
fn pattern<T: Copy>(file: &Path, key: &str, patterns: &[(String, T)], name: &str) -> Result<Option<T>> {
    for (pattern, value) in patterns {
        let regex = whole(file, key, &format!(r"(?:.*\.)?(?:{pattern})"))?;
        if is_match(&regex, file, key, name)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

/// Restores the order of the patterns in the file, which a [`Value`] does not keep.
#[derive(Deserialize)]
struct PatternOrder {
    #[serde(default)]
    rank_pattern: KeyOrder,
    #[serde(default)]
    alpha_pattern: KeyOrder,
}

/// The keys of a JSON object in their order; none of another value.
#[derive(Default)]
struct KeyOrder(Vec<String>);

impl KeyOrder {
    fn apply<T>(&self, patterns: &mut [(String, T)]) {
        let place = |key: &String| self.0.iter().position(|other| other == key);
        patterns.sort_by_key(|(key, _)| place(key));
    }
}

impl<'de> Deserialize<'de> for KeyOrder {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = KeyOrder;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("an object or null")
            }

            fn visit_unit<E>(self) -> Result<KeyOrder, E> {
                Ok(KeyOrder::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<KeyOrder, A::Error> {
                let mut keys = Vec::new();
                while let Some((key, _)) = map.next_entry::<String, IgnoredAny>()? {
                    keys.push(key);
                }
                Ok(KeyOrder(keys))
            }
        }
        deserializer.deserialize_any(Keys)
    }
}

/// The keys of the file.
struct Keys<'a> {
    file: &'a Path,
    map: &'a Map<String, Value>,
}

impl Keys<'_> {
    fn error(&self, reason: &str) -> Error {
        Error::invalid_file(self.file, reason)
    }

    /// The value, unless it is absent or null.
    fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn required(&self, key: &str) -> Result<&Value> {
        self.get(key)
            .ok_or_else(|| self.error(&format!("required key \"{key}\" is missing")))
    }

    /// Refuses settings that would change the computation and are not supported.
    fn refuse_what_is_not_computed(&self) -> Result<()> {
        let known = [
            "peft_type",
            "r",
            "lora_alpha",
            "use_rslora",
            "lora_dropout",
            "target_modules",
            "ensure_weight_tying",
            "layers_pattern",
            "layers_to_transform",
            "rank_pattern",
            "alpha_pattern",
            "base_model_name_or_path",
            "task_type",
        ];
        for (key, value) in self.map {
            let fits = match key.as_str() {
                "bias" => value == "none",
                "init_lora_weights" => {
                    value.is_boolean() || value.as_str().is_some_and(|way| INITIAL.contains(&way))
                }
                key if known.contains(&key) || WITHOUT_EFFECT.contains(&key) => true,
                _ => is_off(value),
            };
            if !fits {
                return Err(self.error(&format!(
                    "\"{key}\": {} is not supported: {}",
                    abridged(value),
                    remedy(key)
                )));
            }
        }
        Ok(())
    }

    fn flag(&self, key: &str) -> Result<bool> {
        match self.get(key) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.error(&format!("\"{key}\" must be true or false"))),
        }
    }

    fn text(&self, key: &str) -> Result<Option<String>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(self.error(&format!("\"{key}\" must be a text"))),
        }
    }

    fn rank(&self, key: &str, value: &Value) -> Result<usize> {
        match value.as_u64() {
            Some(rank @ 1..=MAX_RANK) => Ok(rank as usize),
            _ => Err(self.error(&format!("\"{key}\" must be a whole number from 1 to {MAX_RANK}"))),
        }
    }

    fn positive(&self, key: &str, value: &Value) -> Result<f64> {
        let number = value.as_f64().filter(|number| (1e-6..=1e9).contains(number));
        number.ok_or_else(|| self.error(&format!("\"{key}\" must be a positive number")))
    }

    fn dropout(&self) -> Result<f64> {
        let value = self.get("lora_dropout").map_or(Some(0.0), Value::as_f64);
        let value = value.filter(|part| (0.0..1.0).contains(part));
        value.ok_or_else(|| self.error("\"lora_dropout\" must be a number from 0 up to 1"))
    }

    fn targets(&self, key: &str) -> Result<Option<Targets>> {
        let wrong = || self.error(&format!("\"{key}\" must be a list of names or one pattern"));
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(list)) if list.is_empty() && key == "exclude_modules" => Ok(None),
            Some(Value::Array(list)) if list.is_empty() => {
                Err(self.error(&format!("\"{key}\" names no module")))
            }
            Some(value) => serde_json::from_value(value.clone())
                .map(Some)
                .map_err(|_| wrong()),
        }
    }

    /// Reads one number or a list.
    fn layers(&self) -> Result<Option<Vec<usize>>> {
        let key = "layers_to_transform";
        let wrong = || self.error(&format!("\"{key}\" must be a layer's number or a list of them"));
        let number = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok());
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(list)) if list.is_empty() => Ok(None),
            Some(Value::Array(list)) => list
                .iter()
                .map(|value| number(value).ok_or_else(wrong))
                .collect::<Result<_>>()
                .map(Some),
            Some(value) => number(value).map(|one| Some(vec![one])).ok_or_else(wrong),
        }
    }

    /// Reads one string or a list.
    fn texts(&self, key: &str) -> Result<Vec<String>> {
        let wrong = || self.error(&format!("\"{key}\" must be a text or a list of them"));
        let text = |value: &Value| value.as_str().map(str::to_owned).ok_or_else(wrong);
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(text).collect(),
            Some(value) => Ok(vec![text(value)?]),
        }
    }

    fn pattern<T>(
        &self,
        key: &str,
        read: impl Fn(&Self, &str, &Value) -> Result<T>,
    ) -> Result<Vec<(String, T)>> {
        match self.get(key) {
            None => Ok(Vec::new()),
            Some(Value::Object(map)) => map
                .iter()
                .map(|(pattern, value)| Ok((pattern.clone(), read(self, key, value)?)))
                .collect(),
            Some(_) => Err(self.error(&format!("\"{key}\" must be an object"))),
        }
    }
}

/// Whether a value means absent: null, false or empty.
fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// A value, shortened for a message.
fn abridged(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn remedy(key: &str) -> &'static str {
    match key {
        "modules_to_save" | "trainable_token_indices" => {
            "the adapter replaces whole modules of the base; merge it in PEFT and load the merged model"
        }
        "init_lora_weights" => {
            "the adapter was initialized by changing the base's weights; \
             convert it in PEFT (save_pretrained with path_initial_model_for_weight_conversion)"
        }
        _ => "only plain LoRA is supported; merge the adapter in PEFT and load the merged model",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &Value) -> Result<LoraConfig> {
        LoraConfig::from_json(Path::new("adapter_config.json"), value)
    }

    /// As PEFT 0.21 writes it.
    fn peft() -> Value {
        json!({
            "alora_invocation_tokens": null, "alpha_pattern": {}, "arrow_config": null, "auto_mapping": null,
            "base_model_name_or_path": "base", "bias": "none", "corda_config": null, "ensure_weight_tying": false,
            "eva_config": null, "exclude_modules": null, "fan_in_fan_out": false, "inference_mode": false,
            "init_lora_weights": true, "kasa_config": null, "layer_replication": null, "layers_pattern": null,
            "layers_to_transform": null, "loftq_config": {}, "lora_alpha": 128, "lora_bias": false,
            "lora_dropout": 0.05, "lora_ga_config": null, "megatron_config": null, "megatron_core": "megatron.core",
            "modules_to_save": null, "monteclora_config": null, "peft_type": "LORA", "peft_version": "0.21.2",
            "qalora_group_size": 16, "r": 64, "rank_pattern": {}, "revision": null,
            "target_modules": ["q_proj", "k_proj"], "target_parameters": null, "task_type": "CAUSAL_LM",
            "trainable_token_indices": null, "use_bdlora": null, "use_dora": false, "use_qalora": false,
            "use_rslora": false, "velora_config": null
        })
    }

    fn with(key: &str, value: Value) -> Value {
        let mut config = peft();
        config[key] = value;
        config
    }

    #[test]
    fn a_config_of_peft_is_read_and_written_back() {
        let config = parse(&peft()).unwrap();
        assert_eq!((config.r, config.lora_alpha, config.scale()), (64, 128.0, 2.0));
        assert_eq!(parse(&config.to_json()).unwrap(), config);
        let rslora = parse(&with("use_rslora", json!(true))).unwrap();
        assert_eq!(rslora.scale(), 16.0);
        assert_eq!(parse(&rslora.to_json()).unwrap(), rslora);
        let pattern = parse(&with("target_modules", json!(".*q_proj"))).unwrap();
        assert_eq!(pattern.target_modules, Targets::Pattern(".*q_proj".to_owned()));
        assert_eq!(pattern.to_json()["target_modules"], ".*q_proj");
        assert_eq!(pattern.to_json()["lora_alpha"], json!(128));
    }

    #[test]
    fn unsupported_settings_are_refused_by_name() {
        for (key, value) in [
            ("use_dora", json!(true)),
            ("modules_to_save", json!(["lm_head"])),
            ("bias", json!("all")),
            ("lora_bias", json!(true)),
            ("fan_in_fan_out", json!(true)),
            ("init_lora_weights", json!("pissa_niter_16")),
            ("layer_replication", json!([[0, 4], [2, 5]])),
            ("alora_invocation_tokens", json!([1, 2])),
            ("target_parameters", json!(["mlp.experts"])),
            ("trainable_token_indices", json!([5])),
            ("use_bdlora", json!({"nblocks": 2})),
            ("some_new_kind", json!("on")),
            ("peft_type", json!("ADALORA")),
            ("peft_type", Value::Null),
        ] {
            let error = parse(&with(key, value)).unwrap_err().to_string();
            assert!(
                error.starts_with("adapter_config.json: ") && error.contains(&format!("\"{key}\"")),
                "{error}"
            );
        }
    }

    #[test]
    fn numbers_out_of_range_are_refused_by_their_key() {
        let hostile = [
            json!(0),
            json!(-1),
            json!(1u64 << 31),
            json!(u64::MAX),
            json!("64"),
            json!([64]),
            Value::Null,
        ];
        for key in ["r", "lora_alpha"] {
            for value in &hostile {
                let error = parse(&with(key, value.clone())).unwrap_err().to_string();
                assert!(error.contains(&format!("\"{key}\"")), "{key} {value}: {error}");
            }
        }
        for (key, value) in [
            ("lora_dropout", json!(1.0)),
            ("use_rslora", json!("yes")),
            ("target_modules", json!([])),
            ("target_modules", json!([1])),
            ("target_modules", Value::Null),
            ("rank_pattern", json!({"q_proj": 0})),
            ("alpha_pattern", json!([1])),
        ] {
            let error = parse(&with(key, value.clone())).unwrap_err().to_string();
            assert!(error.contains(&format!("\"{key}\"")), "{key} {value}: {error}");
        }
    }

    #[test]
    fn patterns_set_rank_and_alpha_of_some_modules() {
        let mut config = parse(&peft()).unwrap();
        config.rank_pattern = vec![("layers.0.self_attn.q_proj".to_owned(), 16)];
        config.alpha_pattern = vec![("q_proj".to_owned(), 8.0)];
        let of = |config: &LoraConfig, name: &str| config.rank_and_scale(Path::new("f"), name);
        let (q0, q1, k0) = (
            "model.language_model.layers.0.self_attn.q_proj",
            "model.language_model.layers.1.self_attn.q_proj",
            "model.language_model.layers.0.self_attn.k_proj",
        );
        assert_eq!(of(&config, q0).unwrap(), (16, 0.5));
        assert_eq!(of(&config, q1).unwrap(), (64, 0.125));
        assert_eq!(of(&config, k0).unwrap(), (64, 2.0));
        config.use_rslora = true;
        assert_eq!(of(&config, q0).unwrap(), (16, 2.0));
        // Two patterns match it: the first applies.
        config
            .alpha_pattern
            .insert(0, ("self_attn.q_proj".to_owned(), 10.0));
        assert_eq!(of(&config, q0).unwrap(), (16, 2.5));
        config.alpha_pattern.reverse();
        assert_eq!(of(&config, q0).unwrap(), (16, 2.0));
    }

    #[test]
    fn the_first_pattern_in_the_file_applies() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = peft().to_string();
        let at = config.find("\"rank_pattern\":{}").unwrap();
        let patterns = r#""rank_pattern":{"self_attn.q_proj":8,"a.q_proj":9,"q_proj":2,"b":3}"#;
        config.replace_range(at..at + "\"rank_pattern\":{}".len(), patterns);
        std::fs::write(dir.path().join(ADAPTER_CONFIG), config).unwrap();
        let config = LoraConfig::read(dir.path()).unwrap();
        let order: Vec<&str> = config.rank_pattern.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(order, ["self_attn.q_proj", "a.q_proj", "q_proj", "b"]);
        let name = "model.language_model.layers.1.self_attn.q_proj";
        assert_eq!(config.rank_and_scale(Path::new("f"), name).unwrap().0, 8);
    }
}
