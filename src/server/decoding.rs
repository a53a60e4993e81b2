//! Decoding uploaded files, within a budget of memory.

use std::sync::Arc;

use actix_web::web;
use tokio::sync::OwnedSemaphorePermit;

use super::{errors::ApiError, state::ServerState};
use crate::documents::{self, Document, DocumentPage, FileBytes, Kind, OpenOptions};
use crate::error::{DocumentError, ImageError};
use crate::processing::{DecodeLimits, DecodedPage, PixelBounds, decode_page, decoder_memory, picture_kind};

/// Opens a file on a blocking thread, with limited concurrency. `file` is dropped with the document.
pub(super) async fn open(
    state: &ServerState,
    file: impl AsRef<[u8]> + Send + Sync + 'static,
    password: Option<String>,
) -> Result<Document, ApiError> {
    let kind = Kind::of(file.as_ref());
    let options = OpenOptions {
        limits: limits(state),
        dpi: state.options.dpi,
        password,
        decoder: state.decoder.clone(),
    };
    let file: FileBytes = Arc::new(file);
    let opened = match kind {
        // A picture's pages are counted in its headers.
        None | Some(Kind::Picture(_)) => documents::open(file, &options).map_err(ApiError::from),
        Some(Kind::Pdf | Kind::Dicom) => {
            on_blocking_thread(state, move || documents::open(file, &options)).await
        }
    };
    if opened.is_err() {
        state.metrics.page(kind.map(Kind::name), false);
    }
    opened
}

/// Decodes a page of a document on a blocking thread, with limited concurrency, scaled to `bounds`. The returned permits account for the
/// page. The request holds `held` permits already, of other pages.
pub(super) async fn decode_document_page(
    state: &ServerState,
    document: &Document,
    number: u32,
    bounds: Option<PixelBounds>,
    held: usize,
) -> Result<(DocumentPage, OwnedSemaphorePermit), ApiError> {
    let decoded = match document.page_memory(bounds.as_ref()) {
        Ok(need) => {
            let document = document.clone();
            let decode = move || document.page(number, bounds.as_ref());
            within_memory(state, need, held, decode, |page| page.page.pixels.len()).await
        }
        Err(error) => Err(error.into()),
    };
    state.metrics.page(Some(document.kind().name()), decoded.is_ok());
    decoded
}

/// As [`decode_document_page`], for the first page of a picture. Drops `file` when it is decoded.
pub(super) async fn decode(
    state: &ServerState,
    file: impl AsRef<[u8]> + Send + 'static,
    bounds: Option<PixelBounds>,
    held: usize,
) -> Result<(DecodedPage, OwnedSemaphorePermit), ApiError> {
    let kind = picture_kind(file.as_ref());
    let limits = limits(state);
    let decoded = match decoder_memory(file.as_ref(), &limits, bounds.as_ref()) {
        Ok(need) => {
            let decode = move || Ok(decode_page(file.as_ref(), &limits, bounds.as_ref())?);
            within_memory(state, need, held, decode, |page| page.page.pixels.len()).await
        }
        Err(error) => Err(error.into()),
    };
    state.metrics.page(kind, decoded.is_ok());
    decoded
}

fn limits(state: &ServerState) -> DecodeLimits {
    DecodeLimits {
        max_pixels: state.options.max_megapixels * 1_000_000,
    }
}

/// Runs `decode`, which takes `need` bytes; of these the permits account for the bytes that `kept` counts.
async fn within_memory<T: Send + 'static>(
    state: &ServerState,
    need: u64,
    held: usize,
    decode: impl FnOnce() -> Result<T, DocumentError> + Send + 'static,
    kept: impl FnOnce(&T) -> usize + Send + 'static,
) -> Result<(T, OwnedSemaphorePermit), ApiError> {
    let need = kibibytes(need);
    let limit = state.options.decoded_kib();
    let total = need.saturating_add(u32::try_from(held).unwrap_or(u32::MAX));
    if total > limit {
        return Err(ApiError::DecodeMemory {
            needed_mib: total.div_ceil(1024),
            limit_mib: limit / 1024,
        });
    }
    let permit = Arc::clone(&state.decode_permits).acquire_owned().await;
    let permit = permit.map_err(|_| ApiError::Internal)?;
    let memory = Arc::clone(&state.image_memory).acquire_many_owned(need).await;
    let mut memory = memory.map_err(|_| ApiError::Internal)?;
    blocking(move || {
        // Held by the closure: a disconnect must not allow another decoding while this one runs.
        let _permit = permit;
        let decoded = decode()?;
        let kept = kibibytes(kept(&decoded) as u64).min(need);
        drop(memory.split((need - kept) as usize));
        Ok((decoded, memory))
    })
    .await
}

async fn on_blocking_thread<T: Send + 'static>(
    state: &ServerState,
    work: impl FnOnce() -> Result<T, DocumentError> + Send + 'static,
) -> Result<T, ApiError> {
    let permit = Arc::clone(&state.decode_permits).acquire_owned().await;
    let permit = permit.map_err(|_| ApiError::Internal)?;
    blocking(move || {
        let _permit = permit;
        work()
    })
    .await
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DocumentError> + Send + 'static,
) -> Result<T, ApiError> {
    let span = tracing::Span::current();
    let done = web::block(move || {
        let _span = span.entered();
        work()
    });
    // Panics of decoders are caught where they run; another one counts as an undecodable file.
    Ok(done.await.map_err(|_| ImageError::Undecodable)??)
}

fn kibibytes(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX)
}
