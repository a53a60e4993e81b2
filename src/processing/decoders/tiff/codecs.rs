//! Decompression: readers of the bytes of a strip or tile.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::ZlibDecoder;
use ruzstd::decoding::StreamingDecoder;
use ruzstd::decoding::errors::FrameDecoderError;

use crate::error::ImageError;

/// Bytes decompressed at a time.
const BUFFER: usize = 4096;
/// Maximum window of a Zstandard frame, bytes.
const ZSTD_WINDOW: u64 = 8 << 20;
/// Memory of one Zstandard decoder, bytes: the window, two blocks of slack, literals and tables.
pub(super) const ZSTD_MEMORY: usize = (8 << 20) + (768 << 10);

/// The stored bytes of a strip or tile, with reversed bit order for FillOrder 2.
pub(super) fn stored<'a>(bytes: &'a [u8], turned: bool) -> Box<dyn BufRead + 'a> {
    if turned {
        Box::new(BufReader::with_capacity(BUFFER, Turned(bytes)))
    } else {
        Box::new(bytes)
    }
}

struct Turned<'a>(&'a [u8]);

impl Read for Turned<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read(out)?;
        for byte in &mut out[..count] {
            *byte = byte.reverse_bits();
        }
        Ok(count)
    }
}

/// Deflate with zlib's header.
pub(super) fn deflate<'a>(stored: Box<dyn BufRead + 'a>) -> Box<dyn Read + 'a> {
    Box::new(ZlibDecoder::new(stored))
}

/// Zstandard, one frame; [`ImageError::UnsupportedVariant`] if its window is larger than [`ZSTD_WINDOW`].
pub(super) fn zstd<'a>(stored: Box<dyn BufRead + 'a>) -> Result<Box<dyn Read + 'a>, ImageError> {
    match StreamingDecoder::new_with_max_window_size(stored, ZSTD_WINDOW) {
        Ok(decoder) => Ok(Box::new(decoder)),
        Err(FrameDecoderError::WindowSizeTooBig { .. }) => Err(ImageError::UnsupportedVariant(
            "TIFF with a Zstandard window of more than 8 MiB".into(),
        )),
        // A frame with a damaged header has no rows.
        Err(_) => Ok(Box::new(io::empty())),
    }
}

/// PackBits: runs of equal bytes, and literal runs.
pub(super) struct PackBits<'a> {
    stored: Box<dyn BufRead + 'a>,
    /// Bytes left of the run, and the byte it repeats; `None` copies.
    left: usize,
    repeated: Option<u8>,
}

impl<'a> PackBits<'a> {
    /// A reader at the first run.
    pub(super) fn new(stored: Box<dyn BufRead + 'a>) -> Self {
        Self {
            stored,
            left: 0,
            repeated: None,
        }
    }

    fn byte(&mut self) -> io::Result<Option<u8>> {
        let byte = self.stored.fill_buf()?.first().copied();
        self.stored.consume(usize::from(byte.is_some()));
        Ok(byte)
    }
}

impl Read for PackBits<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.left == 0 {
            match self.byte()? {
                None => return Ok(0),
                Some(128) => {}
                Some(literal @ 0..128) => (self.left, self.repeated) = (usize::from(literal) + 1, None),
                Some(repeats) => {
                    let Some(byte) = self.byte()? else {
                        return Ok(0);
                    };
                    (self.left, self.repeated) = (257 - usize::from(repeats), Some(byte));
                }
            }
        }
        let most = self.left.min(out.len());
        let out = &mut out[..most];
        let count = match self.repeated {
            Some(byte) => {
                out.fill(byte);
                most
            }
            None => self.stored.read(out)?,
        };
        self.left -= count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

    fn unpacked(frame: &[u8]) -> Result<Vec<u8>, ImageError> {
        let mut bytes = Vec::new();
        zstd(Box::new(Cursor::new(frame.to_vec())))?
            .read_to_end(&mut bytes)
            .expect("a whole frame");
        Ok(bytes)
    }

    #[test]
    fn a_zstandard_frame_is_read_and_a_large_window_is_refused() {
        // One raw block in a frame of a single segment.
        let raw = [&MAGIC[..], &[0x20, 3, 0x19, 0, 0], b"abc"].concat();
        assert_eq!(unpacked(&raw).expect("a frame"), b"abc");
        let window_of_16_mib = [&MAGIC[..], &[0, 14 << 3, 0x19, 0, 0], b"abc"].concat();
        let segment_of_9_mib = [
            &MAGIC[..],
            &[0xa0],
            &(9u32 << 20).to_le_bytes(),
            &[0x19, 0, 0],
            b"abc",
        ]
        .concat();
        for frame in [window_of_16_mib, segment_of_9_mib] {
            let refused = unpacked(&frame);
            assert!(
                matches!(refused, Err(ImageError::UnsupportedVariant(_))),
                "{refused:?}"
            );
        }
        assert_eq!(unpacked(b"no frame at all").expect("no rows"), b"");
    }
}
