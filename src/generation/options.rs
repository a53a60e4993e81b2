//! Generation options and finish reasons.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::checkpoint::{JsonFile, ModelFolder};
use crate::fs::json as json_file;
use crate::{Error, Result};

/// Upper limit of `max_new_tokens`; the model's context is checked elsewhere.
const MAX_NEW_TOKENS: usize = 131_072;
/// Maximum number of stop strings, and of characters per string.
const MAX_STOPS: usize = 16;
const MAX_STOP_LENGTH: usize = 256;
const MAX_STOP_TOKENS: usize = 64;
/// Maximum pattern size of the repetition guard, tokens.
const MAX_PATTERN: usize = 4096;

/// Why a generation ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// An end token or a stop string.
    #[default]
    Stop,
    /// `max_new_tokens` reached.
    Length,
    /// The repetition guard stopped it.
    Repetition,
    /// Cancelled by the caller.
    Cancelled,
    /// The deadline for one generation has passed.
    Deadline,
}

impl FinishReason {
    /// Name in records and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Repetition => "repetition",
            Self::Cancelled => "cancelled",
            Self::Deadline => "deadline",
        }
    }
}

/// Repetition guard; names and rule as vLLM's `repetition_detection`, plus `min_span`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepetitionDetection {
    /// Maximum pattern size, tokens; 0 disables the guard.
    #[serde(default)]
    pub max_pattern_size: usize,
    /// Minimum pattern size, tokens; 0 means 1.
    #[serde(default)]
    pub min_pattern_size: usize,
    /// Minimum number of consecutive repetitions, 2 or more.
    #[serde(default)]
    pub min_count: usize,
    /// Minimum number of tokens that the repetitions cover together; shorter patterns need fewer (see
    /// [`RepetitionGuard`](super::RepetitionGuard)). 0, the default of a request, is vLLM's rule: the count only.
    #[serde(default)]
    pub min_span: usize,
}

impl Default for RepetitionDetection {
    /// Stops loops but not tables: no page repeats 640 tokens of equal rows, and a block of several lines may be repeated three
    /// times whatever its length. A 40-row table of six "Normal" a row has 480 tokens, 30 equal lines of
    /// a medication list 400 to 570.
    fn default() -> Self {
        Self {
            max_pattern_size: 512,
            min_pattern_size: 1,
            min_count: 4,
            min_span: 640,
        }
    }
}

/// Generation options.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationOptions {
    /// Maximum number of generated tokens.
    pub max_new_tokens: usize,
    /// Sampling temperature; below 1e-5 greedy.
    pub temperature: f64,
    /// Samples from the k most likely tokens.
    pub top_k: Option<usize>,
    /// Nucleus sampling: the most likely tokens with a cumulative probability of p.
    pub top_p: Option<f64>,
    /// Divides positive and multiplies negative logits of earlier tokens; 1 disables it.
    pub repetition_penalty: f64,
    /// Seed of the sampler; `None` is random.
    pub seed: Option<u64>,
    /// Strings that end the answer, excluded from it.
    pub stop: Vec<String>,
    /// Token ids that end the answer.
    pub stop_token_ids: Vec<i64>,
    /// Repetition guard, if enabled.
    pub repetition_detection: Option<RepetitionDetection>,
}

/// A request's overrides; `None` keeps the folder's value.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationOverrides {
    /// See [`GenerationOptions::max_new_tokens`].
    pub max_new_tokens: Option<usize>,
    /// See [`GenerationOptions::temperature`].
    pub temperature: Option<f64>,
    /// See [`GenerationOptions::top_k`]; 0 disables it.
    pub top_k: Option<usize>,
    /// See [`GenerationOptions::top_p`].
    pub top_p: Option<f64>,
    /// See [`GenerationOptions::repetition_penalty`].
    pub repetition_penalty: Option<f64>,
    /// See [`GenerationOptions::seed`].
    pub seed: Option<u64>,
    /// See [`GenerationOptions::stop`].
    pub stop: Option<Vec<String>>,
    /// Added to the folder's.
    pub stop_token_ids: Option<Vec<i64>>,
    /// `Some(None)` disables the guard.
    pub repetition_detection: Option<Option<RepetitionDetection>>,
}

impl GenerationOptions {
    /// Reads `generation_config.json` of a model folder. Missing keys have transformers' defaults, except `max_new_tokens`
    /// (512). End tokens come from `config.json` if `generation_config.json` has none.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        Self::from_folder(&ModelFolder::new(dir))
    }

    /// As [`Self::from_dir`], of an opened folder.
    pub fn from_folder(folder: &ModelFolder) -> Result<Self> {
        let file = File::of(folder.generation_config()?);
        let mut stop_token_ids = file.token_ids("eos_token_id")?;
        if stop_token_ids.is_empty() {
            let config = File::of(folder.config()?);
            stop_token_ids = config.token_ids("eos_token_id")?;
            if stop_token_ids.is_empty() {
                stop_token_ids = config.section_token_ids("text_config", "eos_token_id")?;
            }
            if stop_token_ids.is_empty() {
                return Err(config.error(
                    "eos_token_id",
                    "is missing, in generation_config.json too: answers would not end",
                ));
            }
        }
        let sampling = file
            .value("do_sample", "true or false", Value::as_bool)?
            .unwrap_or(false);
        let temperature = file
            .value("temperature", "a number", Value::as_f64)?
            .unwrap_or(1.0);
        let top_k = file.value("top_k", "a whole number, 1 or more (0 or -1: off)", |value| {
            value.as_i64().filter(|&k| k >= -1)
        })?;
        let options = Self {
            max_new_tokens: file.size("max_new_tokens")?.unwrap_or(512),
            temperature: if sampling { temperature } else { 0.0 },
            top_k: usize::try_from(top_k.unwrap_or(50)).ok().filter(|&k| k > 0),
            top_p: file.value("top_p", "a number", Value::as_f64)?,
            repetition_penalty: file
                .value("repetition_penalty", "a number", Value::as_f64)?
                .unwrap_or(1.0),
            seed: None,
            stop: Vec::new(),
            stop_token_ids,
            repetition_detection: Some(RepetitionDetection::default()),
        };
        match options.check() {
            Ok(()) => Ok(options),
            Err((key, reason)) => Err(file.error(key, &reason)),
        }
    }

    /// Warnings about keys of `generation_config.json` that would change answers in transformers but are not supported here.
    pub fn warnings(folder: &ModelFolder) -> Result<Vec<String>> {
        let neutral = [
            ("num_beams", 1.0),
            ("no_repeat_ngram_size", 0.0),
            ("min_p", 0.0),
            ("typical_p", 1.0),
            ("epsilon_cutoff", 0.0),
            ("eta_cutoff", 0.0),
            ("min_new_tokens", 0.0),
        ];
        let JsonFile { path, keys } = folder.generation_config()?;
        let effective = neutral.iter().filter(|(key, neutral)| {
            json_file::present(keys, key).is_some_and(|value| value.as_f64() != Some(*neutral))
        });
        Ok(effective
            .map(|(key, _)| format!("{}: \"{key}\" is not supported and has no effect", path.display()))
            .collect())
    }

    /// These options with a request's overrides. A temperature above 0 enables sampling, with the folder's `top_k` and `top_p`
    /// unless the request has its own.
    ///
    /// # Errors
    /// [`Error::Option`] names the option that is out of range.
    pub fn with(&self, overrides: &GenerationOverrides) -> Result<Self> {
        let mut options = self.clone();
        let o = overrides.clone();
        options.max_new_tokens = o.max_new_tokens.unwrap_or(options.max_new_tokens);
        options.temperature = o.temperature.unwrap_or(options.temperature);
        options.top_k = o.top_k.or(options.top_k).filter(|&k| k > 0);
        options.top_p = o.top_p.or(options.top_p);
        options.repetition_penalty = o.repetition_penalty.unwrap_or(options.repetition_penalty);
        options.seed = o.seed.or(options.seed);
        options.stop = o.stop.unwrap_or(options.stop);
        options
            .stop_token_ids
            .extend(o.stop_token_ids.unwrap_or_default());
        options.repetition_detection = o
            .repetition_detection
            .unwrap_or(options.repetition_detection)
            .filter(|detection| detection.max_pattern_size > 0);
        match options.check() {
            Ok(()) => Ok(options),
            Err((option, reason)) => Err(Error::option(option, reason)),
        }
    }

    /// Checks ranges; the error is an option and its range.
    fn check(&self) -> Result<(), (&'static str, String)> {
        let within = |ok: bool, option: &'static str, range: &str| {
            if ok {
                Ok(())
            } else {
                Err((option, format!("must be {range}")))
            }
        };
        let positive = |x: f64, limit: f64| x > 0.0 && x <= limit;
        within(
            (1..=MAX_NEW_TOKENS).contains(&self.max_new_tokens),
            "max_new_tokens",
            &format!("from 1 to {MAX_NEW_TOKENS}"),
        )?;
        within(
            (0.0..=100.0).contains(&self.temperature),
            "temperature",
            "from 0 (greedy) to 100",
        )?;
        within(
            self.top_p.is_none_or(|p| positive(p, 1.0)),
            "top_p",
            "above 0 and at most 1",
        )?;
        within(
            positive(self.repetition_penalty, 100.0),
            "repetition_penalty",
            "above 0 and at most 100",
        )?;
        within(
            self.stop.len() <= MAX_STOPS
                && self
                    .stop
                    .iter()
                    .all(|s| (1..=MAX_STOP_LENGTH).contains(&s.chars().count())),
            "stop",
            &format!("at most {MAX_STOPS} strings of 1 to {MAX_STOP_LENGTH} characters"),
        )?;
        within(
            self.stop_token_ids.len() <= MAX_STOP_TOKENS && self.stop_token_ids.iter().all(|&id| id >= 0),
            "stop_token_ids",
            &format!("at most {MAX_STOP_TOKENS} token ids, none below 0"),
        )?;
        if let Some(detection) = self.repetition_detection {
            within(
                detection.max_pattern_size <= MAX_PATTERN
                    && detection.min_pattern_size <= detection.max_pattern_size,
                "repetition_detection",
                &format!("such that min_pattern_size <= max_pattern_size <= {MAX_PATTERN}"),
            )?;
            within(
                detection.min_count >= 2,
                "repetition_detection",
                "such that min_count is 2 or more",
            )?;
        }
        Ok(())
    }
}

/// Typed access to the keys of a file.
struct File<'a> {
    path: &'a Path,
    keys: &'a Map<String, Value>,
}

impl<'a> File<'a> {
    fn of(file: &'a JsonFile) -> Self {
        Self {
            path: &file.path,
            keys: &file.keys,
        }
    }

    fn error(&self, key: &str, reason: &str) -> Error {
        Error::invalid_file(self.path, format!("\"{key}\" {reason}"))
    }

    /// Value of `key`; `None` if absent or null.
    fn value<T>(&self, key: &str, kind: &str, convert: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = json_file::present(self.keys, key) else {
            return Ok(None);
        };
        convert(value)
            .map(Some)
            .ok_or_else(|| self.error(key, &format!("must be {kind}")))
    }

    fn size(&self, key: &str) -> Result<Option<usize>> {
        self.value(key, "a whole number, 0 or more", |v| {
            v.as_u64().and_then(|n| n.try_into().ok())
        })
    }

    /// One id or a list of ids.
    fn token_ids(&self, key: &str) -> Result<Vec<i64>> {
        let ids = self.value(key, "a token id or a list of token ids", |value| match value {
            Value::Array(list) => list.iter().map(Value::as_i64).collect(),
            one => one.as_i64().map(|id| vec![id]),
        })?;
        Ok(ids.unwrap_or_default())
    }

    /// Token ids of `key` in the object `section`, if there is one.
    fn section_token_ids(&self, section: &str, key: &str) -> Result<Vec<i64>> {
        self.value(section, "a JSON object", |value| value.is_object().then_some(()))?;
        match self.keys.get(section) {
            Some(Value::Object(keys)) => Self { keys, ..*self }.token_ids(key),
            _ => Ok(Vec::new()),
        }
    }
}
