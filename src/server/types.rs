//! JSON types of the API; their docs are the OpenAPI descriptions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::logprobs::TokenInfo;
use crate::documents::DicomFacts;
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
    /// From decoded page to the last token, seconds; of several pages the sum, as for the other figures but the next one.
    pub inference_latency_seconds: f64,
    /// From decoded page to the first token, seconds; of the first page that was read.
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

impl Figures {
    /// Of an answer that took no reading.
    pub(super) fn none() -> Self {
        Self {
            inference_latency_seconds: 0.0,
            time_to_first_token_seconds: 0.0,
            queue_seconds: 0.0,
            prompt_tokens: 0,
            completion_tokens: 0,
            finish_reason: FinishReason::Stop,
        }
    }

    /// Adds those of the page after these. The first reason other than `stop` counts.
    pub(super) fn add(&mut self, next: &Self) {
        self.inference_latency_seconds =
            seconds(self.inference_latency_seconds + next.inference_latency_seconds);
        self.queue_seconds = seconds(self.queue_seconds + next.queue_seconds);
        self.prompt_tokens += next.prompt_tokens;
        self.completion_tokens += next.completion_tokens;
        if self.finish_reason == FinishReason::Stop {
            self.finish_reason = next.finish_reason;
        }
    }
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

/// What became of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PageStatus {
    /// Read.
    Ok,
    /// Read until `max_new_tokens`.
    Truncated,
    /// Read until the model repeated itself.
    Repetition,
    /// Not read.
    Failed,
}

/// A page of a document.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct PageResult {
    /// Its number in the file, from 1.
    pub page: u32,
    /// What became of it.
    pub status: PageStatus,
    /// Its text; empty if it failed.
    pub text: String,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Width in pixels, upright: as stored, or of a PDF page at the server's resolution; null if the page or the model does not tell.
    pub width: Option<u32>,
    /// Height in pixels.
    pub height: Option<u32>,
    /// Width that the model saw, pixels.
    pub resized_width: Option<u32>,
    /// Height that the model saw, pixels.
    pub resized_height: Option<u32>,
    /// Number of image tokens.
    pub image_tokens: Option<usize>,
    /// Time for decoding, waiting and reading, seconds.
    pub seconds: f64,
    /// As of the whole answer; null if the page failed.
    #[schema(value_type = Option<String>, example = "stop")]
    pub finish_reason: Option<FinishReason>,
}

/// Response of `/extract`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Extraction {
    /// Extracted text; that of several pages in order, with an empty line between.
    pub extracted_content: String,
    /// Each page that was asked for, in that order.
    #[serde(default)]
    pub pages: Vec<PageResult>,
    /// Warnings about the file: `truncated` (part of the page is missing), `first of N pages` (of a GIF's frames), `a picture on the page cannot be
    /// decoded`, `text in a font that cannot be read`; where several pages are read, after `page N: `.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// `sr`: the text of a DICOM structured report, which no model read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// What a DICOM file says about itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dicom: Option<DicomFacts>,
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
    /// The answer; those about several pages in order, with an empty line between.
    pub analysis: String,
    /// The prompt that was used.
    pub prompt_used: String,
    /// Each page that was asked for, in that order.
    #[serde(default)]
    pub pages: Vec<PageResult>,
    /// Warnings about the file: `truncated` (part of the page is missing), `first of N pages` (of a GIF's frames), `a picture on the page cannot be
    /// decoded`, `text in a font that cannot be read`; where several pages are read, after `page N: `.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// `sr`: the text of a DICOM structured report, which no model read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// What a DICOM file says about itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dicom: Option<DicomFacts>,
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

/// Data of the event `page_start` of a stream.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PageStartEvent {
    /// The page's number in the file, from 1.
    pub page: u32,
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
    /// Document: PDF, DICOM, PNG, JPEG, WebP, TIFF, BMP or GIF, of at most `--max-pages` pages unless `pages` names some.
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
    /// Pages to read, such as `1-3,7,-1`; -1 is the last one. Default: all.
    pages: Option<String>,
    /// Password of an encrypted PDF.
    #[schema(format = Password)]
    password: Option<String>,
}

/// Form of `/analyze`.
#[derive(ToSchema)]
#[allow(
    dead_code,
    reason = "only its schema is used; upload.rs reads the form part by part"
)]
pub struct AnalyzeForm {
    /// Document: PDF, DICOM, PNG, JPEG, WebP, TIFF, BMP or GIF, of at most `--max-pages` pages unless `pages` names some.
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
    /// Pages to read, such as `1-3,7,-1`; -1 is the last one. Default: all.
    pages: Option<String>,
    /// Password of an encrypted PDF.
    #[schema(format = Password)]
    password: Option<String>,
}
