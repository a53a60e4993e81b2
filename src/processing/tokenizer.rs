//! Text ↔ token ids.

use std::path::{Path, PathBuf};

use aho_corasick::{AhoCorasick, MatchKind};
use serde_json::{Map, Value};
use tokenizers::normalizers::NFC;
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, Tokenizer};

use super::{ChatTemplate, Content, Grid, Message, Role, Span, chat::token_text, vocabulary::Vocabulary};
use crate::checkpoint::config_defaults::ConfigSection;
use crate::checkpoint::{JsonFile, ModelFolder};
use crate::error::PromptError;
use crate::fs::{TOKENIZER_BYTES, json as json_file, read_bounded};
use crate::{Error, Result};

/// `tokenizer.json` and the chat template of a model folder.
///
/// Reference: [`Qwen2Tokenizer`](https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/models/qwen2/tokenization_qwen2.py#L36-L98).
pub struct TextProcessor {
    /// The tokenizer without added tokens: any text stays plain text.
    plain: Tokenizer,
    path: PathBuf,
    template: ChatTemplate,
    /// Finds added tokens in the output of the template; pattern `i` has id `added_ids[i]`.
    added: AhoCorasick,
    added_ids: Vec<i64>,
    vocabulary: Vocabulary,
    image_pad: i64,
    end_of_turn: i64,
    merge: usize,
}

impl TextProcessor {
    /// Reads `tokenizer.json` and the chat template of a model folder.
    ///
    /// # Errors
    /// [`Error::NotFound`] for a missing file; [`Error::InvalidFile`], also if a needed token is missing or has another id than
    /// in `config.json`; [`Error::Io`].
    pub fn from_dir(dir: &Path) -> Result<Self> {
        Self::from_folder(&ModelFolder::new(dir))
    }

    /// As [`Self::from_dir`], from an opened folder.
    pub fn from_folder(folder: &ModelFolder) -> Result<Self> {
        let path = folder.dir().join("tokenizer.json");
        let text = read_bounded(&path, TOKENIZER_BYTES).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                Error::not_found(&path, "no such file: a model folder needs its tokenizer.json")
            }
            _ => Error::io(&path, error),
        })?;
        let tokenizer = Tokenizer::from_bytes(text)
            .map_err(|error| Error::invalid_file(&path, format!("not a usable tokenizer: {error}")))?;
        let config = folder.config()?;
        let (image_pad, end_of_turn) =
            check_tokens(&tokenizer, &path, &config.keys, &folder.tokenizer_config()?.keys)?;
        let template = ChatTemplate::from_folder(folder)?;
        let added = added_tokens(&tokenizer, &path)?;
        let vocabulary = Vocabulary::new(&tokenizer, &added, &path)?;
        let added_ids = added.iter().map(|(id, _)| i64::from(*id)).collect();
        let added = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(added.iter().map(|(_, token)| &token.content))
            .map_err(|error| Error::invalid_file(&path, format!("added_tokens: {error}")))?;
        let plain = without_added_tokens(tokenizer, &path)?;
        let merge = merge_size(config)?;
        Ok(Self {
            plain,
            path,
            template,
            added,
            added_ids,
            vocabulary,
            image_pad,
            end_of_turn,
            merge,
        })
    }

    /// Renders the chat template with a page and a text, so that a template that always fails is an error at load time.
    pub fn check_template(&self) -> Result<()> {
        let message = Message {
            role: Role::User,
            content: vec![Content::Image, Content::Text("Read.".to_owned())],
        };
        let side = self.merge;
        let grid = Grid {
            t: 1,
            h: side,
            w: side,
        };
        self.encode_chat(&[message], &[grid]).map(drop)
    }

    /// Token that ends every turn, also the answer.
    pub fn end_of_turn(&self) -> i64 {
        self.end_of_turn
    }

    /// Token ids of a conversation up to the model's answer. Each image placeholder is expanded to the number of image-pad tokens
    /// of its grid.
    ///
    /// # Errors
    /// [`PromptError::ImageCount`] if `grids` and the placeholders differ in number; [`Error::InvalidFile`] for a template or
    /// tokenizer that cannot encode the messages.
    pub fn encode_chat(&self, messages: &[Message], grids: &[Grid]) -> Result<Vec<i64>> {
        let placeholders = messages
            .iter()
            .flat_map(|m| &m.content)
            .filter(|c| **c == Content::Image)
            .count();
        if placeholders != grids.len() {
            let images = grids.len();
            return Err(PromptError::ImageCount { placeholders, images }.into());
        }
        let mut ids = Vec::new();
        // The text between two special tokens is encoded as a whole: tokens may span its parts.
        let mut text = String::new();
        let mut pads = 0;
        for span in self.template.render(messages)? {
            let written = match span {
                Span::Message(message) => {
                    text.push_str(message);
                    continue;
                }
                Span::Template(written) => written,
            };
            let mut end = 0;
            for found in self.added.find_iter(&written) {
                text.push_str(&written[end..found.start()]);
                end = found.end();
                self.encode_plain_into(&text, &mut ids)?;
                text.clear();
                let id = self.added_ids[found.pattern().as_usize()];
                let repeat = if id == self.image_pad {
                    pads += 1;
                    grids.get(pads - 1).map_or(0, |grid| grid.tokens(self.merge))
                } else {
                    1
                };
                ids.extend(std::iter::repeat_n(id, repeat));
            }
            text.push_str(&written[end..]);
        }
        self.encode_plain_into(&text, &mut ids)?;
        if pads != placeholders {
            return Err(self.template.error(&format!(
                "the chat template writes {pads} image placeholders for {placeholders} images"
            )));
        }
        Ok(ids)
    }

    /// Token ids of a text; none of them is a special or added token, whatever the text spells.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<i64>> {
        let mut ids = Vec::new();
        self.encode_plain_into(text, &mut ids)?;
        Ok(ids)
    }

    fn encode_plain_into(&self, text: &str, ids: &mut Vec<i64>) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        // The library's message is dropped: it could quote the text.
        let encoding = self
            .plain
            .encode_fast(text, false)
            .map_err(|_| Error::invalid_file(&self.path, "the tokenizer cannot encode a text"))?;
        let first = ids.len();
        ids.extend(encoding.get_ids().iter().map(|&id| i64::from(id)));
        if ids[first..].iter().any(|id| self.added_ids.contains(id)) {
            return Err(Error::invalid_file(
                &self.path,
                "the tokenizer encodes plain text as an added token; its vocabulary must not contain added tokens",
            ));
        }
        Ok(())
    }

    /// Bytes of a token's text, none for a special token. They can be a part of a character.
    pub fn token_bytes(&self, id: i64) -> &[u8] {
        self.vocabulary.bytes(id)
    }

    /// The least number of tokens that a text of `bytes` bytes can have. NFC makes a text at most three times shorter.
    pub fn least_tokens(&self, bytes: usize) -> usize {
        bytes / (3 * self.vocabulary.longest())
    }

    /// Text of ids without special tokens; invalid UTF-8 becomes U+FFFD.
    pub fn decode(&self, ids: &[i64]) -> Result<String> {
        let mut stream = self.stream();
        let mut text = String::new();
        for &id in ids {
            text.push_str(&stream.push(id)?);
        }
        text.push_str(&stream.finish()?);
        Ok(text)
    }

    /// A decoder that takes ids one by one and returns text once it is valid UTF-8.
    pub fn stream(&self) -> TokenStream<'_> {
        TokenStream {
            vocabulary: &self.vocabulary,
            pending: Vec::new(),
        }
    }
}

/// Incremental decoding of one answer: the joined texts equal [`TextProcessor::decode`] of all ids.
pub struct TokenStream<'a> {
    vocabulary: &'a Vocabulary,
    /// An incomplete character, at most three bytes.
    pending: Vec<u8>,
}

impl TokenStream<'_> {
    /// Bytes of the text of a token; empty for a special token. They can be a part of a character.
    pub fn token_bytes(&self, id: i64) -> &[u8] {
        self.vocabulary.bytes(id)
    }

    /// Length in bytes of the longest token.
    pub fn longest_token(&self) -> usize {
        self.vocabulary.longest()
    }

    /// Decodes the next id; returns the text that is complete with it, possibly empty.
    pub fn push(&mut self, id: i64) -> Result<String> {
        self.pending.extend_from_slice(self.vocabulary.bytes(id));
        Ok(self.take(false))
    }

    /// Returns the pending text at the end.
    pub fn finish(&mut self) -> Result<String> {
        Ok(self.take(true))
    }

    fn take(&mut self, last: bool) -> String {
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        while !rest.is_empty() {
            let (valid, broken) = match std::str::from_utf8(rest) {
                Ok(valid) => (valid, None),
                Err(error) => {
                    let valid = std::str::from_utf8(&rest[..error.valid_up_to()]).unwrap_or_default();
                    (valid, Some(error.error_len()))
                }
            };
            text.push_str(valid);
            rest = &rest[valid.len()..];
            match broken {
                None => {}
                Some(Some(length)) => {
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[length..];
                }
                Some(None) if last => {
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &[];
                }
                Some(None) => break,
            }
        }
        self.pending = rest.to_vec();
        text
    }
}

/// Checks that the tokens of conversations and images exist with the ids of `config.json`; returns the ids of the image pad and
/// of the end of a turn.
fn check_tokens(
    tokenizer: &Tokenizer,
    path: &Path,
    config: &Map<String, Value>,
    tokenizer_config: &Map<String, Value>,
) -> Result<(i64, i64)> {
    let added = tokenizer.get_added_tokens_decoder();
    let find = |token: &str| {
        let found = added.iter().find(|(_, candidate)| candidate.content == token);
        found.map(|(&id, _)| i64::from(id)).ok_or_else(|| {
            Error::invalid_file(
                path,
                format!("the required token {token} is not among its added_tokens: use the tokenizer.json of a Qwen2.5-VL model"),
            )
        })
    };
    let end_of_turn = token_text(tokenizer_config, "eos_token");
    let end_of_turn = find(end_of_turn.as_deref().unwrap_or("<|im_end|>"))?;
    find("<|im_start|>")?;
    for (token, key) in [
        ("<|vision_start|>", "vision_start_token_id"),
        ("<|vision_end|>", "vision_end_token_id"),
        ("<|image_pad|>", "image_token_id"),
    ] {
        let id = find(token)?;
        // The model uses the image pad's id only: the others are checked if the file has them, and have no defaults.
        let expected = match key {
            "image_token_id" => ConfigSection::Root.get(config, key),
            _ => json_file::present(config, key),
        };
        if expected.is_some_and(|value| value.as_i64() != Some(id)) {
            return Err(Error::invalid_file(
                path,
                format!(
                    "the token {token} has id {id}, but \"{key}\" in config.json is another: the files do not belong together"
                ),
            ));
        }
    }
    Ok((find("<|image_pad|>")?, end_of_turn))
}

/// Added tokens by id.
fn added_tokens(tokenizer: &Tokenizer, path: &Path) -> Result<Vec<(u32, AddedToken)>> {
    let mut added: Vec<_> = tokenizer.get_added_tokens_decoder().into_iter().collect();
    added.sort_by_key(|(id, _)| *id);
    match added
        .iter()
        .find(|(_, t)| t.content.is_empty() || t.single_word || t.lstrip || t.rstrip)
    {
        Some((id, _)) => Err(Error::invalid_file(
            path,
            format!(
                "added token {id} is empty or sets single_word, lstrip or rstrip, which no Qwen2.5-VL tokenizer does"
            ),
        )),
        None => Ok(added),
    }
}

/// The same tokenizer without added tokens, for plain text.
fn without_added_tokens(tokenizer: Tokenizer, path: &Path) -> Result<Tokenizer> {
    let mut plain = Tokenizer::new(tokenizer.get_model().clone());
    plain.with_pre_tokenizer(tokenizer.get_pre_tokenizer().cloned());
    if let Some(normalizer) = tokenizer.get_normalizer()
        && !is_nfc(normalizer)
    {
        return Err(Error::invalid_file(
            path,
            "the normalizer must be of type \"NFC\", or absent, as in every Qwen2.5-VL tokenizer: others can expand a text without bound",
        ));
    }
    // transformers normalizes to NFC with this model, whatever tokenizer.json says.
    let normalizer: NormalizerWrapper = NFC.into();
    plain
        .with_normalizer(Some(normalizer))
        .map_err(|error| Error::invalid_file(path, format!("normalizer: {error}")))?;
    match tokenizer.get_decoder() {
        Some(DecoderWrapper::ByteLevel(_)) => Ok(plain),
        _ => Err(Error::invalid_file(
            path,
            "the decoder must be of type \"ByteLevel\", as in every Qwen2.5-VL tokenizer",
        )),
    }
}

fn is_nfc(normalizer: &NormalizerWrapper) -> bool {
    match normalizer {
        NormalizerWrapper::NFC(_) => true,
        NormalizerWrapper::Sequence(sequence) => sequence.as_ref().iter().all(is_nfc),
        _ => false,
    }
}

/// `vision_config.spatial_merge_size`: patches per side of an image token.
fn merge_size(config: &JsonFile) -> Result<usize> {
    let nothing = Map::new();
    let vision = config.keys.get("vision_config").and_then(Value::as_object);
    let value = ConfigSection::Vision.get(vision.unwrap_or(&nothing), "spatial_merge_size");
    match value.and_then(Value::as_u64) {
        Some(merge @ 1..=16) => Ok(merge as usize),
        _ => Err(Error::invalid_file(
            &config.path,
            "\"vision_config.spatial_merge_size\" must be a whole number from 1 to 16",
        )),
    }
}
