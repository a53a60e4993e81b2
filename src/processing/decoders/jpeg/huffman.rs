//! Huffman tables as defined in the file, and lookup tables for decoding (libjpeg-turbo: jdhuff.c, jstdhuff.c).

use super::bits::extend;
use crate::error::ImageError;

/// Bits of the first lookup.
pub(super) const LOOKAHEAD: u32 = 10;

/// A table as DHT defines it: the number of codes of each length from 1 to 16, and their symbols.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct HuffmanSpec {
    counts: [u8; 16],
    symbols: Vec<u8>,
}

impl HuffmanSpec {
    /// As many as `counts` sums to, at most 256.
    pub(super) fn new(counts: [u8; 16], symbols: &[u8]) -> Self {
        Self {
            counts,
            symbols: symbols.to_vec(),
        }
    }
}

/// Entry for the next 10 bits: bits to drop (0: the code is longer), code length, run, size, and the value if it fits.
#[derive(Clone, Copy, Default)]
pub(super) struct Entry(u32);

impl Entry {
    fn new(bits: u32, code_bits: u32, symbol: u8, value: i32) -> Self {
        Self((value as u32) << 16 | u32::from(symbol) << 8 | code_bits << 4 | bits)
    }

    /// Whether the value is part of the entry.
    #[inline(always)]
    pub(super) fn has_value(self) -> bool {
        self.0 >= 1 << 16
    }

    /// Bits to drop.
    #[inline(always)]
    pub(super) fn bits(self) -> u32 {
        self.0 & 15
    }

    /// Bits of the code alone.
    #[inline(always)]
    pub(super) fn code_bits(self) -> u32 {
        self.0 >> 4 & 15
    }

    /// The symbol's low half.
    #[inline(always)]
    pub(super) fn size(self) -> u32 {
        self.0 >> 8 & 15
    }

    /// The symbol's high half.
    #[inline(always)]
    pub(super) fn run(self) -> usize {
        (self.0 >> 12 & 15) as usize
    }

    /// The value, if the entry has one.
    #[inline(always)]
    pub(super) fn value(self) -> i32 {
        self.0 as i32 >> 16
    }
}

/// A lookup table for decoding.
pub(super) struct HuffmanTable {
    lookup: [Entry; 1 << LOOKAHEAD],
    /// Per length: the first code, the number of codes, and the index of the first symbol.
    lengths: [(u32, u32, u32); 17],
    symbols: [u8; 256],
}

impl HuffmanTable {
    /// Checks the counts: no code of all ones, none beyond its length; for `dc`, sizes of at most 15.
    pub(super) fn new(spec: &HuffmanSpec, dc: bool) -> Result<Box<Self>, ImageError> {
        let mut table = Box::new(Self {
            lookup: [Entry::default(); 1 << LOOKAHEAD],
            lengths: [(0, 0, 0); 17],
            symbols: [0; 256],
        });
        let known = table.symbols.get_mut(..spec.symbols.len());
        known
            .ok_or(ImageError::Undecodable)?
            .copy_from_slice(&spec.symbols);
        if dc && spec.symbols.iter().any(|&size| size > 15) {
            return Err(ImageError::Undecodable);
        }
        let (mut code, mut index) = (0u32, 0u32);
        for (length, &count) in (1..=16u32).zip(&spec.counts) {
            table.lengths[length as usize] = (code, u32::from(count), index);
            for _ in 0..count {
                if code + 1 >= 1 << length {
                    return Err(ImageError::Undecodable);
                }
                if length <= LOOKAHEAD {
                    table.fill(length, code, spec.symbols[index as usize]);
                }
                code += 1;
                index += 1;
            }
            code <<= 1;
        }
        Ok(table)
    }

    /// Adds a short code for all bits that can follow it.
    fn fill(&mut self, length: u32, code: u32, symbol: u8) {
        let rest = LOOKAHEAD - length;
        let size = u32::from(symbol & 15);
        for following in 0..1u32 << rest {
            let entry = if size != 0 && size <= rest {
                let value = extend((following >> (rest - size)) as i32, size);
                Entry::new(length + size, length, symbol, value)
            } else {
                Entry::new(length, length, symbol, 0)
            };
            self.lookup[(code << rest | following) as usize] = entry;
        }
    }

    /// The entry of the next 10 bits.
    #[inline(always)]
    pub(super) fn lookup(&self, bits: usize) -> Entry {
        self.lookup[bits & ((1 << LOOKAHEAD) - 1)]
    }

    /// Whether such a code exists, given that no shorter one is its prefix.
    pub(super) fn is_code(&self, length: u32, code: u32) -> bool {
        let (first, count, _) = self.lengths[(length as usize).min(16)];
        code < first + count
    }

    /// Symbol of an existing code.
    #[inline(always)]
    pub(super) fn symbol(&self, length: u32, code: u32) -> u8 {
        let (first, _, index) = self.lengths[(length as usize).min(16)];
        self.symbols[index.wrapping_add(code.wrapping_sub(first)) as usize & 255]
    }
}

/// The standard's tables of section K.3, for files without tables: (DC, AC) for luminance and chrominance.
pub(super) fn standard() -> [(HuffmanSpec, HuffmanSpec); 2] {
    let sizes: [u8; 12] = std::array::from_fn(|size| size as u8);
    [
        (
            HuffmanSpec::new([0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0], &sizes),
            HuffmanSpec::new([0, 2, 1, 3, 3, 2, 4, 3, 5, 5, 4, 4, 0, 0, 1, 0x7d], &LUMINANCE),
        ),
        (
            HuffmanSpec::new([0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0], &sizes),
            HuffmanSpec::new([0, 2, 1, 2, 4, 4, 3, 4, 7, 5, 4, 4, 0, 1, 2, 0x77], &CHROMINANCE),
        ),
    ]
}

/// Table K.5.
#[rustfmt::skip]
const LUMINANCE: [u8; 162] = [
    0x01, 0x02, 0x03, 0x00, 0x04, 0x11, 0x05, 0x12, 0x21, 0x31, 0x41, 0x06, 0x13, 0x51, 0x61, 0x07,
    0x22, 0x71, 0x14, 0x32, 0x81, 0x91, 0xa1, 0x08, 0x23, 0x42, 0xb1, 0xc1, 0x15, 0x52, 0xd1, 0xf0,
    0x24, 0x33, 0x62, 0x72, 0x82, 0x09, 0x0a, 0x16, 0x17, 0x18, 0x19, 0x1a, 0x25, 0x26, 0x27, 0x28,
    0x29, 0x2a, 0x34, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3a, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49,
    0x4a, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59, 0x5a, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68, 0x69,
    0x6a, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7a, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89,
    0x8a, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7,
    0xa8, 0xa9, 0xaa, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8, 0xb9, 0xba, 0xc2, 0xc3, 0xc4, 0xc5,
    0xc6, 0xc7, 0xc8, 0xc9, 0xca, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8, 0xd9, 0xda, 0xe1, 0xe2,
    0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8, 0xe9, 0xea, 0xf1, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8,
    0xf9, 0xfa,
];

/// Table K.6.
#[rustfmt::skip]
const CHROMINANCE: [u8; 162] = [
    0x00, 0x01, 0x02, 0x03, 0x11, 0x04, 0x05, 0x21, 0x31, 0x06, 0x12, 0x41, 0x51, 0x07, 0x61, 0x71,
    0x13, 0x22, 0x32, 0x81, 0x08, 0x14, 0x42, 0x91, 0xa1, 0xb1, 0xc1, 0x09, 0x23, 0x33, 0x52, 0xf0,
    0x15, 0x62, 0x72, 0xd1, 0x0a, 0x16, 0x24, 0x34, 0xe1, 0x25, 0xf1, 0x17, 0x18, 0x19, 0x1a, 0x26,
    0x27, 0x28, 0x29, 0x2a, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3a, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48,
    0x49, 0x4a, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58, 0x59, 0x5a, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68,
    0x69, 0x6a, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7a, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87,
    0x88, 0x89, 0x8a, 0x92, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99, 0x9a, 0xa2, 0xa3, 0xa4, 0xa5,
    0xa6, 0xa7, 0xa8, 0xa9, 0xaa, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8, 0xb9, 0xba, 0xc2, 0xc3,
    0xc4, 0xc5, 0xc6, 0xc7, 0xc8, 0xc9, 0xca, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8, 0xd9, 0xda,
    0xe2, 0xe3, 0xe4, 0xe5, 0xe6, 0xe7, 0xe8, 0xe9, 0xea, 0xf2, 0xf3, 0xf4, 0xf5, 0xf6, 0xf7, 0xf8,
    0xf9, 0xfa,
];
