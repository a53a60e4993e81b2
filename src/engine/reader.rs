//! A model folder, loaded: everything from a page and a prompt to text.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::generation::{FinishReason, GenerationOverrides};
use crate::processing::{Content, Message, PromptError, RgbPage, Role};

/// Number format of activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// f32 on a CPU, bf16 on CUDA.
    Auto,
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half precision (CUDA only).
    F16,
}

/// How to load a model folder.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Where the model runs.
    pub device: tch::Device,
    /// Number format of activations.
    pub precision: Precision,
    /// Bounds of `width * height` after resizing; `None` keeps the folder's.
    pub min_pixels: Option<u64>,
    /// See `min_pixels`.
    pub max_pixels: Option<u64>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            device: tch::Device::Cpu,
            precision: Precision::Auto,
            min_pixels: None,
            max_pixels: None,
        }
    }
}

/// What is loaded: the truth that every answer carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// Folder name of the model.
    pub model_name: String,
    /// "FP32", "BF16", "FP16".
    pub precision: String,
    /// Adapter attached, if any.
    pub lora_adapter: Option<String>,
    /// "cpu" or "cuda:N".
    pub device: String,
}

/// One question to the model.
#[derive(Clone)]
pub struct ReadRequest {
    /// The conversation; its image places are filled by `images` in order.
    pub messages: Vec<Message>,
    /// The pictures.
    pub images: Vec<RgbPage>,
    /// What differs from the folder's generation_config.json.
    pub overrides: GenerationOverrides,
}

impl ReadRequest {
    /// One page and what to do with it.
    pub fn page(prompt: impl Into<String>, page: RgbPage) -> Self {
        Self {
            messages: vec![Message {
                role: Role::User,
                content: vec![Content::Image, Content::Text(prompt.into())],
            }],
            images: vec![page],
            overrides: GenerationOverrides::default(),
        }
    }
}

/// An answer and its figures.
#[derive(Debug, Clone)]
pub struct Reading {
    /// The answer.
    pub text: String,
    /// Token ids of the answer, without the end token.
    pub tokens: Vec<i64>,
    /// Tokens of prompt and images.
    pub prompt_tokens: usize,
    /// Tokens generated, the end token among them.
    pub completion_tokens: usize,
    /// How the answer ended.
    pub finish_reason: FinishReason,
    /// From image to the first token, seconds.
    pub time_to_first_token_seconds: f64,
    /// From image to the last token, seconds.
    pub latency_seconds: f64,
}

impl Reading {
    /// Tokens a second after the first; `None` for answers of one token.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let seconds = self.latency_seconds - self.time_to_first_token_seconds;
        (self.completion_tokens > 1 && seconds > 0.0).then(|| (self.completion_tokens - 1) as f64 / seconds)
    }
}

/// A model folder, loaded.
pub struct Reader {
    info: ModelInfo,
}

/// Most characters of a prompt; a longer one is refused before any work.
pub const MAX_PROMPT_CHARACTERS: usize = 8192;

impl Reader {
    /// Loads the model in `dir`; errors name the file, key or tensor at fault.
    pub fn load(dir: &Path, _options: &LoadOptions) -> Result<Self> {
        let _ = PathBuf::from(dir);
        Err(crate::Error::checkpoint(dir, "not yet"))
    }

    /// What is loaded.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// Answers one request; `on_text` receives the text as it grows and may end it with `Break` (checked between tokens).
    pub fn read(
        &mut self,
        _request: &ReadRequest,
        _on_text: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Reading> {
        Err(PromptError::ImageCount { places: 0, images: 0 }.into())
    }
}
