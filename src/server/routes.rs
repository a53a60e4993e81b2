//! Request handlers.

use std::sync::Arc;

use actix_web::{HttpRequest, HttpResponse, web};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    benchmark::read_benchmarks,
    errors::ApiError,
    http::{ChunkedBody, arrival},
    state::{RESPONSE_PERMIT_BYTES, ServerState},
    types::{Analysis, AnalyzeForm, Benchmarks, ErrorBody, ExtractForm, Extraction, Figures, Health},
    upload::{Upload, UploadedFile, read_upload},
};
use crate::engine::{EngineState, ModelInfo, ReadRequest};
use crate::error::ImageError;
use crate::generation::FinishReason;
use crate::processing::{DecodeLimits, DecodedPage, decode_page, decoder_memory};
use crate::prompts::EXTRACTION_PROMPT;
use crate::records::timestamp;

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
        timestamp: timestamp(),
    })
}

/// Extracts the text of a page with the default prompt.
#[utoipa::path(
    post,
    path = "/extract",
    request_body(content = ExtractForm, content_type = "multipart/form-data"),
    responses(
        (status = 200, description = "The page's text", body = Extraction),
        (status = 400, description = "Empty or undecodable image, over 40 megapixels, or a malformed form", body = ErrorBody),
        (status = 408, description = "The body took longer than 30 s to arrive, or came more slowly than 1024 bytes a second", body = ErrorBody),
        (status = 413, description = "The file is larger than 20 MiB", body = ErrorBody),
        (status = 422, description = "No file, more tokens (prompt, page and answer) than the model's context holds, or a field outside its range", body = ErrorBody),
        (status = 500, description = "Internal error", body = ErrorBody),
        (status = 503, description = "Model not loaded, queue full or too slow, too many connections, or shutting down; see Retry-After", body = ErrorBody),
        (status = 504, description = "The reading took longer than 300 s", body = ErrorBody),
    )
)]
pub(super) async fn extract(
    request: HttpRequest,
    state: web::Data<ServerState>,
) -> Result<web::Json<Extraction>, ApiError> {
    let upload = read_upload(&request, &state).await?;
    let answer = answer(&request, &state, upload, EXTRACTION_PROMPT.to_owned()).await?;
    Ok(web::Json(Extraction {
        extracted_content: answer.text,
        warnings: answer.warnings,
        figures: answer.figures,
        model_info: answer.model_info,
        timestamp: timestamp(),
    }))
}

/// Answers a prompt about a page.
#[utoipa::path(
    post,
    path = "/analyze",
    request_body(content = AnalyzeForm, content_type = "multipart/form-data"),
    responses(
        (status = 200, description = "The answer", body = Analysis),
        (status = 400, description = "Empty or undecodable image, over 40 megapixels, or a malformed form", body = ErrorBody),
        (status = 408, description = "The body took longer than 30 s to arrive, or came more slowly than 1024 bytes a second", body = ErrorBody),
        (status = 413, description = "The file is larger than 20 MiB, or a text field larger than 64 KiB", body = ErrorBody),
        (status = 422, description = "No file, a prompt over 8192 characters, more tokens (prompt, page and answer) than the model's context holds, or a field outside its range", body = ErrorBody),
        (status = 500, description = "Internal error", body = ErrorBody),
        (status = 503, description = "Model not loaded, queue full or too slow, too many connections, or shutting down; see Retry-After", body = ErrorBody),
        (status = 504, description = "The reading took longer than 300 s", body = ErrorBody),
    )
)]
pub(super) async fn analyze(
    request: HttpRequest,
    state: web::Data<ServerState>,
) -> Result<web::Json<Analysis>, ApiError> {
    let mut upload = read_upload(&request, &state).await?;
    let prompt = upload.prompt.take();
    let prompt_used = prompt.unwrap_or_else(|| EXTRACTION_PROMPT.to_owned());
    let answer = answer(&request, &state, upload, prompt_used.clone()).await?;
    Ok(web::Json(Analysis {
        analysis: answer.text,
        prompt_used,
        warnings: answer.warnings,
        figures: answer.figures,
        model_info: answer.model_info,
        timestamp: timestamp(),
    }))
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

struct PageAnswer {
    text: String,
    warnings: Vec<String>,
    figures: Figures,
    model_info: ModelInfo,
}

/// Reserves a queue slot, decodes the image, then reads it. Dropped when the client disconnects, which cancels each step.
async fn answer(
    http: &HttpRequest,
    state: &ServerState,
    upload: Upload,
    prompt: String,
) -> Result<PageAnswer, ApiError> {
    let slot = state.engine.reserve_since(arrival(http))?;
    let decoded = tokio::time::timeout_at(slot.expires().into(), decoded(state, upload.file)).await;
    // Its memory counts until the response is ready.
    let (DecodedPage { page, warnings }, _memory) = decoded.map_err(|_| slot.expired())??;
    let mut request = ReadRequest::page(prompt, page);
    request.overrides = upload.overrides;
    let answer = slot.submit(request)?.answer().await?;
    if answer.reading.finish_reason == FinishReason::Deadline {
        let seconds = state.options.generation_deadline_seconds;
        return Err(ApiError::GenerationDeadline { seconds });
    }
    let figures = Figures::from(&answer);
    Ok(PageAnswer {
        text: answer.reading.text,
        warnings: warnings.iter().map(ToString::to_string).collect(),
        figures,
        model_info: answer.model_info,
    })
}

/// Decodes on a blocking thread, with limited concurrency, scaled to the model's page size. Releases the file's memory; the returned
/// permits account for the page.
async fn decoded(
    state: &ServerState,
    file: UploadedFile,
) -> Result<(DecodedPage, OwnedSemaphorePermit), ApiError> {
    let limits = DecodeLimits {
        max_pixels: state.options.max_megapixels * 1_000_000,
    };
    let bounds = state.engine.variants().first().and_then(|variant| variant.bounds);
    let need = kibibytes(decoder_memory(&file.bytes, &limits, bounds.as_ref())?);
    let limit = state.options.decoded_kib();
    if need > limit {
        return Err(ApiError::DecodeMemory {
            needed_mib: need.div_ceil(1024),
            limit_mib: limit / 1024,
        });
    }
    let permit = Arc::clone(&state.decode_permits).acquire_owned().await;
    let permit = permit.map_err(|_| ApiError::Internal)?;
    let memory = Arc::clone(&state.image_memory).acquire_many_owned(need).await;
    let mut memory = memory.map_err(|_| ApiError::Internal)?;
    let span = tracing::Span::current();
    let decoded = web::block(move || {
        let _span = span.entered();
        // Held by the closure: a disconnect must not allow another decoding while this one runs.
        let _permit = permit;
        let decoded = decode_page(&file.bytes, &limits, bounds.as_ref())?;
        let kept = kibibytes(decoded.page.pixels.len() as u64).min(need);
        drop(memory.split((need - kept) as usize));
        Ok::<_, ImageError>((decoded, memory))
    })
    .await;
    // `decode_page` catches panics of decoders; another one counts as an undecodable image.
    Ok(decoded.map_err(|_| ImageError::Undecodable)??)
}

fn kibibytes(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX)
}
