//! Decoding uploaded images, within a budget of memory.

use std::sync::Arc;

use actix_web::web;
use tokio::sync::OwnedSemaphorePermit;

use super::{errors::ApiError, state::ServerState};
use crate::error::ImageError;
use crate::processing::{DecodeLimits, DecodedPage, PixelBounds, decode_page, decoder_memory, picture_kind};

/// Decodes on a blocking thread, with limited concurrency, scaled to `bounds`. Drops `file` when it is decoded; the returned permits
/// account for the page. The request holds `held` permits already, of other pages.
pub(super) async fn decode(
    state: &ServerState,
    file: impl AsRef<[u8]> + Send + 'static,
    bounds: Option<PixelBounds>,
    held: usize,
) -> Result<(DecodedPage, OwnedSemaphorePermit), ApiError> {
    let kind = picture_kind(file.as_ref());
    let decoded = decode_within(state, file, bounds, held).await;
    state.metrics.page(kind, decoded.is_ok());
    decoded
}

async fn decode_within(
    state: &ServerState,
    file: impl AsRef<[u8]> + Send + 'static,
    bounds: Option<PixelBounds>,
    held: usize,
) -> Result<(DecodedPage, OwnedSemaphorePermit), ApiError> {
    let limits = DecodeLimits {
        max_pixels: state.options.max_megapixels * 1_000_000,
    };
    let need = kibibytes(decoder_memory(file.as_ref(), &limits, bounds.as_ref())?);
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
    let span = tracing::Span::current();
    let decoded = web::block(move || {
        let _span = span.entered();
        // Held by the closure: a disconnect must not allow another decoding while this one runs.
        let _permit = permit;
        let decoded = decode_page(file.as_ref(), &limits, bounds.as_ref())?;
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
