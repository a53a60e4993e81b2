//! Deterministic, fast PNG writer for pages.

use std::io::{self, Write};

use png::{BitDepth, ColorType, Compression, Encoder, Filter};

use super::GreyPage;
use crate::processing::RgbPage;

/// Writes a grey page as PNG.
pub fn encode_grey(page: &GreyPage, out: impl Write) -> io::Result<()> {
    encode(out, (page.width, page.height), ColorType::Grayscale, &page.pixels)
}

/// Writes an RGB page as PNG.
pub fn encode_rgb(page: &RgbPage, out: impl Write) -> io::Result<()> {
    encode(out, (page.width, page.height), ColorType::Rgb, &page.pixels)
}

fn encode(out: impl Write, (width, height): (u32, u32), colour: ColorType, pixels: &[u8]) -> io::Result<()> {
    let mut encoder = Encoder::new(out, width, height);
    encoder.set_color(colour);
    encoder.set_depth(BitDepth::Eight);
    encoder.set_compression(Compression::Fast);
    // The row above predicts paper and vertical strokes, which leaves runs of zeros.
    encoder.set_filter(Filter::Up);
    let attempt = || {
        let mut writer = encoder.write_header()?;
        writer.write_image_data(pixels)?;
        writer.finish()
    };
    attempt().map_err(|error: png::EncodingError| match error {
        png::EncodingError::IoError(error) => error,
        other => io::Error::other(other),
    })
}
