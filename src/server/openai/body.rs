//! Reads a JSON body within bounds, and parses it off the connection's thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::http::{StatusCode, header};
use actix_web::web::{self, Data};
use actix_web::{HttpMessage, HttpRequest};
use futures_util::StreamExt;

use super::errors::RequestError;
use super::models;
use super::request::ChatRequest;
use crate::server::errors::ApiError;
use crate::server::http::{GuardedBody, arrival, body_error};
use crate::server::state::ServerState;
use crate::server::upload::UploadMemory;

/// Memory of the JSON tree of a body, bytes.
const TREE_BYTES: usize = 8 << 20;

/// Reads and checks a request. The returned permits account for its texts and pictures.
pub(super) async fn read_request(
    http: &HttpRequest,
    state: &Data<ServerState>,
) -> Result<(ChatRequest, UploadMemory), ApiError> {
    let expires = arrival(http) + Duration::from_secs(state.options.queue_deadline_seconds);
    let (body, mut memory) = read_body(http, state, expires).await?;
    models::loaded(state)?;
    // Unescaping a string takes up to three times its memory; a larger body than that allows is parsed alone.
    let need = (3 * body.len() + TREE_BYTES).div_ceil(1024);
    let need = u32::try_from(need)
        .unwrap_or(u32::MAX)
        .min(state.options.decoded_kib());
    let waiting = Arc::clone(&state.image_memory).acquire_many_owned(need);
    let transient = tokio::time::timeout_at(expires.into(), waiting).await;
    let transient = transient
        .map_err(|_| ApiError::TooManyUploads)?
        .map_err(|_| ApiError::Internal)?;
    let shared = state.clone();
    let parsed = web::block(move || {
        // Both are held until the end, also when the client disconnects.
        let _transient = transient;
        let chat = ChatRequest::parse(&body, &shared.options, shared.engine.variants());
        drop(body);
        let mut chat = chat?;
        if let Some(log) = &shared.audit {
            let digests = chat.pictures.iter().map(|picture| log.digest(&picture.bytes));
            chat.digests = digests.collect();
        }
        memory.shrink(chat.bytes());
        Ok::<_, RequestError>((chat, memory))
    });
    Ok(parsed.await.map_err(|_| ApiError::Internal)??)
}

async fn read_body(
    http: &HttpRequest,
    state: &ServerState,
    expires: Instant,
) -> Result<(Vec<u8>, UploadMemory), ApiError> {
    let kind = http.headers().get(header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        let error = RequestError::body("unsupported_media_type", "send the body as application/json");
        return Err(error.with_status(StatusCode::UNSUPPORTED_MEDIA_TYPE).into());
    }
    let (mut bytes, mut memory) = (Vec::new(), UploadMemory::default());
    let body = http.extensions().get::<GuardedBody>().cloned();
    let Some(mut body) = body else {
        return Ok((bytes, memory));
    };
    body.limit(state.options.http.max_json_bytes());
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|_| match body_error(http) {
            ApiError::Malformed => {
                RequestError::body("incomplete_body", "the body is malformed or incomplete").into()
            }
            other => other,
        })?;
        let length = bytes.len() + chunk.len();
        if let Some(waited) = memory.grow(length, state, expires).await? {
            body.extend_deadlines(waited);
        }
        if bytes.capacity() < length {
            // Grow by a quarter: the vector's own strategy doubles its capacity.
            bytes.reserve_exact(chunk.len().max(bytes.len() / 4));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok((bytes, memory))
}
