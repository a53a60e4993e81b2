//! Predictors: rows of differences between neighbours.

/// Predictor applied before compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Predictor {
    /// None.
    None,
    /// Horizontal differencing: each sample minus that of the previous pixel.
    Horizontal,
    /// Floating-point differencing: bytes sorted by significance, then differenced.
    FloatingPoint,
}

impl Predictor {
    /// Restores a row, whose pixels have `samples` samples of `bytes` bytes each.
    pub(super) fn undo(
        self,
        row: &mut [u8],
        samples: usize,
        bytes: usize,
        big_endian: bool,
        sorted: &mut Vec<u8>,
    ) {
        match (self, bytes) {
            (Self::None, _) => {}
            (Self::Horizontal, 1) => add_bytes(row, samples),
            (Self::Horizontal, 2) => add(
                row,
                samples,
                big_endian,
                u16::wrapping_add,
                u16::from_be_bytes,
                u16::to_be_bytes,
            ),
            (Self::Horizontal, 4) => add(
                row,
                samples,
                big_endian,
                u32::wrapping_add,
                u32::from_be_bytes,
                u32::to_be_bytes,
            ),
            (Self::Horizontal, _) => add(
                row,
                samples,
                big_endian,
                u64::wrapping_add,
                u64::from_be_bytes,
                u64::to_be_bytes,
            ),
            (Self::FloatingPoint, _) => {
                add_bytes(row, samples);
                unsort(row, bytes, big_endian, sorted);
            }
        }
    }
}

fn add_bytes(row: &mut [u8], stride: usize) {
    // The sums of a pixel stay in registers: several times faster than memory.
    fn pixels<const N: usize>(row: &mut [u8]) {
        let mut sums = [0u8; N];
        for pixel in row.as_chunks_mut::<N>().0 {
            for (sum, byte) in sums.iter_mut().zip(pixel) {
                *sum = sum.wrapping_add(*byte);
                *byte = *sum;
            }
        }
    }
    match stride {
        1 => pixels::<1>(row),
        3 => pixels::<3>(row),
        4 => pixels::<4>(row),
        _ => {
            for at in stride..row.len() {
                row[at] = row[at].wrapping_add(row[at - stride]);
            }
        }
    }
}

fn add<const N: usize, T: Copy>(
    row: &mut [u8],
    stride: usize,
    big_endian: bool,
    sum: fn(T, T) -> T,
    from: fn([u8; N]) -> T,
    to: fn(T) -> [u8; N],
) {
    let turned = |mut bytes: [u8; N]| {
        if !big_endian {
            bytes.reverse();
        }
        bytes
    };
    let values = row.as_chunks_mut::<N>().0;
    for at in stride..values.len() {
        let value = sum(from(turned(values[at])), from(turned(values[at - stride])));
        values[at] = turned(to(value));
    }
}

/// Regroups the bytes of each number; the row has the most significant bytes of all numbers first.
fn unsort(row: &mut [u8], bytes: usize, big_endian: bool, sorted: &mut Vec<u8>) {
    sorted.clear();
    sorted.extend_from_slice(row);
    let count = row.len() / bytes;
    for (significance, plane) in sorted.chunks_exact(count.max(1)).take(bytes).enumerate() {
        let place = if big_endian {
            significance
        } else {
            bytes - 1 - significance
        };
        for (number, byte) in row.chunks_exact_mut(bytes).zip(plane) {
            number[place] = *byte;
        }
    }
}
