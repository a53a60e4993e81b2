//! Strips and tiles: their offsets, and readers of their decompressed bytes.

use std::io::{self, Cursor, Read};

use super::{
    ccitt,
    codecs::{self, PackBits},
    directory::{Directory, Values},
    layout::{Compression, Layout},
    lzw::Lzw,
};
use crate::error::ImageError;

const STRIP_OFFSETS: u16 = 273;
const STRIP_BYTE_COUNTS: u16 = 279;
const TILE_OFFSETS: u16 = 324;
const TILE_BYTE_COUNTS: u16 = 325;

/// Maximum ratio of the bytes of all strips and tiles to those of the file; a truncated file lacks some.
const MAX_CLAIM: u64 = 64;

/// Offsets of the strips or tiles of an image.
pub(super) struct Table<'a> {
    file: &'a [u8],
    offsets: Values<'a>,
    counts: Option<Values<'a>>,
    /// All offsets, sorted, if a count is missing: such a strip ends at the next one.
    sorted: Vec<u64>,
}

impl<'a> Table<'a> {
    /// Reads the table.
    ///
    /// # Errors
    /// [`ImageError`] if strips or tiles overlap, or have far more bytes than the file.
    pub(super) fn read(directory: &Directory<'a>, tiled: bool) -> Result<Self, ImageError> {
        let (offsets, counts) = if tiled {
            (TILE_OFFSETS, TILE_BYTE_COUNTS)
        } else {
            (STRIP_OFFSETS, STRIP_BYTE_COUNTS)
        };
        let offsets = directory.values(offsets)?.ok_or(ImageError::Undecodable)?;
        let mut table = Self {
            file: directory.file,
            offsets,
            counts: directory.values(counts)?,
            sorted: Vec::new(),
        };
        if (0..offsets.len()).any(|index| table.count(index).is_none()) {
            table.sorted = offsets.integers().flatten().collect();
            table.sorted.sort_unstable();
        }
        let (mut claimed, mut held) = (0u64, 0u64);
        for index in 0..offsets.len() {
            claimed = claimed.saturating_add(table.count(index).unwrap_or(0));
            held = held.saturating_add(table.bytes(index, 0).len() as u64);
        }
        let length = table.file.len() as u64;
        if held > length || claimed > length.saturating_mul(MAX_CLAIM) {
            return Err(ImageError::Undecodable);
        }
        Ok(table)
    }

    fn count(&self, index: usize) -> Option<u64> {
        self.counts?.get(index).filter(|count| *count > 0)
    }

    /// Stored bytes of a strip or tile, as far as the file has them; at least `least` if available.
    fn bytes(&self, index: usize, least: usize) -> &'a [u8] {
        let Some(start) = self.offsets.get(index) else {
            return &[];
        };
        let count = self.count(index).unwrap_or_else(|| {
            let after = self.sorted.partition_point(|offset| *offset <= start);
            self.sorted.get(after).map_or(u64::MAX, |next| next - start)
        });
        let end = start
            .saturating_add(count.max(least as u64))
            .min(self.file.len() as u64);
        match (usize::try_from(start), usize::try_from(end)) {
            // No strip starts in the header.
            (Ok(1..), _) => self.file.get(start as usize..end as usize).unwrap_or_default(),
            _ => &[],
        }
    }
}

/// A reader of the decompressed bytes of a strip or tile.
pub(super) struct Segment<'a> {
    bytes: Box<dyn Read + 'a>,
    /// Whether some of its rows are known to be wrong.
    pub(super) damaged: bool,
}

impl<'a> Segment<'a> {
    /// Opens a strip or tile to read `rows` rows. A missing one is empty.
    pub(super) fn open(layout: &Layout<'a>, index: usize, rows: u32) -> Result<Self, ImageError> {
        let mut damaged = false;
        let stored = layout.stored(index, rows);
        let reader = || codecs::stored(stored, layout.turned);
        let bytes: Box<dyn Read + 'a> = match layout.compression {
            _ if stored.is_empty() => Box::new(io::empty()),
            Compression::None => Box::new(reader()),
            Compression::PackBits => Box::new(PackBits::new(reader())),
            Compression::Lzw => Box::new(Lzw::new(reader())),
            Compression::Deflate => codecs::deflate(reader()),
            Compression::Zstd => codecs::zstd(reader())?,
            Compression::Fax(fax) => {
                let (bits, wrong) = ccitt::decode(fax, stored, layout.turned, layout.segment.0, rows);
                if wrong && layout.uncompressed_mode {
                    return Err(ImageError::UnsupportedVariant(
                        "TIFF with fax compression in uncompressed mode".into(),
                    ));
                }
                damaged = wrong;
                Box::new(Cursor::new(bits))
            }
            Compression::Jpeg => return Err(ImageError::Undecodable),
        };
        Ok(Self { bytes, damaged })
    }

    /// Reads one row; false if the data ended or is damaged, so that the row is incomplete.
    pub(super) fn row(&mut self, row: &mut [u8]) -> bool {
        self.bytes.read_exact(row).is_ok()
    }
}

impl<'a> Layout<'a> {
    /// Stored bytes of a strip or tile. The length of uncompressed ones is that of their rows, whatever the counts say.
    pub(super) fn stored(&self, index: usize, rows: u32) -> &'a [u8] {
        let least = if self.compression == Compression::None {
            let groups = (rows as usize).div_ceil(self.subsampling.1);
            self.row_bytes().saturating_mul(groups)
        } else {
            0
        };
        self.table.bytes(index, least)
    }

    /// Maximum memory of one open reader, besides its row.
    pub(super) fn reader_bytes(&self) -> usize {
        match self.compression {
            Compression::None | Compression::PackBits | Compression::Jpeg => 8 << 10,
            Compression::Lzw | Compression::Deflate => 64 << 10,
            Compression::Zstd => codecs::ZSTD_MEMORY,
            Compression::Fax(_) => self
                .row_bytes()
                .saturating_mul(self.segment.1.min(self.height) as usize),
        }
    }
}
