//! Text ↔ token ids.

use std::path::Path;

use super::{Grid, Message};
use crate::Result;

/// `tokenizer.json` and the chat template of a model folder.
pub struct TextProcessor {}

impl TextProcessor {
    /// Reads `tokenizer.json` and the chat template of a model folder, and checks that the tokens it needs are there.
    pub fn from_dir(_dir: &Path) -> Result<Self> {
        Ok(Self {})
    }

    /// Token ids of a conversation, ready for the model's answer: each image place expanded to its grid's number of image-pad tokens.
    pub fn encode_chat(&self, _messages: &[Message], _grids: &[Grid]) -> Result<Vec<i64>> {
        Ok(Vec::new())
    }

    /// Text of ids, special tokens left out.
    pub fn decode(&self, _ids: &[i64]) -> Result<String> {
        Ok(String::new())
    }

    /// A decoder that takes ids one by one and gives text as soon as it is whole UTF-8.
    pub fn stream(&self) -> TokenStream<'_> {
        TokenStream { _processor: self }
    }
}

/// Incremental decoding of one answer.
pub struct TokenStream<'a> {
    _processor: &'a TextProcessor,
}

impl TokenStream<'_> {
    /// Takes the next id; returns the text that became whole (may be empty).
    pub fn push(&mut self, _id: i64) -> Result<String> {
        Ok(String::new())
    }

    /// Text still held back at the end.
    pub fn finish(&mut self) -> Result<String> {
        Ok(String::new())
    }
}
