//! CCITT bilevel compression: modified Huffman (RLE), Group 3 and Group 4.

use hayro_ccitt::{DecodeSettings, Decoder, DecoderContext, EncodingMode};

/// Maximum bytes of a strip or tile whose bit order is reversed; 40 million alternating pixels take less.
const MAX_TURNED: usize = 24 << 20;

/// Variant of the compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fax {
    /// Compression 2: rows start at whole bytes, without end-of-line codes.
    Rle,
    /// Compression 3, one-dimensional.
    Group3,
    /// Compression 3, two-dimensional: a bit after every end-of-line code selects the coding of the row.
    Group3TwoDimensional,
    /// Compression 4.
    Group4,
}

/// Rows of packed bits; black is 1.
struct Rows {
    bits: Vec<u8>,
    row_bytes: usize,
}

impl Decoder for Rows {
    fn push_row(&mut self, changes: &[u32]) {
        let start = self.bits.len();
        self.bits.resize(start + self.row_bytes, 0);
        let row = &mut self.bits[start..];
        let end = row.len() * 8;
        for run in changes.chunks(2) {
            let to = run.get(1).map_or(end, |to| *to as usize);
            blacken(row, run[0] as usize, to.min(end));
        }
    }
}

/// Sets the bits `from..to`.
fn blacken(row: &mut [u8], from: usize, to: usize) {
    if from >= to {
        return;
    }
    let (first, last) = (from / 8, (to - 1) / 8);
    let (head, tail) = (0xff_u8 >> (from % 8), 0xff_u8 << (7 - (to - 1) % 8));
    if first == last {
        row[first] |= head & tail;
    } else {
        row[first] |= head;
        row[first + 1..last].fill(0xff);
        row[last] |= tail;
    }
}

/// Decodes the rows of a strip or tile, fewer if the data ends early. Returns whether a row is damaged.
pub(super) fn decode(fax: Fax, stored: &[u8], turned: bool, width: u32, rows: u32) -> (Vec<u8>, bool) {
    let copy: Vec<u8>;
    let stored = if turned {
        let bytes = stored.iter().take(MAX_TURNED);
        copy = bytes.map(|byte| byte.reverse_bits()).collect();
        &copy
    } else {
        stored
    };
    let run = |strict| {
        let mut context = DecoderContext::new(DecodeSettings {
            columns: width,
            rows,
            end_of_block: fax != Fax::Rle,
            end_of_line: false,
            rows_are_byte_aligned: fax == Fax::Rle,
            encoding: match fax {
                Fax::Rle | Fax::Group3 => EncodingMode::Group3_1D,
                Fax::Group3TwoDimensional => EncodingMode::Group3_2D,
                Fax::Group4 => EncodingMode::Group4,
            },
            strict,
        });
        let mut made = Rows {
            bits: Vec::new(),
            row_bytes: (width as usize).div_ceil(8),
        };
        let result = hayro_ccitt::decode(stored, &mut made, &mut context);
        (made.bits, result.is_err())
    };
    match run(true) {
        // Group 4 cannot resynchronize.
        (_, true) if fax != Fax::Group4 => (run(false).0, true),
        result => result,
    }
}
