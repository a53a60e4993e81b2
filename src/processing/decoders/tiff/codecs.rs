//! The compressions: readers of the bytes that a strip or tile unpacks to.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::ZlibDecoder;

/// Bytes that are unpacked at a time.
const BUFFER: usize = 4096;
/// The most that one Zstandard decoder keeps for references back.
pub(super) const ZSTD_WINDOW_LOG: u32 = 23;

/// The stored bytes of a strip or tile, in each of which the bits may be turned (FillOrder 2).
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

/// Zstandard, whose decoder takes no more memory than a window of `ZSTD_WINDOW_LOG` bits needs.
pub(super) fn zstd<'a>(stored: Box<dyn BufRead + 'a>) -> io::Result<Box<dyn Read + 'a>> {
    let mut decoder = ::zstd::stream::read::Decoder::with_buffer(stored)?;
    decoder.window_log_max(ZSTD_WINDOW_LOG)?;
    Ok(Box::new(decoder))
}

/// Whether Zstandard data refers back further than `ZSTD_WINDOW_LOG` allows.
pub(super) fn zstd_window_is_large(bytes: &[u8]) -> bool {
    match *bytes {
        [0x28, 0xb5, 0x2f, 0xfd, descriptor, window, ..] if descriptor & 0x20 == 0 => {
            let (exponent, mantissa) = (u32::from(window >> 3), u64::from(window & 7));
            let base = 1u64 << (10 + exponent);
            base + base / 8 * mantissa > 1 << ZSTD_WINDOW_LOG
        }
        _ => false,
    }
}

/// PackBits: runs of equal bytes, and of different ones.
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
