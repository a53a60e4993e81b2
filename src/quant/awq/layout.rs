//! AutoAWQ's GEMM layout: eight four-bit codes per `i32`, in the order of its CUDA kernel.
//!
//! Word `c` of a row holds outputs `8c .. 8c + 8`; its nibble `n`, counted from the lowest bits, is output
//! `8c + ORDER[n]`. Reference: `awq/utils/packing_utils.py` of AutoAWQ 0.2.9 (`AWQ_ORDER`).

use rayon::prelude::*;

/// Output index within a word of each nibble, from the lowest.
pub const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// Codes per word.
pub const PER_WORD: usize = 8;

/// Packs codes (0 to 15, natural order, a multiple of eight), eight per word.
///
/// Reference: [`WQLinear_GEMM.from_linear`](https://github.com/casper-hansen/AutoAWQ/blob/88e4c76b20755db275574e6a03c83c84ba3bece5/awq/modules/linear/gemm.py#L172-L251).
pub fn pack(codes: &[u8]) -> Vec<i32> {
    codes
        .par_chunks_exact(PER_WORD)
        .with_min_len(1 << 12)
        .map(|eight| {
            let word = ORDER
                .iter()
                .enumerate()
                .fold(0u32, |word, (n, &at)| word | u32::from(eight[at] & 15) << (4 * n));
            word.cast_signed()
        })
        .collect()
}

/// The codes of [`pack`]'s words in natural order.
pub fn unpack(words: &[i32]) -> Vec<u8> {
    words
        .iter()
        .flat_map(|word| {
            let mut eight = [0u8; PER_WORD];
            for (n, &at) in ORDER.iter().enumerate() {
                eight[at] = (word.cast_unsigned() >> (4 * n)) as u8 & 15;
            }
            eight
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nibbles_are_in_autoawqs_order() {
        // By hand from AWQ_ORDER: nibble 0 is output 0, nibble 1 output 2, ... nibble 4 output 1.
        assert_eq!(pack(&[0, 1, 2, 3, 4, 5, 6, 7]), [0x7531_6420]);
        assert_eq!(pack(&[0, 0, 0, 0, 0, 0, 0, 15]), [0xF000_0000u32.cast_signed()]);
    }

    proptest! {
        #[test]
        fn unpacking_undoes_packing(codes in proptest::collection::vec(0u8..16, 0..40).prop_map(|v| {
            let whole = v.len() / 8 * 8;
            v[..whole].to_vec()
        })) {
            prop_assert_eq!(unpack(&pack(&codes)), codes);
        }

        #[test]
        fn packing_undoes_unpacking(words in proptest::collection::vec(any::<i32>(), 0..9)) {
            prop_assert_eq!(pack(&unpack(&words)), words);
        }
    }
}
