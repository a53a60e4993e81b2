//! Request handlers.

use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, web};

use super::{
    benchmark::read_benchmarks,
    errors::ApiError,
    http::ChunkedBody,
    reading::{PageAnswer, respond},
    state::{RESPONSE_PERMIT_BYTES, ServerState},
    types::{Analysis, AnalyzeForm, Benchmarks, ErrorBody, ExtractForm, Extraction, Health, Status},
    upload::read_upload,
};
use crate::device::process_memory;
use crate::engine::EngineState;
use crate::prompts::EXTRACTION_PROMPT;
use crate::records::{mib, timestamp};

/// Server status and readiness. Responds within milliseconds, also during generation.
#[utoipa::path(
    get,
    path = "/health",
    responses((status = 200, description = "Also while the model loads", body = Health))
)]
pub(super) async fn health(state: web::Data<ServerState>) -> web::Json<Health> {
    let gpu = (state.gpu)();
    web::Json(Health {
        model_loaded: matches!(state.engine.state(), EngineState::Ready(_)),
        gpu_available: gpu.available,
        gpu_name: gpu.name,
        current_vram_usage_mb: gpu.used_mb,
        total_vram_mb: gpu.total_mb,
        requests_admitted: state.engine.admitted(),
        resident_memory_mb: process_memory().map_or(0.0, |memory| mib(memory.resident_bytes)),
        total_memory_mb: state.machine_memory.map_or(0.0, mib),
        timestamp: timestamp(),
    })
}

/// Whether the process answers.
#[utoipa::path(
    get,
    path = "/health/live",
    responses((status = 200, description = "Always", body = Status))
)]
pub(super) async fn live() -> web::Json<Status> {
    web::Json(Status {
        status: "live".to_owned(),
        timestamp: timestamp(),
    })
}

/// Whether a reading would be admitted now.
#[utoipa::path(
    get,
    path = "/health/ready",
    responses(
        (status = 200, description = "A reading would be admitted", body = Status),
        (status = 503, description = "`detail` is `loading`, `draining`, `queue full`, `the audit log cannot be written` or `failed: REASON`", body = ErrorBody),
    )
)]
pub(super) async fn ready(state: web::Data<ServerState>) -> HttpResponse {
    let obstacle = match state.engine.state() {
        EngineState::Failed(reason) => Some(format!("failed: {reason}")),
        _ if state.is_draining() => Some("draining".to_owned()),
        EngineState::Loading => Some("loading".to_owned()),
        _ if state.audit.as_ref().is_some_and(|log| !log.is_writable()) => {
            Some("the audit log cannot be written".to_owned())
        }
        EngineState::Ready(_) if state.engine.is_full() => Some("queue full".to_owned()),
        EngineState::Ready(_) => None,
    };
    let timestamp = timestamp();
    match obstacle {
        None => HttpResponse::Ok().json(Status {
            status: "ready".to_owned(),
            timestamp,
        }),
        Some(detail) => HttpResponse::ServiceUnavailable().json(ErrorBody { detail, timestamp }),
    }
}

/// Extracts the text of a document, page by page, with the default prompt.
///
/// With `stream=true` the answer is a stream of events, each with JSON as its data: `queued` {before}, at once and when the number
/// changes; `delta` {text, logprobs}; then `done` with the answer, or `error` {detail, timestamp, status}. Where several pages are read, those of
/// each page come between `page_start` {page} and `page_done` with its entry of `pages`.
#[utoipa::path(
    post,
    path = "/extract",
    request_body(content = ExtractForm, content_type = "multipart/form-data"),
    responses(
        (status = 200, description = "The text, also if some of several pages could not be read", content((Extraction = "application/json"), (String = "text/event-stream"))),
        (status = 400, description = "Empty, damaged or unsupported file, a picture over 40 megapixels, a missing or wrong password, or a malformed form", body = ErrorBody),
        (status = 408, description = "The body took longer than 30 s to arrive, or came more slowly than 1024 bytes a second", body = ErrorBody),
        (status = 413, description = "The file is larger than 20 MiB, or more pages are to be read than 32", body = ErrorBody),
        (status = 422, description = "No file, more tokens (prompt, page and answer) than the model's context holds, or a field outside its range", body = ErrorBody),
        (status = 500, description = "Internal error", body = ErrorBody),
        (status = 503, description = "Model not loaded, queue full or too slow, too many connections, or shutting down; see Retry-After", body = ErrorBody),
        (status = 504, description = "The reading took longer than 300 s", body = ErrorBody),
    )
)]
pub(super) async fn extract(
    request: HttpRequest,
    state: web::Data<ServerState>,
) -> Result<HttpResponse, ApiError> {
    let upload = read_upload(&request, &state).await?;
    let shape = |answer: PageAnswer| Extraction {
        extracted_content: answer.text,
        pages: answer.pages,
        warnings: answer.warnings,
        source: answer.source,
        dicom: answer.dicom,
        figures: answer.figures,
        model_info: answer.model_info,
        timestamp: timestamp(),
        image: answer.image,
        logprobs: answer.logprobs,
    };
    respond(&request, &state, upload, EXTRACTION_PROMPT.to_owned(), shape).await
}

/// Answers a prompt about each page of a document.
///
/// With `stream=true` the answer is a stream of events as of `/extract`.
#[utoipa::path(
    post,
    path = "/analyze",
    request_body(content = AnalyzeForm, content_type = "multipart/form-data"),
    responses(
        (status = 200, description = "The answer, also if some of several pages could not be read", content((Analysis = "application/json"), (String = "text/event-stream"))),
        (status = 400, description = "Empty, damaged or unsupported file, a picture over 40 megapixels, a missing or wrong password, or a malformed form", body = ErrorBody),
        (status = 408, description = "The body took longer than 30 s to arrive, or came more slowly than 1024 bytes a second", body = ErrorBody),
        (status = 413, description = "The file is larger than 20 MiB, a text field larger than 64 KiB, or more pages are to be read than 32", body = ErrorBody),
        (status = 422, description = "No file, a prompt over 8192 characters, more tokens (prompt, page and answer) than the model's context holds, or a field outside its range", body = ErrorBody),
        (status = 500, description = "Internal error", body = ErrorBody),
        (status = 503, description = "Model not loaded, queue full or too slow, too many connections, or shutting down; see Retry-After", body = ErrorBody),
        (status = 504, description = "The reading took longer than 300 s", body = ErrorBody),
    )
)]
pub(super) async fn analyze(
    request: HttpRequest,
    state: web::Data<ServerState>,
) -> Result<HttpResponse, ApiError> {
    let mut upload = read_upload(&request, &state).await?;
    let prompt = upload.prompt.take();
    let prompt_used = prompt.unwrap_or_else(|| EXTRACTION_PROMPT.to_owned());
    let prompt = prompt_used.clone();
    let shape = move |answer: PageAnswer| Analysis {
        analysis: answer.text,
        prompt_used: prompt_used.clone(),
        pages: answer.pages,
        warnings: answer.warnings,
        source: answer.source,
        dicom: answer.dicom,
        figures: answer.figures,
        model_info: answer.model_info,
        timestamp: timestamp(),
        image: answer.image,
        logprobs: answer.logprobs,
    };
    respond(&request, &state, upload, prompt, shape).await
}

/// Returns the benchmark records of the project.
#[utoipa::path(
    get,
    path = "/benchmark",
    responses(
        (status = 200, description = "Every benchmarks/*.json that can be read", body = Benchmarks),
        (status = 500, description = "Internal error", body = ErrorBody),
    )
)]
pub(super) async fn benchmark(state: web::Data<ServerState>) -> Result<HttpResponse, ApiError> {
    // One at a time: serialization holds several copies of the records.
    let permit = Arc::clone(&state.benchmark_permit).acquire_owned().await;
    let permit = permit.map_err(|_| ApiError::Internal)?;
    let folder = state.benchmarks.clone();
    let body = web::block(move || {
        let _permit = permit;
        serde_json::to_vec(&read_benchmarks(&folder))
    });
    let body = body.await.map_err(|_| ApiError::Internal)?;
    let body = body.map_err(|_| ApiError::Internal)?;
    let permits =
        u32::try_from(body.len().div_ceil(RESPONSE_PERMIT_BYTES)).map_err(|_| ApiError::TooManyAnswers)?;
    let memory = Arc::clone(&state.response_permits).try_acquire_many_owned(permits);
    let memory = memory.map_err(|_| ApiError::TooManyAnswers)?;
    Ok(HttpResponse::Ok()
        .content_type("application/json")
        .body(ChunkedBody::accounted(body, memory)))
}
