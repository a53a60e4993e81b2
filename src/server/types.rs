//! The JSON that goes over the wire.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::engine::{Answer, ModelInfo};
use crate::generation::FinishReason;
use crate::records::seconds;

/// An error.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What was wrong and what to do.
    pub detail: String,
    /// RFC 3339, UTC.
    pub timestamp: String,
}

/// Whether the server can read pages now, and on what.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// False while the model loads.
    pub model_loaded: bool,
    /// Whether a CUDA device can be used.
    pub gpu_available: bool,
    /// The device's name; null on a CPU.
    pub gpu_name: Option<String>,
    /// GPU memory in use, MiB; 0 on a CPU.
    pub current_vram_usage_mb: f64,
    /// GPU memory installed, MiB; 0 on a CPU.
    pub total_vram_mb: f64,
    /// Requests that wait or run.
    pub requests_admitted: usize,
    /// RFC 3339, UTC.
    pub timestamp: String,
}

/// What the accelerator reports.
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

/// What is loaded.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[schema(as = ModelInfo)]
pub struct LoadedModel {
    /// Folder name of the model.
    pub model_name: String,
    /// "FP32", "BF16", "FP16".
    pub precision: String,
    /// Adapter attached, if any.
    pub lora_adapter: Option<String>,
    /// "cpu" or "cuda:N".
    pub device: String,
}

impl From<ModelInfo> for LoadedModel {
    fn from(info: ModelInfo) -> Self {
        Self {
            model_name: info.model_name,
            precision: info.precision,
            lora_adapter: info.lora_adapter,
            device: info.device,
        }
    }
}

/// Figures of one reading.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Figures {
    /// From decoded page to the last token, seconds.
    pub inference_latency_seconds: f64,
    /// From decoded page to the first token, seconds.
    pub time_to_first_token_seconds: f64,
    /// Time spent waiting for earlier requests, seconds.
    pub queue_seconds: f64,
    /// Tokens of prompt and page.
    pub prompt_tokens: usize,
    /// Tokens of the answer.
    pub completion_tokens: usize,
    /// `stop`: the model ended the answer; `length`: `max_new_tokens` was reached; `repetition`: the guard against
    /// endless repetition stopped it.
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

/// Answer of `/extract`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Extraction {
    /// The text.
    pub extracted_content: String,
    /// What is not as one would expect of the file: `truncated` (a part of the page is missing), `first of N pages`.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Figures of the reading.
    #[serde(flatten)]
    pub figures: Figures,
    /// What read it.
    pub model_info: LoadedModel,
    /// RFC 3339, UTC.
    pub timestamp: String,
}

/// Answer of `/analyze`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Analysis {
    /// The answer.
    pub analysis: String,
    /// The prompt that was answered.
    pub prompt_used: String,
    /// What is not as one would expect of the file: `truncated` (a part of the page is missing), `first of N pages`.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Figures of the reading.
    #[serde(flatten)]
    pub figures: Figures,
    /// What read it.
    pub model_info: LoadedModel,
    /// RFC 3339, UTC.
    pub timestamp: String,
}

/// Answer of `/benchmark`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Benchmarks {
    /// Records by their file's name without `.json`.
    #[schema(value_type = BTreeMap<String, Object>)]
    pub benchmarks: BTreeMap<String, serde_json::Value>,
    /// Names (without `.json`) of the files read.
    pub files_loaded: Vec<String>,
    /// Files of `benchmarks/` that were left out, and why.
    pub files_skipped: Vec<SkippedFile>,
    /// RFC 3339, UTC.
    pub timestamp: String,
}

/// A file that `/benchmark` left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SkippedFile {
    /// Name (without `.json`).
    pub file: String,
    /// Why.
    pub reason: String,
}

/// Form of `/extract`; for the OpenAPI document.
#[derive(ToSchema)]
#[allow(
    dead_code,
    reason = "only its schema is used; upload.rs reads the form part by part"
)]
pub struct ExtractForm {
    /// The page: PNG, JPEG, WebP, TIFF, BMP or GIF.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
    /// Tokens of the answer at most (from 1 to the server's limit, which is the default).
    max_new_tokens: Option<u64>,
    /// 0 (greedy) to 2; default: the model folder's generation_config.json.
    #[schema(minimum = 0, maximum = 2)]
    temperature: Option<f64>,
    /// Seed of the sampler.
    seed: Option<u64>,
}

/// Form of `/analyze`; for the OpenAPI document.
#[derive(ToSchema)]
#[allow(
    dead_code,
    reason = "only its schema is used; upload.rs reads the form part by part"
)]
pub struct AnalyzeForm {
    /// The page: PNG, JPEG, WebP, TIFF, BMP or GIF.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
    /// What to do with the page; at most 8192 characters, and with page and answer no more tokens than the model's
    /// context holds. Blank counts as absent: then the extraction prompt is used.
    prompt: Option<String>,
    /// Tokens of the answer at most (from 1 to the server's limit, which is the default).
    max_new_tokens: Option<u64>,
    /// 0 (greedy) to 2; default: the model folder's generation_config.json.
    #[schema(minimum = 0, maximum = 2)]
    temperature: Option<f64>,
    /// Seed of the sampler.
    seed: Option<u64>,
}
