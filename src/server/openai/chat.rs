//! `/v1/chat/completions`.

use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};
use tokio::sync::OwnedSemaphorePermit;

use super::answer::{AnswerHead, ChatCompletion};
use super::body::read_request;
use super::errors::{OpenAiError, RequestError};
use super::models;
use super::request::PictureFile;
use super::schema::ChatCompletionRequest;
use super::stream;
use crate::engine::{Picture, ReadRequest};
use crate::processing::{DecodedPage, PixelBounds};
use crate::server::access::client;
use crate::server::audit::note;
use crate::server::decoding::decode;
use crate::server::errors::ApiError;
use crate::server::http::{arrival, request_id};
use crate::server::state::ServerState;
use crate::server::stream::Prepared;

/// Answers a conversation about pictures, in OpenAI's form.
#[utoipa::path(
    post,
    path = "/v1/chat/completions",
    operation_id = "create_chat_completion",
    request_body(content = ChatCompletionRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "The answer; with `stream` as server-sent events, each a ChatChunk, and `[DONE]`", body = ChatCompletion),
        (status = 400, description = "Malformed JSON, an unknown, unsupported or invalid parameter (named in `param`), or more tokens than the context holds", body = OpenAiError),
        (status = 404, description = "No model of this name", body = OpenAiError),
        (status = 408, description = "The body took longer than 30 s to arrive, or came more slowly than 1024 bytes a second", body = OpenAiError),
        (status = 413, description = "The pictures together are larger than 20 MiB, or the body is larger than they can make it", body = OpenAiError),
        (status = 415, description = "Not application/json", body = OpenAiError),
        (status = 500, description = "Internal error", body = OpenAiError),
        (status = 503, description = "Model not loaded, queue full or too slow, too many connections, or shutting down; see Retry-After", body = OpenAiError),
    )
)]
pub(in crate::server) async fn chat_completions(
    http: HttpRequest,
    state: Data<ServerState>,
) -> Result<HttpResponse, ApiError> {
    let (chat, mut memory) = read_request(&http, &state).await?;
    note(&http, |facts| facts.documents.extend(chat.digests));
    let slot = state.engine.reserve_for(client(&http), arrival(&http))?;
    let variant = &models::loaded(&state)?[chat.variant];
    let bounds = variant.bounds;
    let pages = chat.pictures.len();
    let note_pages = || {
        note(&http, |facts| {
            facts.pages = pages;
            facts.set_model(&variant.info);
        });
    };
    let head = AnswerHead {
        id: format!("chatcmpl-{}", request_id(&http).unwrap_or_default()),
        created: chrono::Utc::now().timestamp(),
        model: models::name(variant).to_owned(),
        logprobs: chat.logprobs.is_some(),
    };
    let stream = chat.stream;
    let prepare = {
        let state = state.clone();
        async move {
            let pictures = decode_all(&state, chat.pictures, bounds);
            let decoded = tokio::time::timeout_at(slot.expires().into(), pictures).await;
            let decoded = decoded.map_err(|_| slot.expired())??;
            // The files are gone, the texts are not.
            memory.shrink(chat.text_bytes);
            let mut request = ReadRequest::new(chat.messages, decoded.pictures);
            request.overrides = chat.overrides;
            request.fit_context = chat.fit_context;
            request.variant = chat.variant;
            request.logprobs = chat.logprobs;
            Ok(Prepared {
                slot,
                request,
                warnings: decoded.warnings,
                memory: (decoded.memory, memory),
            })
        }
    };
    if let Some(options) = stream {
        let response = stream::respond(&state, prepare, head, options).await?;
        note_pages();
        return Ok(response);
    }
    let prepared = prepare.await?;
    note_pages();
    Ok(HttpResponse::Ok().json(head.completion(prepared.answer().await?)))
}

/// Decoded pictures of a request.
#[derive(Default)]
struct Pictures {
    pictures: Vec<Picture>,
    warnings: Vec<String>,
    /// Permits for all pages.
    memory: Option<OwnedSemaphorePermit>,
}

/// Decodes the pictures one after the other.
async fn decode_all(
    state: &ServerState,
    files: Vec<PictureFile>,
    of_variant: Option<PixelBounds>,
) -> Result<Pictures, ApiError> {
    // One such request at a time: two that hold pages while they wait for the memory of the next could wait for each other.
    let several = match files.len() {
        0 | 1 => None,
        _ => Some(state.several_pictures.acquire().await),
    };
    let _several = several.transpose().map_err(|_| ApiError::Internal)?;
    let mut all = Pictures::default();
    for PictureFile { place, bytes, bounds } in files {
        let held = all.memory.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let decoded = decode(state, bytes, bounds.or(of_variant), held).await;
        let (DecodedPage { page, warnings }, memory) = decoded.map_err(|error| match error {
            ApiError::Image(_) | ApiError::DecodeMemory { .. } => {
                RequestError::new("invalid_image", place.clone(), format!("`{place}`: {error}")).into()
            }
            other => other,
        })?;
        all.pictures.push(Picture { page, bounds });
        all.warnings
            .extend(warnings.iter().map(|warning| format!("{place}: {warning}")));
        match &mut all.memory {
            Some(held) => held.merge(memory),
            None => all.memory = Some(memory),
        }
    }
    Ok(all)
}
