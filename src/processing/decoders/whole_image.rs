//! Images that the image crate decodes as a whole.

use image::{ColorType, ImageDecoder, Limits};

use super::{
    Alpha, Decoded, EXTRA_BYTES, RowSink, WHOLE,
    samples::{Channels, ToRgb},
};
use crate::error::ImageError;
use crate::processing::DecodeLimits;

/// Checks the size in the header, decodes, and passes the rows to `sink`. `format` is the name in errors.
pub(super) fn decode(
    mut decoder: impl ImageDecoder,
    format: &'static str,
    limits: &DecodeLimits,
    alpha: Alpha,
    sink: &mut dyn RowSink,
) -> Result<Decoded, ImageError> {
    let decode_error = |error| decode_error(error, format);
    let (width, height) = decoder.dimensions();
    limits.check(width, height)?;
    let channels = match decoder.color_type() {
        ColorType::L8 => Channels::Grey,
        ColorType::La8 => Channels::GreyAlpha,
        ColorType::Rgb8 => Channels::Rgb,
        ColorType::Rgba8 => Channels::Rgba,
        _ => return Err(ImageError::UnsupportedVariant(format.into())),
    };
    let length = decoder.total_bytes();
    let mut memory = Limits::no_limits();
    memory.max_alloc = Some(length.saturating_mul(2).saturating_add(EXTRA_BYTES as u64));
    decoder.set_limits(memory).map_err(decode_error)?;
    let mut pixels = vec![0; usize::try_from(length).map_err(|_| ImageError::Undecodable)?];
    decoder.read_image(&mut pixels).map_err(decode_error)?;
    let mut rows = ToRgb::new(channels, alpha);
    let mut rgb = vec![0; width as usize * 3];
    sink.begin(width, height)?;
    for samples in pixels.chunks_exact(width as usize * channels.count()) {
        rows.row(samples, &mut rgb);
        sink.row(&rgb)?;
    }
    Ok(Decoded {
        visible: rows.visible,
        ..WHOLE
    })
}

/// Converts an error without its message, which could echo the input.
pub(super) fn decode_error(error: image::ImageError, format: &'static str) -> ImageError {
    match error {
        image::ImageError::Unsupported(_) => ImageError::UnsupportedVariant(format.into()),
        _ => ImageError::Undecodable,
    }
}
