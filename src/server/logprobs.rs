//! Log-probabilities of tokens in OpenAI's form.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::engine::{GeneratedToken, TokenLogprob};

/// Stands for a probability of zero, as in OpenAI's answers: JSON has no infinity.
const LEAST: f32 = -9999.0;

/// A generated token, with the most likely ones in its place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TokenInfo {
    /// The token.
    #[serde(flatten)]
    pub token: TokenChoice,
    /// The most likely tokens, the likeliest first.
    pub top_logprobs: Vec<TokenChoice>,
}

/// A token with its log-probability, before temperature and penalties.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TokenChoice {
    /// Its text; U+FFFD where it is a part of a character.
    pub token: String,
    /// Its text as UTF-8; those of all tokens together are the answer.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

impl From<&TokenLogprob> for TokenChoice {
    fn from(token: &TokenLogprob) -> Self {
        Self {
            token: String::from_utf8_lossy(&token.bytes).into_owned(),
            bytes: token.bytes.clone(),
            logprob: token.logprob.max(LEAST),
        }
    }
}

impl From<&GeneratedToken> for TokenInfo {
    fn from(generated: &GeneratedToken) -> Self {
        Self {
            token: (&generated.token).into(),
            top_logprobs: generated.top.iter().map(TokenChoice::from).collect(),
        }
    }
}

/// `tokens` in OpenAI's form.
pub(super) fn token_infos(tokens: &[GeneratedToken]) -> Vec<TokenInfo> {
    tokens.iter().map(TokenInfo::from).collect()
}
