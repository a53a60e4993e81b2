//! Answers in OpenAI's form, whole and in chunks.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::engine::{Answer, GeneratedToken, ImageSize, ModelInfo};
use crate::generation::FinishReason;
use crate::records::seconds;
use crate::server::logprobs::{TokenInfo, token_infos};
use crate::server::stream::Answered;
use crate::version::version;

/// Response of `/v1/chat/completions`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ChatCompletion {
    /// "chatcmpl-" and the request's id.
    pub id: String,
    /// "chat.completion".
    pub object: String,
    /// Unix seconds.
    pub created: i64,
    /// The model's name, as in /v1/models.
    pub model: String,
    /// One.
    pub choices: Vec<ChatChoice>,
    /// Numbers of tokens.
    pub usage: Usage,
    /// The server's version.
    pub system_fingerprint: String,
    /// What OpenAI's form has no place for.
    pub medvision: ChatDetails,
}

/// The answer.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ChatChoice {
    /// 0.
    pub index: u32,
    /// The answer.
    pub message: AnswerMessage,
    /// Log-probabilities of the tokens; null unless asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// `stop` or `length`; the true reason is in `medvision`.
    pub finish_reason: String,
}

/// A message of the model.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AnswerMessage {
    /// "assistant".
    pub role: String,
    /// Its text.
    pub content: String,
    /// Always null.
    pub refusal: Option<String>,
}

/// Log-probabilities.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ChatLogprobs {
    /// Of the tokens of the text.
    pub content: Vec<TokenInfo>,
    /// Always null.
    pub refusal: Option<Vec<TokenInfo>>,
}

/// Numbers of tokens.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// Of messages and pictures.
    pub prompt_tokens: usize,
    /// Of the answer.
    pub completion_tokens: usize,
    /// Of both.
    pub total_tokens: usize,
    /// Only where some were kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens_details: Option<PromptTokensDetails>,
}

/// What became of the prompt's tokens.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
pub struct PromptTokensDetails {
    /// Those whose keys and values were kept from an earlier request about the same page.
    pub cached_tokens: usize,
}

/// What OpenAI's form has no place for.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ChatDetails {
    /// `stop`, `length`, `repetition`: stopped in a repetition loop, or `deadline`: stopped after the server's time for a generation.
    #[schema(value_type = String, example = "stop")]
    pub finish_reason: FinishReason,
    /// Size of each picture, as it came and as the model saw it.
    pub images: Vec<ImageSize>,
    /// Warnings about pictures: `messages[0].content[1].image_url.url: truncated`.
    pub warnings: Vec<String>,
    /// The model.
    pub model_info: ModelInfo,
    /// Time in the queue, seconds.
    pub queue_seconds: f64,
    /// From decoded pictures to the first token, seconds.
    pub time_to_first_token_seconds: f64,
    /// From decoded pictures to the last token, seconds.
    pub inference_latency_seconds: f64,
}

/// A chunk of a streamed answer.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ChatChunk {
    /// As of a whole answer.
    pub id: String,
    /// "chat.completion.chunk".
    pub object: String,
    /// As of a whole answer.
    pub created: i64,
    /// As of a whole answer.
    pub model: String,
    /// As of a whole answer.
    pub system_fingerprint: String,
    /// One; none in the chunk with `usage`.
    pub choices: Vec<ChunkChoice>,
    /// Only if asked for: null, and in the last chunk the numbers of tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    pub usage: Option<Option<Usage>>,
    /// As of a whole answer; in the chunk with `finish_reason`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub medvision: Option<ChatDetails>,
}

/// The part of the answer in a chunk.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ChunkChoice {
    /// 0.
    pub index: u32,
    /// New text.
    pub delta: ChunkDelta,
    /// Log-probabilities of the tokens that begin in it; null unless asked for.
    pub logprobs: Option<ChatLogprobs>,
    /// Null, and at the end `stop` or `length`.
    pub finish_reason: Option<String>,
}

/// New text.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct ChunkDelta {
    /// "assistant", in the first chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// The text; absent in the last chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

/// What is known of an answer before it is generated.
#[derive(Debug, Clone)]
pub(super) struct AnswerHead {
    pub id: String,
    pub created: i64,
    pub model: String,
    pub logprobs: bool,
}

impl AnswerHead {
    /// The whole answer.
    pub(super) fn completion(self, answered: Answered) -> ChatCompletion {
        let details = self.details(&answered);
        let answer = answered.answer;
        let (logprobs, usage) = (self.logprobs(&answer.reading.logprobs), Usage::of(&answer));
        let choice = ChatChoice {
            index: 0,
            logprobs,
            finish_reason: finish_reason(&answer),
            message: AnswerMessage {
                role: "assistant".to_owned(),
                content: answer.reading.text,
                refusal: None,
            },
        };
        ChatCompletion {
            id: self.id,
            object: "chat.completion".to_owned(),
            created: self.created,
            model: self.model,
            choices: vec![choice],
            usage,
            system_fingerprint: version().to_owned(),
            medvision: details,
        }
    }

    /// A chunk with `delta`.
    pub(super) fn chunk(&self, delta: ChunkDelta, tokens: &[GeneratedToken]) -> ChatChunk {
        let choice = ChunkChoice {
            index: 0,
            delta,
            logprobs: (!tokens.is_empty()).then(|| self.logprobs(tokens)).flatten(),
            finish_reason: None,
        };
        self.bare_chunk(vec![choice])
    }

    /// The last chunk of the text.
    pub(super) fn last_chunk(&self, answered: &Answered) -> ChatChunk {
        let mut chunk = self.chunk(ChunkDelta::default(), &[]);
        for choice in &mut chunk.choices {
            choice.finish_reason = Some(finish_reason(&answered.answer));
        }
        chunk.medvision = Some(self.details(answered));
        chunk
    }

    /// The chunk that tells the numbers of tokens.
    pub(super) fn usage_chunk(&self, answered: &Answered) -> ChatChunk {
        ChatChunk {
            usage: Some(Some(Usage::of(&answered.answer))),
            ..self.bare_chunk(Vec::new())
        }
    }

    fn bare_chunk(&self, choices: Vec<ChunkChoice>) -> ChatChunk {
        ChatChunk {
            id: self.id.clone(),
            object: "chat.completion.chunk".to_owned(),
            created: self.created,
            model: self.model.clone(),
            system_fingerprint: version().to_owned(),
            choices,
            usage: None,
            medvision: None,
        }
    }

    fn logprobs(&self, tokens: &[GeneratedToken]) -> Option<ChatLogprobs> {
        self.logprobs.then(|| ChatLogprobs {
            content: token_infos(tokens),
            refusal: None,
        })
    }

    fn details(&self, Answered { answer, warnings }: &Answered) -> ChatDetails {
        let reading = &answer.reading;
        ChatDetails {
            finish_reason: reading.finish_reason,
            images: reading.images.clone(),
            warnings: warnings.clone(),
            model_info: answer.model_info.clone(),
            queue_seconds: seconds(answer.queue_seconds),
            time_to_first_token_seconds: seconds(reading.time_to_first_token_seconds),
            inference_latency_seconds: seconds(reading.latency_seconds),
        }
    }
}

impl Usage {
    fn of(answer: &Answer) -> Self {
        let (prompt_tokens, completion_tokens) =
            (answer.reading.prompt_tokens, answer.reading.completion_tokens);
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: match answer.reading.cached_tokens {
                0 => None,
                cached_tokens => Some(PromptTokensDetails { cached_tokens }),
            },
        }
    }
}

/// The reason in OpenAI's words: typed clients fail on others.
fn finish_reason(answer: &Answer) -> String {
    let reason = match answer.reading.finish_reason {
        FinishReason::Stop => "stop",
        _ => "length",
    };
    reason.to_owned()
}
