//! Messages and the chat template of a model folder.
//!
//! A template never sees message texts: it is rendered with a marker for each text, and the markers are replaced afterwards.
//! Every span of the result is therefore known to come from the template or from a message, and only spans of the template can
//! hold special tokens.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Map;
use sha2::{Digest, Sha256};

use super::template::{Failure, MAX_OUTPUT, Template, Value};
use crate::checkpoint::{JsonFile, ModelFolder};
use crate::fs::{CONFIG_BYTES, json as json_file, read_text};
use crate::{Error, Result};

/// Author of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Instructions for the whole conversation.
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// Part of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Plain text, never parsed for special tokens.
    Text(String),
    /// Placeholder of the next image.
    Image,
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Author of a message.
    pub role: Role,
    /// Its parts, in order.
    pub content: Vec<Content>,
}

/// Part of a rendered conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Span<'a> {
    /// Written by the template: may hold special tokens.
    Template(String),
    /// Text of a message: plain text, whatever it spells.
    Message(&'a str),
}

impl AsRef<str> for Span<'_> {
    fn as_ref(&self) -> &str {
        match self {
            Self::Template(text) => text,
            Self::Message(text) => text,
        }
    }
}

/// SHA-256 of the template that Qwen2-VL and Qwen2.5-VL were published with, in all sizes, without trailing white space.
const QWEN: &str = "a0bc6f6fc7a29a80017a433e8f03a1cc1236e838a944a2d034295a60c4f2fddb";
/// Start of a marker. Any filter that would change a text (upper, escape, tojson, replace ...) also breaks its letters of both
/// cases, quotes, markup or line end, which is then an error instead of a silent difference.
const MARK: &str = "\u{F0000}aAa \"'<&\\\n";
const MARK_END: char = '\u{F0001}';

/// A chat template, ready to render.
pub struct ChatTemplate {
    renderer: Renderer,
    /// Special tokens of tokenizer_config.json, by their names in templates.
    tokens: Vec<(&'static str, String)>,
    path: PathBuf,
}

enum Renderer {
    /// The published one, rendered by [`qwen`].
    Qwen,
    /// Any other.
    Evaluated(Template),
}

impl ChatTemplate {
    /// Reads the template of a model folder: `chat_template.jinja`, else `chat_template.json`, else `chat_template` in
    /// `tokenizer_config.json`.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        Self::from_folder(&ModelFolder::new(dir))
    }

    /// As [`Self::from_dir`], from an opened folder.
    pub fn from_folder(folder: &ModelFolder) -> Result<Self> {
        let tokenizer_config = folder.tokenizer_config()?;
        let (path, source) = template_source(folder.dir(), tokenizer_config)?;
        let hash = format!("{:x}", Sha256::digest(source.trim_end()));
        let renderer = match hash == QWEN {
            true => Renderer::Qwen,
            false => Renderer::Evaluated(Template::parse(&source).map_err(|failure| failed(&path, failure))?),
        };
        let tokens = [
            "bos_token",
            "eos_token",
            "unk_token",
            "sep_token",
            "pad_token",
            "cls_token",
            "mask_token",
        ];
        let tokens = tokens.into_iter();
        let tokens = tokens.filter_map(|key| Some((key, token_text(&tokenizer_config.keys, key)?)));
        Ok(Self {
            renderer,
            tokens: tokens.collect(),
            path,
        })
    }

    /// The file the template was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is the published one of Qwen2-VL and Qwen2.5-VL, which needs no evaluation.
    pub fn is_published(&self) -> bool {
        matches!(self.renderer, Renderer::Qwen)
    }

    /// Renders a conversation up to the start of the model's answer; the joined spans are the prompt.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] if the template fails, or changes or drops a text.
    pub fn render<'a>(&self, messages: &'a [Message]) -> Result<Vec<Span<'a>>> {
        match &self.renderer {
            Renderer::Qwen => Ok(qwen(messages)),
            Renderer::Evaluated(template) => {
                let mut texts = Vec::new();
                let rendered = self
                    .evaluated(template, messages, &mut texts)
                    .map_err(|failure| failed(&self.path, failure))?;
                self.split(&rendered, &texts)
            }
        }
    }

    fn evaluated<'a>(
        &self,
        template: &Template,
        messages: &'a [Message],
        texts: &mut Vec<&'a str>,
    ) -> Result<String, Failure> {
        let messages = messages.iter().map(|message| marked(message, texts));
        let messages = Value::list(messages.collect::<Result<_, _>>()?)?;
        let mut variables = BTreeMap::from([
            ("messages", messages),
            ("add_generation_prompt", Value::Bool(true)),
            ("tools", Value::None),
            ("documents", Value::None),
        ]);
        for (name, token) in &self.tokens {
            variables.insert(name, token.as_str().into());
        }
        template.render(&variables)
    }

    /// Replaces each marker by its text.
    fn split<'a>(&self, rendered: &str, texts: &[&'a str]) -> Result<Vec<Span<'a>>> {
        let broken =
            || self.error("the chat template changes or drops a message's text; texts must pass unchanged");
        let mut spans = Vec::new();
        let mut seen = vec![false; texts.len()];
        let mut pieces = rendered.split(MARK);
        spans.push(Span::Template(pieces.next().unwrap_or_default().to_owned()));
        for piece in pieces {
            let (index, rest) = piece.split_once(MARK_END).ok_or_else(broken)?;
            let index: usize = index.parse().map_err(|_| broken())?;
            spans.push(Span::Message(texts.get(index).ok_or_else(broken)?));
            spans.push(Span::Template(rest.to_owned()));
            seen[index] = true;
        }
        spans.retain(|span| !span.as_ref().is_empty());
        if seen.contains(&false) {
            Err(broken())
        } else {
            Ok(spans)
        }
    }

    pub(super) fn error(&self, reason: &str) -> Error {
        Error::invalid_file(&self.path, reason)
    }
}

fn failed(path: &Path, failure: Failure) -> Error {
    let reason = match failure {
        Failure::Syntax(reason) => format!("the chat template does not compile: {reason}"),
        Failure::Fails(reason) => format!("the chat template fails: {reason}"),
        Failure::OutOfBudget => "the chat template does not end within its allowed amount of work".to_owned(),
        Failure::TooLong => format!("the chat template writes more than {MAX_OUTPUT} bytes"),
    };
    Error::invalid_file(path, reason)
}

/// Renders a conversation as the published template of Qwen2-VL and Qwen2.5-VL does.
fn qwen(messages: &[Message]) -> Vec<Span<'_>> {
    let mut spans = Vec::new();
    let mut written = String::new();
    if messages.first().is_some_and(|first| first.role != Role::System) {
        written.push_str("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n");
    }
    for message in messages {
        written.push_str("<|im_start|>");
        written.push_str(message.role.name());
        written.push('\n');
        for part in &message.content {
            match part {
                Content::Image => written.push_str("<|vision_start|><|image_pad|><|vision_end|>"),
                Content::Text(text) if text.is_empty() => {}
                Content::Text(text) => {
                    if !written.is_empty() {
                        spans.push(Span::Template(std::mem::take(&mut written)));
                    }
                    spans.push(Span::Message(text));
                }
            }
        }
        written.push_str("<|im_end|>\n");
    }
    written.push_str("<|im_start|>assistant\n");
    spans.push(Span::Template(written));
    spans
}

/// A message as a template's value, with markers for its texts. White space around a text stays outside its marker, so that a
/// template that trims does the same as with the text itself.
fn marked<'a>(message: &'a Message, texts: &mut Vec<&'a str>) -> Result<Value, Failure> {
    let parts = message.content.iter().map(|part| match part {
        Content::Image => Value::map(vec![("type".into(), "image".into())]),
        Content::Text(text) => {
            let inner = text.trim();
            let before = &text[..text.len() - text.trim_start().len()];
            let shown = if inner.is_empty() {
                text.clone()
            } else {
                texts.push(inner);
                let after = &text[text.trim_end().len()..];
                format!("{before}{MARK}{}{MARK_END}{after}", texts.len() - 1)
            };
            Value::map(vec![
                ("type".into(), "text".into()),
                ("text".into(), shown.into()),
            ])
        }
    });
    let parts = Value::list(parts.collect::<Result<_, _>>()?)?;
    Value::map(vec![
        ("role".into(), message.role.name().into()),
        ("content".into(), parts),
    ])
}

/// Finds the template of `dir`; returns its file and source.
fn template_source(dir: &Path, tokenizer_config: &JsonFile) -> Result<(PathBuf, String)> {
    let path = dir.join("chat_template.jinja");
    match read_text(&path, CONFIG_BYTES) {
        Ok(source) => return Ok((path, source)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::io(&path, error)),
    }
    let path = dir.join("chat_template.json");
    if let Some(map) = json_file::read_object(&path)? {
        let source = named_template(&path, json_file::present(&map, "chat_template"))?;
        return Ok((path, source));
    }
    let JsonFile { path, keys } = tokenizer_config;
    let source = named_template(path, json_file::present(keys, "chat_template"))?;
    Ok((path.clone(), source))
}

/// A template: a string, or the one named "default" in a list.
fn named_template(path: &Path, value: Option<&serde_json::Value>) -> Result<String> {
    let source = match value {
        Some(serde_json::Value::Array(list)) => list
            .iter()
            .find(|entry| entry["name"] == "default")
            .and_then(|entry| entry["template"].as_str()),
        Some(value) => value.as_str(),
        None => {
            return Err(Error::not_found(
                path,
                "no chat template: put chat_template.jinja beside it, or the key \"chat_template\" into it",
            ));
        }
    };
    source.map(str::to_owned).ok_or_else(|| {
        Error::invalid_file(
            path,
            "\"chat_template\" must be a string, or a list of named templates with one \"default\"",
        )
    })
}

/// A special token of tokenizer_config.json: a string or an object with "content".
pub(super) fn token_text(tokenizer_config: &Map<String, serde_json::Value>, key: &str) -> Option<String> {
    let value = tokenizer_config.get(key)?;
    value
        .as_str()
        .or_else(|| value["content"].as_str())
        .map(str::to_owned)
}
