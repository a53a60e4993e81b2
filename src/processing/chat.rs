//! Messages and the folder's own chat template.
//!
//! A template never sees what people wrote: it is rendered with a mark in place of each text, and the marks are then
//! replaced. So every piece of the result is known to come from the template or from a message, and only the
//! template's pieces can hold special tokens.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{AutoEscape, Environment, ErrorKind};
use serde_json::{Map, json};

use crate::files::{CONFIG_BYTES, read_text};
use crate::{Error, Result, json as json_file};

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Instructions that hold for the whole conversation.
    System,
    /// The person who asks.
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

/// One piece of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Plain text: never read as special tokens.
    Text(String),
    /// The place of the next image.
    Image,
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said, in order.
    pub content: Vec<Content>,
}

/// A piece of a rendered conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Span<'a> {
    /// Written by the template: special tokens in it are special.
    Template(String),
    /// Written by a message's author: plain text whatever it spells.
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

/// Work one rendering may do: about as many instructions, or 64 bytes of data each (12 MB in all).
const FUEL: u64 = 200_000;
/// Most bytes a template may write, message texts not counted.
const MAX_OUTPUT: usize = 1 << 20;
const NAME: &str = "chat_template";
/// Begins a mark. Letters of both cases, quotes, markup and a line end make any filter that would change a text
/// (upper, escape, tojson, replace ...) break the mark, which is then an error instead of a silent difference.
const MARK: &str = "\u{F0000}Aa \"'<&\\\n";
const MARK_END: char = '\u{F0001}';

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    path: PathBuf,
}

impl ChatTemplate {
    /// Reads and compiles the template of a model folder: `chat_template.jinja`, else `chat_template.json`, else
    /// `chat_template` in `tokenizer_config.json`.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let tokenizer_config =
            json_file::read_object(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
        let (path, source) = template_source(dir, &tokenizer_config)?;
        let mut environment = environment();
        for key in [
            "bos_token",
            "eos_token",
            "unk_token",
            "sep_token",
            "pad_token",
            "cls_token",
            "mask_token",
        ] {
            if let Some(token) = token_text(&tokenizer_config, key) {
                environment.add_global(key, token);
            }
        }
        environment.add_template_owned(NAME, source).map_err(|error| {
            Error::checkpoint(&path, format!("the chat template does not compile: {error:#}"))
        })?;
        Ok(Self { environment, path })
    }

    /// The file the template was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Renders a conversation up to the place where the model's answer begins; joined, the spans are the prompt.
    pub fn render<'a>(&self, messages: &'a [Message]) -> Result<Vec<Span<'a>>> {
        let mut texts = Vec::new();
        let messages: Vec<_> = messages
            .iter()
            .map(|message| marked(message, &mut texts))
            .collect();
        let context = json!({
            "messages": messages, "add_generation_prompt": true, "tools": null, "documents": null,
        });
        let mut output = Capped(Vec::new());
        self.environment
            .get_template(NAME)
            .and_then(|template| {
                template
                    .render_captured_to(Value::from(Serde(context)), &mut output)
                    .map(drop)
            })
            .map_err(|error| self.rendering_error(&error))?;
        let rendered =
            String::from_utf8(output.0).map_err(|_| self.error("the chat template writes broken UTF-8"))?;
        self.split(&rendered, &texts)
    }

    /// Replaces each mark by the text it stands for.
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

    fn rendering_error(&self, error: &minijinja::Error) -> Error {
        match error.kind() {
            ErrorKind::WriteFailure => {
                self.error(&format!("the chat template writes more than {MAX_OUTPUT} bytes"))
            }
            ErrorKind::OutOfFuel => {
                self.error("the chat template does not end within its allowed amount of work")
            }
            _ => self.error(&format!("the chat template fails: {error}")),
        }
    }

    pub(super) fn error(&self, reason: &str) -> Error {
        Error::checkpoint(&self.path, reason)
    }
}

/// A message as templates want it, with marks in place of its texts. White space around a text stays outside its
/// mark, so that a template which trims does what it would do to the text itself.
fn marked<'a>(message: &'a Message, texts: &mut Vec<&'a str>) -> serde_json::Value {
    let parts = message.content.iter().map(|part| match part {
        Content::Image => json!({"type": "image"}),
        Content::Text(text) => {
            let inner = text.trim();
            if inner.is_empty() {
                return json!({"type": "text", "text": text});
            }
            let before = &text[..text.len() - text.trim_start().len()];
            let after = &text[text.trim_end().len()..];
            texts.push(inner);
            let mark = format!("{before}{MARK}{}{MARK_END}{after}", texts.len() - 1);
            json!({"type": "text", "text": mark})
        }
    });
    json!({"role": message.role.name(), "content": parts.collect::<Vec<_>>()})
}

/// The first template found in `dir`, and the file it is in.
fn template_source(
    dir: &Path,
    tokenizer_config: &Map<String, serde_json::Value>,
) -> Result<(PathBuf, String)> {
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
    let path = dir.join("tokenizer_config.json");
    let source = named_template(&path, json_file::present(tokenizer_config, "chat_template"))?;
    Ok((path, source))
}

/// A template given as a string, or the one named "default" of a list.
fn named_template(path: &Path, value: Option<&serde_json::Value>) -> Result<String> {
    let source = match value {
        Some(serde_json::Value::Array(list)) => list
            .iter()
            .find(|entry| entry["name"] == "default")
            .and_then(|entry| entry["template"].as_str()),
        Some(value) => value.as_str(),
        None => {
            return Err(Error::checkpoint(
                path,
                "no chat template: put chat_template.jinja beside it, or the key \"chat_template\" into it",
            ));
        }
    };
    source.map(str::to_owned).ok_or_else(|| {
        Error::checkpoint(
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

/// Jinja as transformers sets it up for chat templates.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    // Only delimiters could make a syntax invalid, and these are the usual ones.
    if let Ok(syntax) = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
    {
        environment.set_syntax(syntax);
    }
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", to_json);
    environment.add_function(
        "raise_exception",
        |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        },
    );
    environment.add_function(
        "strftime_now",
        |format: &str| -> Result<String, minijinja::Error> {
            let mut text = String::new();
            std::fmt::Write::write_fmt(&mut text, format_args!("{}", chrono::Local::now().format(format)))
                .map_err(|_| {
                    minijinja::Error::new(ErrorKind::InvalidOperation, "strftime_now: unknown format")
                })?;
            Ok(text)
        },
    );
    environment
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=...)`: minijinja's own filter escapes for HTML.
fn to_json(value: &Value, options: Kwargs) -> Result<String, minijinja::Error> {
    let failed = |_| minijinja::Error::new(ErrorKind::BadSerialization, "tojson: not representable as JSON");
    let indent: Option<usize> = options.get("indent")?;
    let mut text = Vec::new();
    match indent {
        Some(indent) => {
            let indent = " ".repeat(indent.min(16));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            serde::Serialize::serialize(
                value,
                &mut serde_json::Serializer::with_formatter(&mut text, formatter),
            )
        }
        None => serde::Serialize::serialize(
            value,
            &mut serde_json::Serializer::with_formatter(&mut text, PythonJson),
        ),
    }
    .map_err(failed)?;
    options.assert_all_used()?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// JSON on one line with Python's spaces after commas and colons.
struct PythonJson;

impl serde_json::ser::Formatter for PythonJson {
    fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// Takes no more than [`MAX_OUTPUT`] bytes.
struct Capped(Vec<u8>);

impl Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT {
            return Err(io::Error::other("too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
