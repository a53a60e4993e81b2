//! The parameters of a chat completion.

use super::errors::RequestError;
use super::json::{self, Json, Object, Path, invalid, unsupported, wrong_type};
use super::messages::Conversation;
use super::models;
use super::pictures::pixel_bounds;
use crate::engine::Variant;
use crate::generation::GenerationOverrides;
use crate::processing::{Message, PixelBounds};
use crate::server::options::ServerOptions;

use actix_web::http::StatusCode;

/// Maximum number of stop strings, and of characters in one.
pub(super) const MAX_STOPS: usize = 4;
pub(super) const MAX_STOP_CHARACTERS: usize = 256;
/// Maximum `top_logprobs`.
pub(super) const MAX_TOP_LOGPROBS: usize = 20;

/// Parameters with an effect.
const SUPPORTED: [&str; 17] = [
    "model",
    "messages",
    "mm_processor_kwargs",
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "top_k",
    "repetition_penalty",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "logprobs",
    "top_logprobs",
    // With its only value.
    "n",
    "response_format",
];
/// Parameters that must have the value that has no effect.
const WITHOUT_EFFECT: [&str; 5] = [
    "presence_penalty",
    "frequency_penalty",
    "tools",
    "tool_choice",
    "logit_bias",
];
/// Parameters that are ignored.
const IGNORED: [&str; 6] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
];

/// A validated request.
pub(super) struct ChatRequest {
    /// Index of the model variant.
    pub variant: usize,
    pub messages: Vec<Message>,
    /// The pictures of `messages`, in order.
    pub pictures: Vec<PictureFile>,
    /// Digests of the pictures' files, if an audit log is kept.
    pub digests: Vec<String>,
    /// Bytes of all texts.
    pub text_bytes: usize,
    pub overrides: GenerationOverrides,
    /// Whether the answer may be shortened to what the context leaves.
    pub fit_context: bool,
    /// Number of most likely tokens, if log-probabilities are asked for.
    pub logprobs: Option<usize>,
    /// Options of a streamed answer, if it is one.
    pub stream: Option<StreamOptions>,
}

/// A picture or a document that is not decoded yet.
pub(super) struct PictureFile {
    /// The parameter's name.
    pub place: String,
    /// Whether each of its pages is a picture.
    pub is_document: bool,
    pub bytes: Vec<u8>,
    /// Bounds of its size for the model; `None`: the variant's.
    pub bounds: Option<PixelBounds>,
}

/// `stream_options`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct StreamOptions {
    pub include_usage: bool,
}

impl ChatRequest {
    /// Parses and checks a body.
    ///
    /// # Errors
    /// They name the parameter.
    pub(super) fn parse(
        body: &[u8],
        options: &ServerOptions,
        variants: &[Variant],
    ) -> Result<Self, RequestError> {
        let body = json::parse(body)?;
        let body = Object::of(&body, &Path::Root)?;
        body.only(&[&SUPPORTED, &WITHOUT_EFFECT, &IGNORED])?;
        refuse_unsupported(&body)?;
        let variant = variant(&body, variants)?;
        let of_variant = variants[variant].bounds;
        let stream = stream(&body)?;
        let logprobs = logprobs(&body)?;
        let max_tokens = max_tokens(&body, options.max_new_tokens)?;
        let overrides = GenerationOverrides {
            max_new_tokens: usize::try_from(max_tokens.unwrap_or(options.max_new_tokens)).ok(),
            ..sampling(&body)?
        };
        let bounds = pixel_bounds(&body, of_variant)?;
        let max_pictures = usize::try_from(options.max_pictures).unwrap_or(usize::MAX);
        let Conversation {
            messages,
            pictures: uris,
            text_bytes,
        } = Conversation::read(&body, max_pictures)?;
        let mut left = options.http.max_upload_bytes();
        let mut pictures = Vec::with_capacity(uris.len());
        for uri in uris {
            left = left.checked_sub(uri.length()).ok_or_else(|| {
                let limit = options.http.max_upload_mib;
                let message = format!(
                    "`{}` is too large: all pictures and files together may have {limit} MiB",
                    uri.place
                );
                RequestError::new("image_too_large", uri.place.clone(), message)
                    .with_status(StatusCode::PAYLOAD_TOO_LARGE)
            })?;
            pictures.push(PictureFile {
                bytes: uri.decode()?,
                bounds: uri.bounds(of_variant, bounds),
                is_document: uri.is_document,
                place: uri.place,
            });
        }
        Ok(Self {
            variant,
            messages,
            pictures,
            digests: Vec::new(),
            text_bytes,
            overrides,
            fit_context: max_tokens.is_none(),
            logprobs,
            stream,
        })
    }

    /// Bytes of texts and pictures.
    pub(super) fn bytes(&self) -> usize {
        let pictures = self.pictures.iter().map(|picture| picture.bytes.len());
        self.text_bytes + pictures.sum::<usize>()
    }
}

fn variant(body: &Object<'_, '_>, variants: &[Variant]) -> Result<usize, RequestError> {
    body.required("model")?;
    let name = body.text("model")?.unwrap_or_default();
    models::find(variants, name).ok_or_else(|| models::not_found(variants, name))
}

/// Refuses other values of parameters than the one that has no effect.
fn refuse_unsupported(body: &Object<'_, '_>) -> Result<(), RequestError> {
    let zero = |key, only: f64| match body.get(key) {
        None => Ok(()),
        Some(Json::Number(number)) if number.as_f64() == Some(only) => Ok(()),
        Some(Json::Number(_)) => Err(unsupported(&body.place(key), &format!("must be {only}"))),
        Some(_) => Err(wrong_type(&body.place(key), &only.to_string())),
    };
    zero("n", 1.0)?;
    zero("presence_penalty", 0.0)?;
    zero("frequency_penalty", 0.0)?;
    let refuse = |key, reason: &str| Err(unsupported(&body.place(key), reason));
    match body.get("tools") {
        None => {}
        Some(Json::List(tools)) if tools.is_empty() => {}
        Some(_) => return refuse("tools", "is not supported: it must be empty"),
    }
    match body.get("tool_choice") {
        None => {}
        Some(Json::Text(choice)) if choice == "none" || choice == "auto" => {}
        Some(_) => {
            return refuse(
                "tool_choice",
                "must be \"none\" or \"auto\": tools are not supported",
            );
        }
    }
    match body.get("logit_bias") {
        None => {}
        Some(Json::Object(bias)) if bias.is_empty() => {}
        Some(_) => return refuse("logit_bias", "is not supported: it must be empty"),
    }
    match body.get("store") {
        None | Some(Json::Bool(false)) => {}
        Some(_) => return refuse("store", "must be false: this server stores nothing"),
    }
    if let Some(format) = body.get("response_format") {
        let path = body.place("response_format");
        let format = Object::of(format, &path)?;
        format.required("type")?;
        if format.text("type")? != Some("text") {
            return Err(unsupported(&format.place("type"), "must be \"text\""));
        }
        format.only(&[&["type"]])?;
    }
    Ok(())
}

fn stream(body: &Object<'_, '_>) -> Result<Option<StreamOptions>, RequestError> {
    let streamed = body.flag("stream")?;
    let Some(value) = body.get("stream_options") else {
        return Ok(streamed.then(StreamOptions::default));
    };
    let path = body.place("stream_options");
    if !streamed {
        return Err(invalid(&path, "is for streamed answers: set `stream` to true"));
    }
    let options = Object::of(value, &path)?;
    options.only(&[&["include_usage"]])?;
    Ok(Some(StreamOptions {
        include_usage: options.flag("include_usage")?,
    }))
}

fn logprobs(body: &Object<'_, '_>) -> Result<Option<usize>, RequestError> {
    let asked = body.flag("logprobs")?;
    let top = body.integer("top_logprobs", 0..=MAX_TOP_LOGPROBS as i128)?;
    match top {
        Some(_) if !asked => {
            let reason = "is for log-probabilities: set `logprobs` to true";
            Err(invalid(&body.place("top_logprobs"), reason))
        }
        top => Ok(asked.then_some(top.unwrap_or(0) as usize)),
    }
}

/// Maximum number of tokens of the answer, by either of its names.
fn max_tokens(body: &Object<'_, '_>, most: u64) -> Result<Option<u64>, RequestError> {
    let number = |key| body.integer(key, 1..=i128::from(most));
    match (number("max_tokens")?, number("max_completion_tokens")?) {
        (Some(one), Some(other)) if one != other => {
            let reason = "differs from `max_completion_tokens`, its newer name: send one of them";
            Err(invalid(&body.place("max_tokens"), reason))
        }
        (one, other) => Ok(one.or(other).map(|tokens| tokens as u64)),
    }
}

fn sampling(body: &Object<'_, '_>) -> Result<GenerationOverrides, RequestError> {
    let seed = body.integer("seed", i128::from(i64::MIN)..=i128::from(u64::MAX))?;
    let top_k = body.integer("top_k", -1..=i128::from(u32::MAX))?;
    Ok(GenerationOverrides {
        temperature: body.number("temperature", "from 0 to 2", |t| (0.0..=2.0).contains(&t))?,
        top_p: body.number("top_p", "above 0 and at most 1", |p| p > 0.0 && p <= 1.0)?,
        repetition_penalty: body.number("repetition_penalty", "above 0 and at most 100", |p| {
            p > 0.0 && p <= 100.0
        })?,
        // -1 and 0: off.
        top_k: top_k.map(|k| usize::try_from(k).unwrap_or(0)),
        // Negative seeds are those from 2^63 on.
        seed: seed.map(|seed| seed as u64),
        stop: stop(body)?,
        ..GenerationOverrides::default()
    })
}

fn stop(body: &Object<'_, '_>) -> Result<Option<Vec<String>>, RequestError> {
    let path = body.place("stop");
    let check = |text: &str, path: &Path<'_>| match text.chars().nth(MAX_STOP_CHARACTERS) {
        _ if text.is_empty() => Err(invalid(path, "is empty")),
        Some(_) => Err(invalid(
            path,
            &format!("is too long: the limit is {MAX_STOP_CHARACTERS} characters"),
        )),
        None => Ok(text.to_owned()),
    };
    match body.get("stop") {
        None => Ok(None),
        Some(Json::Text(text)) => Ok(Some(vec![check(text, &path)?])),
        Some(Json::List(list)) if list.len() > MAX_STOPS => {
            let reason = format!("has {} strings; the limit is {MAX_STOPS}", list.len());
            Err(invalid(&path, &reason))
        }
        Some(Json::List(list)) => {
            let texts = list.iter().enumerate().map(|(index, text)| {
                let path = Path::Index(&path, index);
                match text {
                    Json::Text(text) => check(text, &path),
                    _ => Err(wrong_type(&path, "a string")),
                }
            });
            Ok(Some(texts.collect::<Result<_, _>>()?))
        }
        Some(_) => Err(wrong_type(&path, "a string or an array of strings")),
    }
}
