//! `/v1/chat/completions`.

use std::cell::Cell;
use std::rc::Rc;

use actix_web::http::StatusCode;
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
use crate::documents::{DocumentPage, PageSelection};
use crate::engine::{Picture, ReadRequest};
use crate::error::DocumentError;
use crate::processing::{Content, DecodedPage, Message, PageWarning, PixelBounds};
use crate::server::access::client;
use crate::server::audit::note;
use crate::server::decoding::{decode, decode_document_page, open};
use crate::server::errors::ApiError;
use crate::server::http::{arrival, request_id};
use crate::server::state::ServerState;
use crate::server::stream::Prepared;

/// Answers a conversation about pictures and documents, in OpenAI's form.
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
        (status = 413, description = "The pictures and files together are larger than 20 MiB, the body is larger than they can make it, or they have more pages than pictures are allowed", body = OpenAiError),
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
    // A document's pages are counted when it is opened.
    let pages = Rc::new(Cell::new(chat.pictures.len()));
    let note_pages = || {
        note(&http, |facts| {
            facts.pages = pages.get();
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
        let (state, pages) = (state.clone(), Rc::clone(&pages));
        async move {
            let pictures = decode_all(&state, chat.pictures, bounds);
            let decoded = tokio::time::timeout_at(slot.expires().into(), pictures).await;
            let decoded = decoded.map_err(|_| slot.expired())??;
            // The files are gone, the texts are not.
            memory.shrink(chat.text_bytes);
            pages.set(decoded.pictures.len());
            let messages = with_pages(chat.messages, decoded.shown);
            let mut request = ReadRequest::new(messages, decoded.pictures);
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

/// What stands for a file in a message.
enum Shown {
    /// So many pictures.
    Pictures(usize),
    Text(String),
}

/// `messages` with as many images for each file as it has pages.
fn with_pages(mut messages: Vec<Message>, shown: Vec<Shown>) -> Vec<Message> {
    let mut shown = shown.into_iter();
    for message in &mut messages {
        let parts = std::mem::take(&mut message.content).into_iter();
        let expanded = parts.flat_map(|part| match part {
            Content::Image => match shown.next() {
                Some(Shown::Text(text)) => vec![Content::Text(text)],
                Some(Shown::Pictures(pages)) => vec![Content::Image; pages],
                None => vec![Content::Image],
            },
            text => vec![text],
        });
        message.content = expanded.collect();
    }
    messages
}

/// Decoded pictures of a request.
#[derive(Default)]
struct Pictures {
    pictures: Vec<Picture>,
    /// For each file.
    shown: Vec<Shown>,
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
    let several = match &files[..] {
        [] => None,
        [one] if !one.is_document => None,
        _ => Some(state.several_pictures.acquire().await),
    };
    let _several = several.transpose().map_err(|_| ApiError::Internal)?;
    let mut all = Pictures::default();
    for file in files {
        let place = file.place.clone();
        let decoded = match file.is_document {
            true => all.add_document(state, file, of_variant).await,
            false => all.add_picture(state, file, of_variant).await,
        };
        decoded.map_err(|error| in_place(&place, error))?;
    }
    Ok(all)
}

/// An error about the file that the parameter `place` holds.
fn in_place(place: &str, error: ApiError) -> ApiError {
    let (code, status) = match &error {
        ApiError::Image(_) | ApiError::DecodeMemory { .. } => ("invalid_image", StatusCode::BAD_REQUEST),
        ApiError::Document(DocumentError::NoWorker) => return error,
        ApiError::Document(DocumentError::TooManyPages { .. }) => {
            ("too_many_pages", StatusCode::PAYLOAD_TOO_LARGE)
        }
        ApiError::Document(_) => ("invalid_file", StatusCode::BAD_REQUEST),
        _ => return error,
    };
    let message = format!("`{place}`: {error}");
    let error = RequestError::new(code, place.to_owned(), message);
    error.with_status(status).into()
}

impl Pictures {
    async fn add_picture(
        &mut self,
        state: &ServerState,
        PictureFile {
            place, bytes, bounds, ..
        }: PictureFile,
        of_variant: Option<PixelBounds>,
    ) -> Result<(), ApiError> {
        let decoded = decode(state, bytes, bounds.or(of_variant), self.held()).await?;
        let (DecodedPage { page, warnings }, memory) = decoded;
        self.shown.push(Shown::Pictures(1));
        self.add(Picture { page, bounds }, &place, &warnings, memory);
        Ok(())
    }

    async fn add_document(
        &mut self,
        state: &ServerState,
        PictureFile {
            place, bytes, bounds, ..
        }: PictureFile,
        of_variant: Option<PixelBounds>,
    ) -> Result<(), ApiError> {
        let document = open(state, bytes, None).await?;
        if let Some(report) = document.report() {
            self.shown.push(Shown::Text(report.to_owned()));
            return Ok(());
        }
        let most = usize::try_from(state.options.max_pictures).unwrap_or(usize::MAX);
        let numbers = PageSelection::all().numbers(document.pages(), most - self.pictures.len().min(most))?;
        self.shown.push(Shown::Pictures(numbers.len()));
        for number in numbers {
            let held = self.held();
            let page = decode_document_page(state, &document, number, bounds.or(of_variant), held).await?;
            let (DocumentPage { page, warnings, .. }, memory) = page;
            let page_place = match document.pages() {
                1 => place.clone(),
                _ => format!("{place}, page {number}"),
            };
            self.add(Picture { page, bounds }, &page_place, &warnings, memory);
        }
        Ok(())
    }

    /// Number of permits.
    fn held(&self) -> usize {
        self.memory.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }

    fn add(&mut self, picture: Picture, place: &str, warnings: &[PageWarning], memory: OwnedSemaphorePermit) {
        self.pictures.push(picture);
        self.warnings
            .extend(warnings.iter().map(|warning| format!("{place}: {warning}")));
        match &mut self.memory {
            Some(held) => held.merge(memory),
            None => self.memory = Some(memory),
        }
    }
}
