//! Reads the multipart form of `/extract` and `/analyze` part by part, within bounds.

use std::str::FromStr;
use std::time::{Duration, Instant};

use actix_multipart::{Field, Multipart, MultipartError};
use actix_web::http::header;
use actix_web::{HttpMessage, HttpRequest};
use futures_util::StreamExt;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    audit::{DocumentHasher, note},
    errors::ApiError,
    http::{GuardedBody, arrival, body_error},
    options::{MAX_FIELD_BYTES, MAX_PARTS},
    state::{ServerState, UPLOAD_PERMIT_BYTES},
};
use crate::documents::PageSelection;
use crate::engine::MAX_PROMPT_CHARACTERS;
use crate::error::PromptError;
use crate::generation::GenerationOverrides;

/// A validated form.
pub(super) struct Upload {
    /// The page.
    pub file: UploadedFile,
    /// The prompt, not blank.
    pub prompt: Option<String>,
    /// Generation overrides.
    pub overrides: GenerationOverrides,
    /// Whether to stream the answer.
    pub stream: bool,
    /// Whether to return log-probabilities.
    pub logprobs: bool,
    /// `default`, `none` or the name of an adapter.
    pub adapter: Option<String>,
    /// Minimum of width x height that the page is scaled to.
    pub min_pixels: Option<u64>,
    /// Maximum of width x height that the page is scaled to.
    pub max_pixels: Option<u64>,
    /// Pages to read.
    pub pages: PageSelection,
    /// Password of the file.
    pub password: Option<String>,
}

/// An uploaded file with its memory permits.
pub(super) struct UploadedFile {
    /// As sent.
    pub bytes: Vec<u8>,
    /// For the audit log, if one is kept.
    digest: Option<String>,
    _memory: UploadMemory,
}

impl AsRef<[u8]> for UploadedFile {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Memory permits of an upload, acquired as bytes arrive. When the budget is exhausted the upload waits; one at a time may exceed it,
/// so that partial uploads do not deadlock.
#[derive(Default)]
pub(super) struct UploadMemory {
    permits: Option<OwnedSemaphorePermit>,
    oversize: Option<OwnedSemaphorePermit>,
}

impl UploadMemory {
    /// Acquires permits for `bytes` in total. Waits for them until `deadline`, if it must, and returns how long it waited.
    pub(super) async fn grow(
        &mut self,
        bytes: usize,
        state: &ServerState,
        deadline: Instant,
    ) -> Result<Option<Duration>, ApiError> {
        let acquired = self.permits.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let missing = bytes.div_ceil(UPLOAD_PERMIT_BYTES).saturating_sub(acquired);
        if missing == 0 || self.oversize.is_some() {
            return Ok(None);
        }
        let missing = u32::try_from(missing).map_err(|_| ApiError::TooManyUploads)?;
        if let Ok(permits) = state.upload_permits.clone().try_acquire_many_owned(missing) {
            self.add(permits);
            return Ok(None);
        }
        let start = Instant::now();
        let waiting = async {
            tokio::select! {
                biased;
                permits = state.upload_permits.clone().acquire_many_owned(missing) => (permits.ok(), None),
                oversize = state.oversize_upload.clone().acquire_owned() => (None, oversize.ok()),
            }
        };
        match tokio::time::timeout_at(deadline.into(), waiting).await {
            Ok((Some(permits), _)) => self.add(permits),
            Ok((None, Some(oversize))) => self.oversize = Some(oversize),
            Ok((None, None)) | Err(_) => return Err(ApiError::TooManyUploads),
        }
        Ok(Some(start.elapsed()))
    }

    /// Releases the permits that `bytes` in total do not need.
    pub(super) fn shrink(&mut self, bytes: usize) {
        let needed = bytes.div_ceil(UPLOAD_PERMIT_BYTES);
        if let Some(permits) = &mut self.permits {
            let excess = permits.num_permits().saturating_sub(needed);
            drop(permits.split(excess));
        }
        if self.permits.as_ref().map_or(0, OwnedSemaphorePermit::num_permits) >= needed {
            self.oversize = None;
        }
    }

    fn add(&mut self, permits: OwnedSemaphorePermit) {
        match &mut self.permits {
            Some(acquired) => acquired.merge(permits),
            None => self.permits = Some(permits),
        }
    }
}

/// Text fields. Unknown fields are ignored, as in the original project.
#[derive(Default)]
struct TextFields {
    prompt: Option<String>,
    max_new_tokens: Option<String>,
    temperature: Option<String>,
    seed: Option<String>,
    stream: Option<String>,
    logprobs: Option<String>,
    adapter: Option<String>,
    min_pixels: Option<String>,
    max_pixels: Option<String>,
    pages: Option<String>,
    password: Option<String>,
}

/// Reads and validates the form.
pub(super) async fn read_upload(request: &HttpRequest, state: &ServerState) -> Result<Upload, ApiError> {
    let body = request.extensions().get::<GuardedBody>().cloned();
    let Some(mut body) = body.filter(|_| is_form(request)) else {
        return Err(ApiError::NoFile);
    };
    let rejection = |_| body_error(request);
    let mut file = None;
    let mut texts = TextFields::default();
    let mut parts = Multipart::new(request.headers(), body.clone());
    let mut count = 0;
    while let Some(part) = parts.next().await {
        let mut part = part.map_err(rejection)?;
        count += 1;
        if count > MAX_PARTS {
            return Err(ApiError::TooManyParts { limit: MAX_PARTS });
        }
        if part.name() == Some("file") {
            if file.is_some() {
                return Err(ApiError::Repeated("file"));
            }
            let expires = arrival(request) + Duration::from_secs(state.options.queue_deadline_seconds);
            let read = read_file(&mut part, &body, state, expires, rejection).await?;
            note(request, |facts| facts.documents.extend(read.digest.clone()));
            file = Some(read);
        } else {
            read_text(&mut part, &mut texts, rejection).await?;
        }
    }
    drop(parts);
    // The rest after the last boundary must be read before the connection can be reused.
    while let Some(chunk) = body.next().await {
        chunk.map_err(|_| body_error(request))?;
    }
    Ok(Upload {
        file: file.ok_or(ApiError::NoFile)?,
        overrides: texts.overrides(state.options.max_new_tokens)?,
        stream: flag("stream", &texts.stream)?,
        logprobs: flag("logprobs", &texts.logprobs)?,
        adapter: given(&texts.adapter).map(str::to_owned),
        min_pixels: pixels("min_pixels", &texts.min_pixels)?,
        max_pixels: pixels("max_pixels", &texts.max_pixels)?,
        pages: page_selection(&texts.pages)?,
        password: texts.password.take().filter(|password| !password.is_empty()),
        prompt: texts.prompt()?,
    })
}

fn is_form(request: &HttpRequest) -> bool {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    let content_type = content_type.and_then(|value| value.to_str().ok()).unwrap_or("");
    let essence = content_type.split(';').next().unwrap_or("").trim();
    essence.eq_ignore_ascii_case("multipart/form-data")
}

async fn read_file(
    part: &mut Field,
    body: &GuardedBody,
    state: &ServerState,
    expires: Instant,
    rejection: impl Fn(MultipartError) -> ApiError,
) -> Result<UploadedFile, ApiError> {
    let most = state.options.http.max_upload_bytes();
    let mut bytes = Vec::new();
    let mut memory = UploadMemory::default();
    let mut hasher = state.audit.as_ref().map(|log| log.hasher());
    while let Some(chunk) = part.next().await {
        let chunk = chunk.map_err(&rejection)?;
        if (bytes.len() + chunk.len()) as u64 > most {
            return Err(ApiError::UploadTooLarge {
                limit_mib: state.options.http.max_upload_mib,
            });
        }
        if let Some(waited) = memory.grow(bytes.len() + chunk.len(), state, expires).await? {
            body.extend_deadlines(waited);
        }
        if bytes.capacity() < bytes.len() + chunk.len() {
            // Grow by a quarter: the vector's own strategy doubles its capacity.
            bytes.reserve_exact(chunk.len().max(bytes.len() / 4));
        }
        if let Some(hasher) = &mut hasher {
            hasher.update(&chunk);
        }
        bytes.extend_from_slice(&chunk);
    }
    bytes.shrink_to_fit();
    Ok(UploadedFile {
        bytes,
        digest: hasher.map(DocumentHasher::finish),
        _memory: memory,
    })
}

async fn read_text(
    part: &mut Field,
    texts: &mut TextFields,
    rejection: impl Fn(MultipartError) -> ApiError,
) -> Result<(), ApiError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = part.next().await {
        let chunk = chunk.map_err(&rejection)?;
        if bytes.len() + chunk.len() > MAX_FIELD_BYTES {
            return Err(ApiError::FieldTooLarge {
                limit: MAX_FIELD_BYTES,
            });
        }
        bytes.extend_from_slice(&chunk);
    }
    let (field, place) = match part.name() {
        Some("prompt") => ("prompt", &mut texts.prompt),
        Some("max_new_tokens") => ("max_new_tokens", &mut texts.max_new_tokens),
        Some("temperature") => ("temperature", &mut texts.temperature),
        Some("seed") => ("seed", &mut texts.seed),
        Some("stream") => ("stream", &mut texts.stream),
        Some("logprobs") => ("logprobs", &mut texts.logprobs),
        Some("adapter") => ("adapter", &mut texts.adapter),
        Some("min_pixels") => ("min_pixels", &mut texts.min_pixels),
        Some("max_pixels") => ("max_pixels", &mut texts.max_pixels),
        Some("pages") => ("pages", &mut texts.pages),
        Some("password") => ("password", &mut texts.password),
        _ => return Ok(()),
    };
    if place.is_some() {
        return Err(ApiError::Repeated(field));
    }
    let text = String::from_utf8(bytes).map_err(|_| ApiError::Field {
        field,
        reason: "not UTF-8".into(),
    })?;
    *place = Some(text);
    Ok(())
}

impl TextFields {
    fn prompt(self) -> Result<Option<String>, ApiError> {
        let Some(prompt) = self.prompt.filter(|prompt| !prompt.trim().is_empty()) else {
            return Ok(None);
        };
        let characters = prompt.chars().count();
        if characters > MAX_PROMPT_CHARACTERS {
            let limit = MAX_PROMPT_CHARACTERS;
            return Err(PromptError::TooLong { characters, limit }.into());
        }
        Ok(Some(prompt))
    }

    fn overrides(&self, most_tokens: u64) -> Result<GenerationOverrides, ApiError> {
        let max_new_tokens = parsed(
            "max_new_tokens",
            &self.max_new_tokens,
            &format!("a whole number from 1 to {most_tokens}"),
            |tokens: &u64| (1..=most_tokens).contains(tokens),
        )?;
        let max_new_tokens = max_new_tokens.unwrap_or(most_tokens);
        Ok(GenerationOverrides {
            max_new_tokens: Some(usize::try_from(max_new_tokens).unwrap_or(usize::MAX)),
            temperature: parsed(
                "temperature",
                &self.temperature,
                "a number from 0 to 2",
                |temperature: &f64| (0.0..=2.0).contains(temperature),
            )?,
            seed: parsed("seed", &self.seed, "a whole number below 2^64", |_: &u64| true)?,
            ..GenerationOverrides::default()
        })
    }
}

/// The text of a field; `None` if blank.
fn given(text: &Option<String>) -> Option<&str> {
    text.as_deref().map(str::trim).filter(|text| !text.is_empty())
}

/// Whether a field is `true`; false if blank.
fn flag(field: &'static str, text: &Option<String>) -> Result<bool, ApiError> {
    let is_true = parsed(field, text, "true or false", |_: &bool| true)?;
    Ok(is_true.unwrap_or(false))
}

/// The number of pixels in a field; its range depends on the variant that reads the page.
fn pixels(field: &'static str, text: &Option<String>) -> Result<Option<u64>, ApiError> {
    parsed(field, text, "a whole number of pixels", |_: &u64| true)
}

/// The pages of a field; all if blank.
fn page_selection(text: &Option<String>) -> Result<PageSelection, ApiError> {
    let parse = |text: &str| {
        text.parse().map_err(|reason| ApiError::Field {
            field: "pages",
            reason,
        })
    };
    Ok(given(text).map(parse).transpose()?.unwrap_or_default())
}

/// Parses the value of a field; `None` if blank.
fn parsed<T: FromStr>(
    field: &'static str,
    text: &Option<String>,
    range: &str,
    fits: impl Fn(&T) -> bool,
) -> Result<Option<T>, ApiError> {
    let Some(text) = given(text) else {
        return Ok(None);
    };
    match text.parse().ok().filter(fits) {
        Some(value) => Ok(Some(value)),
        None => Err(ApiError::Field {
            field,
            reason: format!("must be {range}"),
        }),
    }
}
