//! GIF: the first frame on a transparent canvas. Its palette indices are in memory, one byte per pixel.

use gif::{ColorOutput, DecodeOptions, DecodingError, MemoryLimit};

use super::{
    Alpha, Decoded, EXTRA_BYTES, RowSink, WHOLE,
    samples::{Channels, ToRgb},
};
use crate::error::ImageError;
use crate::processing::DecodeLimits;

/// Colour of the canvas outside the frame.
const UNCOVERED: [u8; 4] = [255, 255, 255, 0];

/// Decodes the first frame.
pub(super) fn decode(
    bytes: &[u8],
    limits: &DecodeLimits,
    alpha: Alpha,
    sink: &mut dyn RowSink,
) -> Result<Decoded, ImageError> {
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    let memory = limits.max_pixels.saturating_add(EXTRA_BYTES as u64);
    options.set_memory_limit(MemoryLimit::Bytes(
        memory.try_into().map_err(|_| ImageError::Undecodable)?,
    ));
    let mut decoder = options.read_info(bytes).map_err(decode_error)?;
    let canvas = (u32::from(decoder.width()), u32::from(decoder.height()));
    limits.check(canvas.0, canvas.1)?;
    let frame = decoder
        .next_frame_info()
        .map_err(decode_error)?
        .ok_or(ImageError::Undecodable)?;
    let (left, top) = (usize::from(frame.left), u32::from(frame.top));
    let (frame_width, frame_height) = (u32::from(frame.width), u32::from(frame.height));
    let transparent = frame.transparent;
    // A frame may exceed its canvas, which then grows, as in Pillow.
    let width = canvas.0.max(left as u32 + frame_width);
    let height = canvas.1.max(top + frame_height);
    if limits.check(width, height).is_err() || limits.check(frame_width, frame_height).is_err() {
        return Err(ImageError::Undecodable);
    }
    let palette = decoder.palette().map_err(decode_error)?.to_vec();
    let colours = palette.as_chunks::<3>().0;
    let mut indices = vec![0; decoder.buffer_size()];
    decoder.read_into_buffer(&mut indices).map_err(decode_error)?;

    let pixel = |index: u8| {
        let [r, g, b] = colours.get(usize::from(index)).copied().unwrap_or_default();
        let alpha = if transparent == Some(index) { 0 } else { 255 };
        [r, g, b, alpha]
    };
    let mut rows = ToRgb::new(Channels::Rgba, alpha);
    let mut samples = vec![0u8; width as usize * 4];
    let mut rgb = vec![0; width as usize * 3];
    sink.begin(width, height)?;
    let mut frame_rows = indices.chunks_exact(frame_width as usize);
    for y in 0..height {
        samples.as_chunks_mut::<4>().0.fill(UNCOVERED);
        if let Some(row) = (y >= top).then(|| frame_rows.next()).flatten() {
            let places = samples[left * 4..].as_chunks_mut::<4>().0.iter_mut();
            places.zip(row).for_each(|(place, index)| *place = pixel(*index));
        }
        rows.row(&samples, &mut rgb);
        sink.row(&rgb)?;
    }
    Ok(Decoded {
        visible: rows.visible,
        ..WHOLE
    })
}

/// One byte per pixel of the first frame, which is rarely larger than its canvas.
pub(super) fn memory(bytes: &[u8], limits: &DecodeLimits) -> Result<u64, ImageError> {
    let [_, _, _, _, _, _, w0, w1, h0, h1] = *bytes.first_chunk().ok_or(ImageError::Undecodable)?;
    let (width, height) = (u16::from_le_bytes([w0, w1]), u16::from_le_bytes([h0, h1]));
    limits.check(u32::from(width), u32::from(height))?;
    Ok(u64::from(width) * u64::from(height))
}

/// Converts an error without its message, which could echo the input.
fn decode_error(_: DecodingError) -> ImageError {
    ImageError::Undecodable
}
