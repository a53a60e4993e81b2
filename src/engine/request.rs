//! What is asked of a model, and what it answers.

use std::fmt;
use std::ops::ControlFlow;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::generation::{FinishReason, GenerationOverrides, MaskSource};
use crate::processing::{Content, Message, PixelBounds, RgbPage, Role};

/// Model metadata, returned with every response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "pipeline", derive(utoipa::ToSchema))]
pub struct ModelInfo {
    /// Folder name of the model.
    pub model_name: String,
    /// Compute dtype of dense weights ("FP32", "BF16", "FP16"), or the format of quantized ones, such as "NF4 (bitsandbytes)".
    pub precision: String,
    /// Name of the adapter, if any: its folder's, or the one given with `--adapter NAME=DIR`; "unsaved adapter" for one that was
    /// not read from a folder.
    pub lora_adapter: Option<String>,
    /// "cpu" or "cuda:N".
    pub device: String,
}

/// The loaded model with one of its adapters, or without.
#[derive(Debug, Clone, PartialEq)]
pub struct Variant {
    /// Metadata.
    pub info: ModelInfo,
    /// Bounds of the sizes that pages are scaled to, so that decoders can scale at once and hold less. `None`: not scaled.
    pub bounds: Option<PixelBounds>,
}

/// A page of a request.
#[derive(Debug, Clone)]
pub struct Picture {
    /// The page.
    pub page: RgbPage,
    /// Bounds of the size that it is scaled to; `None`: the variant's. Made with [`PixelBounds::overridden`] of those.
    pub bounds: Option<PixelBounds>,
}

impl From<RgbPage> for Picture {
    fn from(page: RgbPage) -> Self {
        Self { page, bounds: None }
    }
}

/// A request to the model.
#[derive(Clone)]
pub struct ReadRequest {
    /// The conversation; its image placeholders stand for `images`, in order.
    pub messages: Vec<Message>,
    /// The pictures.
    pub images: Vec<Picture>,
    /// Overrides of the folder's `generation_config.json`.
    pub overrides: GenerationOverrides,
    /// Whether `max_new_tokens` is lowered to what the context leaves, instead of an error; one token must fit.
    pub fit_context: bool,
    /// Index of the [`Variant`] that answers; 0 is the default.
    pub variant: usize,
    /// Log-probabilities of the tokens, with this number of most likely tokens; `None`: none are computed.
    pub logprobs: Option<usize>,
    /// Restricts the tokens.
    pub mask: Option<MaskSource>,
}

impl ReadRequest {
    /// A conversation about `images`.
    pub fn new(messages: Vec<Message>, images: Vec<Picture>) -> Self {
        Self {
            messages,
            images,
            overrides: GenerationOverrides::default(),
            fit_context: false,
            variant: 0,
            logprobs: None,
            mask: None,
        }
    }

    /// One page with a prompt.
    pub fn page(prompt: impl Into<String>, page: RgbPage) -> Self {
        let message = Message {
            role: Role::User,
            content: vec![Content::Image, Content::Text(prompt.into())],
        };
        Self::new(vec![message], vec![page.into()])
    }
}

/// A token with its log-probability, from the raw logits: before penalties, temperature and masks.
#[derive(Clone, PartialEq)]
pub struct TokenLogprob {
    /// Token id.
    pub id: i64,
    /// Its text; can be a part of a character.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

impl fmt::Debug for TokenLogprob {
    /// Without id and text: they are the document.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenLogprob({})", self.logprob)
    }
}

/// A generated token, and the most likely ones in its place.
#[derive(Debug, Clone, PartialEq)]
pub struct GeneratedToken {
    /// The token.
    pub token: TokenLogprob,
    /// The most likely tokens, the likeliest first: as many as the request asked for.
    pub top: Vec<TokenLogprob>,
}

/// How full the key-value cache of a reading is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheUse {
    /// Tokens of prompt, images and answer so far.
    pub tokens: usize,
    /// Tokens that it has memory for: those of prompt and images, and the most that may be generated.
    pub capacity: usize,
}

/// Progress of a reading: reported for every token, and without text between the layers of the prefill.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// New text; empty while a character or a possible stop string is incomplete.
    pub text: &'a str,
    /// The tokens whose text begins in [`Self::text`]; empty unless [`ReadRequest::logprobs`] asks for them.
    pub tokens: &'a [GeneratedToken],
    /// Of the token that was generated; `None` where the step reports none: in the prefill, and for text held back until the end.
    pub generated: Option<CacheUse>,
}

impl Step<'_> {
    /// Nothing new.
    pub const NONE: Self = Self {
        text: "",
        tokens: &[],
        generated: None,
    };
}

/// Receives the progress of a reading, and cancels it with `Break`.
pub type OnStep<'a> = dyn FnMut(Step<'_>) -> ControlFlow<()> + 'a;

/// Size of a picture, as it came and as the model saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "pipeline", derive(utoipa::ToSchema))]
pub struct ImageSize {
    /// Width in pixels, after orientation.
    pub width: u32,
    /// Height in pixels, after orientation.
    pub height: u32,
    /// Width that the model saw, pixels.
    pub resized_width: u32,
    /// Height that the model saw, pixels.
    pub resized_height: u32,
    /// Number of image tokens.
    pub tokens: usize,
}

/// An answer with token counts and timings.
#[derive(Debug, Clone, Default)]
pub struct Reading {
    /// The answer.
    pub text: String,
    /// Token ids of the answer, without the end token.
    pub tokens: Vec<i64>,
    /// Log-probabilities of `tokens`, if asked for; without those that lie in a stop string.
    pub logprobs: Vec<GeneratedToken>,
    /// Sizes of the pictures.
    pub images: Vec<ImageSize>,
    /// Number of tokens of prompt and images.
    pub prompt_tokens: usize,
    /// Number of these whose keys and values were kept from an earlier request.
    pub cached_tokens: usize,
    /// Number of generated tokens, including the end token.
    pub completion_tokens: usize,
    /// Why the answer ended.
    pub finish_reason: FinishReason,
    /// From image to the first token, seconds.
    pub time_to_first_token_seconds: f64,
    /// From image to the last token, seconds.
    pub latency_seconds: f64,
}

impl Reading {
    /// One that was cancelled before its first token.
    pub(super) fn cancelled(images: Vec<ImageSize>, prompt_tokens: usize, start: Instant) -> Self {
        let seconds = start.elapsed().as_secs_f64();
        Self {
            text: String::new(),
            tokens: Vec::new(),
            logprobs: Vec::new(),
            images,
            prompt_tokens,
            cached_tokens: 0,
            completion_tokens: 0,
            finish_reason: FinishReason::Cancelled,
            time_to_first_token_seconds: seconds,
            latency_seconds: seconds,
        }
    }

    /// Tokens per second after the first token; `None` for answers of one token.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let seconds = self.latency_seconds - self.time_to_first_token_seconds;
        (self.completion_tokens > 1 && seconds > 0.0).then(|| (self.completion_tokens - 1) as f64 / seconds)
    }
}
