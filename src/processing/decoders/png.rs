//! PNG, row by row. Seven decoders read the passes of an interlaced image in parallel, so that it need not be in memory.

use std::io::Cursor;

use png::{BitDepth, ColorType, Decoder, DecodingError, Limits, Reader, Transformations};

use super::{
    Alpha, Decoded, EXTRA_BYTES, RowSink, WHOLE,
    samples::{Channels, ToRgb, narrowed},
};
use crate::error::ImageError;
use crate::processing::DecodeLimits;

type PngReader<'a> = Reader<Cursor<&'a [u8]>>;

/// Decodes a PNG, or the default image of an animated one.
pub(super) fn decode(
    bytes: &[u8],
    limits: &DecodeLimits,
    alpha: Alpha,
    sink: &mut dyn RowSink,
) -> Result<Decoded, ImageError> {
    let mut reader = open(bytes)?;
    let info = reader.info();
    let (width, height, interlaced) = (info.width, info.height, info.interlaced);
    limits.check(width, height)?;
    let (colour, depth) = reader.output_color_type();
    let channels = match colour {
        ColorType::Grayscale => Channels::Grey,
        ColorType::GrayscaleAlpha => Channels::GreyAlpha,
        ColorType::Rgb => Channels::Rgb,
        ColorType::Rgba => Channels::Rgba,
        ColorType::Indexed => return Err(ImageError::Undecodable),
    };
    let wide = depth == BitDepth::Sixteen;
    let mut rows = ToRgb::new(channels, alpha);
    let mut rgb = vec![0; width as usize * 3];
    sink.begin(width, height)?;
    let ended = if interlaced {
        let mut passes = open_passes(bytes, width, height)?;
        let mut samples = vec![0; width as usize * channels.count()];
        for y in 0..height {
            interlaced_row(&mut passes, y, channels.count(), wide, &mut samples)?;
            rows.row(&samples, &mut rgb);
            sink.row(&rgb)?;
        }
        passes.last_mut().is_some_and(|last| last.reader.finish().is_ok())
    } else {
        let mut samples = Vec::new();
        for _ in 0..height {
            let row = reader
                .next_row()
                .map_err(decode_error)?
                .ok_or(ImageError::Undecodable)?;
            rows.row(eight_bits(row.data(), wide, &mut samples), &mut rgb);
            sink.row(&rgb)?;
        }
        reader.finish().is_ok()
    };
    Ok(Decoded {
        // All rows are present, but not the checksum.
        truncated: !ended,
        visible: rows.visible,
        ..WHOLE
    })
}

/// Opens a reader of expanded samples: palettes as colours, at least 8 bits, transparent colours as alpha.
fn open(bytes: &[u8]) -> Result<PngReader<'_>, ImageError> {
    let limits = Limits { bytes: EXTRA_BYTES };
    let mut decoder = Decoder::new_with_limits(Cursor::new(bytes), limits);
    decoder.set_transformations(Transformations::EXPAND);
    // The orientation is read elsewhere: damaged text must not prevent decoding.
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    decoder.read_info().map_err(decode_error)
}

fn eight_bits<'a>(samples: &'a [u8], wide: bool, narrow: &'a mut Vec<u8>) -> &'a [u8] {
    if !wide {
        return samples;
    }
    narrow.clear();
    let wide = samples.as_chunks::<2>().0.iter();
    narrow.extend(wide.map(|sample| narrowed(u16::from_be_bytes(*sample))));
    narrow
}

/// A pass of Adam7: its pixels start at `x`, `y` and are `dx`, `dy` apart.
struct Pass<'a> {
    x: u32,
    y: u32,
    dx: u32,
    dy: u32,
    reader: PngReader<'a>,
    narrow: Vec<u8>,
}

/// Opens a reader for each pass with pixels, positioned at the pass.
fn open_passes(bytes: &[u8], width: u32, height: u32) -> Result<Vec<Pass<'_>>, ImageError> {
    const ADAM7: [[u32; 4]; 7] = [
        [0, 0, 8, 8],
        [4, 0, 8, 8],
        [0, 4, 4, 8],
        [2, 0, 4, 4],
        [0, 2, 2, 4],
        [1, 0, 2, 2],
        [0, 1, 1, 2],
    ];
    let mut passes: Vec<Pass> = Vec::new();
    let mut rows_before = 0;
    for [x, y, dx, dy] in ADAM7 {
        if x >= width || y >= height {
            continue;
        }
        let mut reader = open(bytes)?;
        for _ in 0..rows_before {
            reader
                .next_interlaced_row()
                .map_err(decode_error)?
                .ok_or(ImageError::Undecodable)?;
        }
        rows_before += (height - y).div_ceil(dy);
        passes.push(Pass {
            x,
            y,
            dx,
            dy,
            reader,
            narrow: Vec::new(),
        });
    }
    Ok(passes)
}

/// Merges the samples of row `y` from its passes.
fn interlaced_row(
    passes: &mut [Pass<'_>],
    y: u32,
    channels: usize,
    wide: bool,
    samples: &mut [u8],
) -> Result<(), ImageError> {
    for pass in passes {
        if y % pass.dy != pass.y {
            continue;
        }
        let row = pass
            .reader
            .next_interlaced_row()
            .map_err(decode_error)?
            .ok_or(ImageError::Undecodable)?;
        let row = eight_bits(row.data(), wide, &mut pass.narrow);
        let places = samples
            .chunks_exact_mut(channels)
            .skip(pass.x as usize)
            .step_by(pass.dx as usize);
        for (place, pixel) in places.zip(row.chunks_exact(channels)) {
            place.copy_from_slice(pixel);
        }
    }
    Ok(())
}

/// Converts an error without its message, which could echo the input.
fn decode_error(_: DecodingError) -> ImageError {
    ImageError::Undecodable
}
