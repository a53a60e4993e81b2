//! The OpenAPI description of a request; `request.rs` reads it.

use std::collections::BTreeMap;

use serde::Deserialize;
use utoipa::ToSchema;

/// Request of `/v1/chat/completions`. Other keys are refused by name. `user`, `metadata`, `store` (false), `service_tier`,
/// `safety_identifier` and `prompt_cache_key` are ignored.
#[derive(ToSchema, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is used")]
pub struct ChatCompletionRequest {
    /// A name from /v1/models, or `default`.
    #[schema(example = "default")]
    model: String,
    /// The conversation; the last message is the user's.
    #[schema(min_items = 1, max_items = 256)]
    messages: Vec<ChatMessage>,
    /// Maximum number of tokens of the answer, up to the server's limit; absent: what the context leaves, up to that limit.
    #[schema(minimum = 1)]
    max_completion_tokens: Option<u64>,
    /// Older name of `max_completion_tokens`.
    #[schema(minimum = 1)]
    max_tokens: Option<u64>,
    /// Sampling temperature; 0: greedy; default: the model's generation_config.json.
    #[schema(minimum = 0, maximum = 2)]
    temperature: Option<f64>,
    /// Samples from the most likely tokens with this cumulative probability.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    top_p: Option<f64>,
    /// Samples from this number of most likely tokens; 0 and -1: from all.
    #[schema(minimum = -1, maximum = 4294967295_u32)]
    top_k: Option<i64>,
    /// Divides positive and multiplies negative logits of earlier tokens; 1: none.
    #[schema(exclusive_minimum = 0, maximum = 100)]
    repetition_penalty: Option<f64>,
    /// Random seed for sampling.
    seed: Option<i64>,
    /// Strings that end the answer, excluded from it.
    stop: Option<Stop>,
    /// Whether to stream the answer.
    stream: Option<bool>,
    /// Only with `stream`.
    stream_options: Option<ChatStreamOptions>,
    /// Whether to return log-probabilities of the tokens.
    logprobs: Option<bool>,
    /// Number of most likely tokens beside each one; only with `logprobs`.
    #[schema(minimum = 0, maximum = 20)]
    top_logprobs: Option<u64>,
    /// Size of pictures for the model.
    mm_processor_kwargs: Option<PixelLimits>,
    /// 1.
    #[schema(minimum = 1, maximum = 1)]
    n: Option<u64>,
    /// 0.
    #[schema(minimum = 0, maximum = 0)]
    presence_penalty: Option<f64>,
    /// 0.
    #[schema(minimum = 0, maximum = 0)]
    frequency_penalty: Option<f64>,
    /// Empty: tools are not supported.
    #[schema(max_items = 0)]
    tools: Option<Vec<String>>,
    /// `none` or `auto`.
    tool_choice: Option<String>,
    /// Empty.
    logit_bias: Option<BTreeMap<String, f64>>,
    /// `{"type": "text"}`.
    response_format: Option<ResponseFormat>,
    /// Ignored.
    user: Option<String>,
    /// Ignored.
    metadata: Option<BTreeMap<String, String>>,
    /// false: nothing is stored.
    store: Option<bool>,
    /// Ignored.
    service_tier: Option<String>,
    /// Ignored.
    safety_identifier: Option<String>,
    /// Ignored.
    prompt_cache_key: Option<String>,
}

/// A message.
#[derive(ToSchema, Deserialize)]
#[allow(dead_code, reason = "only its schema is used")]
pub(super) struct ChatMessage {
    /// Its author.
    role: ChatRole,
    /// Its text, or parts. What looks like a special token stays text.
    content: MessageContent,
    /// Ignored.
    name: Option<String>,
}

/// Author of a message.
#[derive(ToSchema, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(dead_code, reason = "only its schema is used")]
enum ChatRole {
    System,
    User,
    Assistant,
}

/// A text, or parts.
#[derive(ToSchema, Deserialize)]
#[serde(untagged)]
#[allow(dead_code, reason = "only its schema is used")]
enum MessageContent {
    Text(String),
    Parts(Vec<ContentPart>),
}

/// Part of a message.
#[derive(ToSchema, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[allow(dead_code, reason = "only its schema is used")]
enum ContentPart {
    /// Text.
    Text {
        /// The text.
        text: String,
    },
    /// A picture; in messages of the user only.
    ImageUrl {
        /// The picture.
        image_url: ImageUrl,
    },
    /// A document, each page of which is a picture; in messages of the user only.
    File {
        /// The document.
        file: DocumentFile,
    },
}

/// A document.
#[derive(ToSchema, Deserialize)]
#[allow(dead_code, reason = "only its schema is used")]
struct DocumentFile {
    /// A data URI: PDF, PNG, JPEG, WebP, TIFF, BMP or GIF. Its pages count as pictures.
    #[schema(example = "data:application/pdf;base64,JVBERi0xLjcK")]
    file_data: String,
    /// Ignored: the content decides.
    filename: Option<String>,
}

/// A picture.
#[derive(ToSchema, Deserialize)]
#[allow(dead_code, reason = "only its schema is used")]
struct ImageUrl {
    /// A data URI: PNG, JPEG, WebP, TIFF, BMP or GIF. Web addresses are not fetched.
    #[schema(example = "data:image/png;base64,iVBORw0KGgo=")]
    url: String,
    /// `low`: at most 512 tokens; `auto` and `high`: the model's size.
    detail: Option<String>,
}

/// A stop string, or up to four, each of 1 to 256 characters.
#[derive(ToSchema, Deserialize)]
#[serde(untagged)]
#[allow(dead_code, reason = "only its schema is used")]
enum Stop {
    One(String),
    Several(Vec<String>),
}

/// Options of a stream.
#[derive(ToSchema, Deserialize)]
#[allow(dead_code, reason = "only its schema is used")]
struct ChatStreamOptions {
    /// Whether a last chunk tells the numbers of tokens.
    include_usage: Option<bool>,
}

/// Size of pictures for the model, width x height in pixels.
#[derive(ToSchema, Deserialize)]
#[allow(dead_code, reason = "only its schema is used")]
struct PixelLimits {
    /// Smaller pictures are enlarged to it.
    min_pixels: Option<u64>,
    /// Larger pictures are reduced to it; at most the server's maximum.
    max_pixels: Option<u64>,
}

/// Form of the answer.
#[derive(ToSchema, Deserialize)]
#[allow(dead_code, reason = "only its schema is used")]
struct ResponseFormat {
    /// `text`.
    r#type: String,
}
