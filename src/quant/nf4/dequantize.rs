//! From codes and scales back to numbers.

use super::codebook::dynamic_map;
use super::quantize::{NESTED_BLOCKSIZE, NestedScales};

/// What each byte's two codes stand for.
pub(super) type PairTable = [[f32; 2]; 256];

/// The pairs of `table`, first code in the high half.
pub(super) fn pair_table(table: &[f32; 16]) -> PairTable {
    std::array::from_fn(|byte| [table[byte >> 4], table[byte & 15]])
}

/// The values of whole blocks (the last may be short): `code * scale` in f32, as bitsandbytes computes it.
///
/// `packed` and `scales` begin at the first block's.
pub(super) fn dequantize_run(
    packed: &[u8],
    pairs: &PairTable,
    scales: &[f32],
    blocksize: usize,
    out: &mut [f32],
) {
    let blocks = out.chunks_mut(blocksize).zip(packed.chunks(blocksize / 2));
    for ((out, packed), &scale) in blocks.zip(scales) {
        let (twos, last) = out.as_chunks_mut::<2>();
        for (two, &byte) in twos.iter_mut().zip(packed) {
            let pair = pairs[usize::from(byte)];
            *two = [pair[0] * scale, pair[1] * scale];
        }
        if let ([last], Some(&byte)) = (last, packed.last()) {
            *last = pairs[usize::from(byte)][0] * scale;
        }
    }
}

/// The scales that double quantization leaves.
pub(super) fn restore_scales(nested: &NestedScales) -> Vec<f32> {
    let map = dynamic_map();
    let runs = nested.codes.chunks(NESTED_BLOCKSIZE).zip(&nested.absmax);
    runs.flat_map(|(codes, absmax)| {
        codes
            .iter()
            .map(move |&code| map[usize::from(code)] * absmax + nested.offset)
    })
    .collect()
}
