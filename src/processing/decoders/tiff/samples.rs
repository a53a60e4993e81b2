//! Stored samples → 8 bits.

use crate::processing::decoders::samples::narrowed;

/// Number format of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// Unsigned integer.
    Unsigned,
    /// Floating point, from 0.0 to 1.0.
    Float,
}

/// Format of samples.
#[derive(Debug, Clone)]
pub(super) struct Samples {
    bits: usize,
    format: Format,
    big_endian: bool,
    /// 8-bit values of samples of up to 8 bits.
    levels: Vec<u8>,
    /// Whether the first channel is a palette index, which is not scaled.
    indexed: bool,
}

/// Source and destination of one sample of every pixel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pick {
    /// Index among the samples of a stored pixel, and their number.
    pub(super) from: (usize, usize),
    /// Index among the channels of a pixel, and their number.
    pub(super) to: (usize, usize),
}

impl Samples {
    /// Samples of 1 to 16 bits, or floating-point ones of 16, 32 or 64.
    pub(super) fn new(bits: usize, format: Format, big_endian: bool, indexed: bool) -> Self {
        let most = (1u32 << bits.min(8)) - 1;
        let levels = (0..=most).map(|level| ((level * 255 + most / 2) / most) as u8);
        Self {
            bits,
            format,
            big_endian,
            levels: levels.collect(),
            indexed,
        }
    }

    /// Bits of one sample.
    pub(super) fn bits(&self) -> usize {
        self.bits
    }

    /// Writes one sample of every pixel of `row` to `out` as 8 bits, for as many pixels as fit.
    pub(super) fn unpack(&self, row: &[u8], pick: Pick, out: &mut [u8]) {
        match (self.bits, self.format) {
            (8, _) => self.bytes(row, pick, out),
            (16, Format::Unsigned) => {
                self.numbers(row, pick, out, |bytes| narrowed(u16::from_be_bytes(bytes)));
            }
            (16, Format::Float) => self.numbers(row, pick, out, |bytes| {
                level(half::f16::from_be_bytes(bytes).to_f32())
            }),
            (32, _) => self.numbers(row, pick, out, |bytes| level(f32::from_be_bytes(bytes))),
            (64, _) => self.numbers(row, pick, out, |bytes| level(f64::from_be_bytes(bytes) as f32)),
            (1 | 2 | 4, _) if pick.from.1 == 1 && pick.to.1 == 1 => self.packed(row, out),
            _ => self.bit_strings(row, pick, out),
        }
    }

    fn stays(&self, pick: Pick) -> bool {
        self.indexed && pick.to.0 == 0
    }

    fn bytes(&self, row: &[u8], pick: Pick, out: &mut [u8]) {
        let (from, to) = (pick.from, pick.to);
        let out = out.iter_mut().skip(to.0).step_by(to.1);
        for (out, byte) in out.zip(row.iter().skip(from.0).step_by(from.1)) {
            *out = *byte;
        }
    }

    fn numbers<const N: usize>(
        &self,
        row: &[u8],
        pick: Pick,
        out: &mut [u8],
        reduced: impl Fn([u8; N]) -> u8,
    ) {
        let (from, to) = (pick.from, pick.to);
        let numbers = row.as_chunks::<N>().0.iter().skip(from.0).step_by(from.1);
        for (out, number) in out.iter_mut().skip(to.0).step_by(to.1).zip(numbers) {
            let mut bytes = *number;
            if !self.big_endian {
                bytes.reverse();
            }
            *out = reduced(bytes);
        }
    }

    /// Bytes of contiguous samples of 1, 2 or 4 bits.
    fn packed(&self, row: &[u8], out: &mut [u8]) {
        let mask = u8::MAX >> (8 - self.bits);
        let level = |sample: u8| {
            if self.indexed {
                sample
            } else {
                sample * (u8::MAX / mask)
            }
        };
        for (out, byte) in out.chunks_mut(8 / self.bits).zip(row) {
            for (index, out) in out.iter_mut().enumerate() {
                *out = level(byte >> (8 - self.bits * (index + 1)) & mask);
            }
        }
    }

    /// Samples of any number of bits, the most significant bits first.
    fn bit_strings(&self, row: &[u8], pick: Pick, out: &mut [u8]) {
        let (from, to) = (pick.from, pick.to);
        let most = (1u32 << self.bits.min(16)) - 1;
        let step = from.1 * self.bits;
        let mut bit = from.0 * self.bits;
        for out in out.iter_mut().skip(to.0).step_by(to.1) {
            // 16 bits at any offset are within 3 bytes.
            let bytes = row.get(bit / 8..).unwrap_or_default();
            let three = (0..3).fold(0, |sum, at| {
                sum << 8 | u32::from(bytes.get(at).copied().unwrap_or(0))
            });
            let value = three >> (24 - self.bits - bit % 8) & most;
            *out = match self.levels.get(value as usize) {
                Some(_) if self.stays(pick) => value as u8,
                Some(level) if self.bits <= 8 => *level,
                _ => ((value * 255 + most / 2) / most) as u8,
            };
            bit += step;
        }
    }
}

/// 8-bit value of a floating-point sample.
fn level(sample: f32) -> u8 {
    // NaN is white, as in the image crate.
    if sample < 1.0 {
        (sample.max(0.0) * 255.0).round() as u8
    } else {
        255
    }
}
