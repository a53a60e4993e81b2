//! JSON types of the API; their docs are the OpenAPI descriptions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::logprobs::TokenInfo;
use crate::engine::{Answer, ImageSize, ModelInfo};
use crate::generation::FinishReason;
use crate::records::seconds;

/// Error response.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What is wrong, and what to do.
    pub detail: String,
    /// RFC 3339, UTC.
    pub timestamp: String,
}

/// Response of `/health/live` and `/health/ready`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// `live` or `ready`.
    pub status: String,
    /// RFC 3339, UTC.
    pub timestamp: String,
}

/// Response of `/health`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// False while the model is loading.
    pub model_loaded: bool,
    /// Whether a CUDA device can be used.
    pub gpu_available: bool,
    /// The device's name; null on a CPU.
    pub gpu_name: Option<String>,
    /// GPU memory in use, MiB; 0 on a CPU.
    pub current_vram_usage_mb: f64,
    /// GPU memory installed, MiB; 0 on a CPU.
    pub total_vram_mb: f64,
    /// Admitted requests: running and queued.
    pub requests_admitted: usize,
    /// Memory of this process, MiB.
    pub resident_memory_mb: f64,
    /// Memory of the machine or, if less, of the control group, MiB.
    pub total_memory_mb: f64,
    /// RFC 3339, UTC.
    pub timestamp: String,
}

/// GPU figures.
#[derive(Debug, Clone, Default)]
pub struct GpuFigures {
    /// Whether a CUDA device can be used.
    pub available: bool,
    /// The device's name.
    pub name: Option<String>,
    /// Memory in use, MiB.
    pub used_mb: f64,
    /// Memory installed, MiB.
    pub total_mb: f64,
}

/// Figures of one response.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Figures {
    /// From decoded page to the last token, seconds.
    pub inference_latency_seconds: f64,
    /// From decoded page to the first token, seconds.
    pub time_to_first_token_seconds: f64,
    /// Time in the queue, seconds.
    pub queue_seconds: f64,
    /// Number of prompt and image tokens.
    pub prompt_tokens: usize,
    /// Number of generated tokens.
    pub completion_tokens: usize,
    /// `stop`: the model finished; `length`: `max_new_tokens` was reached; `repetition`: stopped in a repetition loop.
    #[schema(value_type = String, example = "stop")]
    pub finish_reason: FinishReason,
}

impl From<&Answer> for Figures {
    fn from(answer: &Answer) -> Self {
        let reading = &answer.reading;
        Self {
            inference_latency_seconds: seconds(reading.latency_seconds),
            time_to_first_token_seconds: seconds(reading.time_to_first_token_seconds),
            queue_seconds: seconds(answer.queue_seconds),
            prompt_tokens: reading.prompt_tokens,
            completion_tokens: reading.completion_tokens,
            finish_reason: reading.finish_reason,
        }
    }
}

/// Response of `/extract`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Extraction {
    /// Extracted text.
    pub extracted_content: String,
    /// Warnings about the file: `truncated` (part of the page is missing), `first of N pages`.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Figures of this response.
    #[serde(flatten)]
    pub figures: Figures,
    /// The model.
    pub model_info: ModelInfo,
    /// RFC 3339, UTC.
    pub timestamp: String,
    /// Size of the page, as it came and as the model saw it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageSize>,
    /// Log-probabilities of the tokens, if asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<TokenInfo>>,
}

/// Response of `/analyze`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Analysis {
    /// The answer.
    pub analysis: String,
    /// The prompt that was used.
    pub prompt_used: String,
    /// Warnings about the file: `truncated` (part of the page is missing), `first of N pages`.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Figures of this response.
    #[serde(flatten)]
    pub figures: Figures,
    /// The model.
    pub model_info: ModelInfo,
    /// RFC 3339, UTC.
    pub timestamp: String,
    /// Size of the page, as it came and as the model saw it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageSize>,
    /// Log-probabilities of the tokens, if asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<TokenInfo>>,
}

/// Data of the event `queued` of a stream.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct QueuedEvent {
    /// Number of requests that run or wait before this one; 0: it is its turn.
    pub before: usize,
}

/// Data of the event `delta` of a stream.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DeltaEvent {
    /// New text.
    pub text: String,
    /// Log-probabilities of the tokens that begin in it, if asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<TokenInfo>>,
}

/// Data of the event `error` of a stream.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorEvent {
    /// What is wrong, and what to do.
    pub detail: String,
    /// RFC 3339, UTC.
    pub timestamp: String,
    /// Status that an answer without a stream would have.
    pub status: u16,
}

/// Response of `/benchmark`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Benchmarks {
    /// Records by file name without `.json`.
    #[schema(value_type = BTreeMap<String, Object>)]
    pub benchmarks: BTreeMap<String, serde_json::Value>,
    /// Names (without `.json`) of the files read.
    pub files_loaded: Vec<String>,
    /// Records in `benchmarks/` that could not be served, with the reason.
    pub files_skipped: Vec<SkippedFile>,
    /// RFC 3339, UTC.
    pub timestamp: String,
}

/// A record that `/benchmark` could not serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SkippedFile {
    /// Name (without `.json`).
    pub file: String,
    /// Reason.
    pub reason: String,
}

/// Form of `/extract`.
#[derive(ToSchema)]
#[allow(
    dead_code,
    reason = "only its schema is used; upload.rs reads the form part by part"
)]
pub struct ExtractForm {
    /// Page image: PNG, JPEG, WebP, TIFF, BMP or GIF.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
    /// Maximum number of new tokens, from 1 to the server's limit (default).
    max_new_tokens: Option<u64>,
    /// Sampling temperature, 0 (greedy) to 2; default: generation_config.json of the model.
    #[schema(minimum = 0, maximum = 2)]
    temperature: Option<f64>,
    /// Random seed for sampling.
    seed: Option<u64>,
    /// Whether to stream the answer.
    stream: Option<bool>,
    /// Whether to return log-probabilities of the tokens, each with its five most likely alternatives.
    logprobs: Option<bool>,
    /// Adapter to read with: `default`, `none` or a name.
    adapter: Option<String>,
    /// Minimum size that the page is scaled to, width x height in pixels.
    min_pixels: Option<u64>,
    /// Maximum size that the page is scaled to, width x height in pixels; at most the server's.
    max_pixels: Option<u64>,
}

/// Form of `/analyze`.
#[derive(ToSchema)]
#[allow(
    dead_code,
    reason = "only its schema is used; upload.rs reads the form part by part"
)]
pub struct AnalyzeForm {
    /// Page image: PNG, JPEG, WebP, TIFF, BMP or GIF.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
    /// Prompt, at most 8192 characters; prompt, page and answer must fit into the model's context. If blank or absent, the extraction
    /// prompt is used.
    prompt: Option<String>,
    /// Maximum number of new tokens, from 1 to the server's limit (default).
    max_new_tokens: Option<u64>,
    /// Sampling temperature, 0 (greedy) to 2; default: generation_config.json of the model.
    #[schema(minimum = 0, maximum = 2)]
    temperature: Option<f64>,
    /// Random seed for sampling.
    seed: Option<u64>,
    /// Whether to stream the answer.
    stream: Option<bool>,
    /// Whether to return log-probabilities of the tokens, each with its five most likely alternatives.
    logprobs: Option<bool>,
    /// Adapter to read with: `default`, `none` or a name.
    adapter: Option<String>,
    /// Minimum size that the page is scaled to, width x height in pixels.
    min_pixels: Option<u64>,
    /// Maximum size that the page is scaled to, width x height in pixels; at most the server's.
    max_pixels: Option<u64>,
}
