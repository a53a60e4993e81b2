//! TIFF: strips and tiles of every compression that scanners, fax servers and office programs use, read row by row.
//!
//! The terms are those of TIFF 6.0. A page's directory is checked before memory is allocated for it. Strips and tiles are
//! decompressed as streams, so that the image is never in memory.

mod bands;
mod ccitt;
mod codecs;
mod colour;
mod directory;
mod layout;
mod lzw;
mod predictor;
mod samples;
mod segments;

use directory::Directory;
pub(super) use directory::pages;
use layout::Layout;

use crate::error::ImageError;
use crate::processing::{
    DecodeLimits,
    decoders::{Alpha, Decoded, RowSink},
};

const ORIENTATION: u16 = 274;
const XMP: u16 = 700;

/// Decodes a page, counted from 0. Missing or damaged rows are white and set `truncated`; without a single good row the image is
/// undecodable.
pub(super) fn decode(
    bytes: &[u8],
    page: u32,
    limits: &DecodeLimits,
    alpha: Alpha,
    sink: &mut dyn RowSink,
) -> Result<Decoded, ImageError> {
    let directory = Directory::read(bytes, page).ok_or(ImageError::Undecodable)?;
    let layout = Layout::read(&directory, limits, alpha)?;
    sink.begin(layout.width, layout.height)?;
    let found = bands::decode(&layout, sink)?;
    if !found.any {
        return Err(ImageError::Undecodable);
    }
    Ok(Decoded {
        truncated: found.truncated,
        pages: pages(bytes),
        visible: found.visible,
    })
}

/// A page's orientation, of whatever integer type.
pub(super) fn orientation(bytes: &[u8], page: u32) -> Option<u16> {
    let orientation = Directory::read(bytes, page)?.first(ORIENTATION).ok()??;
    orientation.try_into().ok()
}

/// A page's XMP packet.
pub(super) fn xmp(bytes: &[u8], page: u32) -> Option<&[u8]> {
    let packet = Directory::read(bytes, page)?.values(XMP).ok()??;
    Some(packet.bytes)
}
