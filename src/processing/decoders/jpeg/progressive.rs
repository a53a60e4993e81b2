//! Blocks of progressive scans (libjpeg-turbo: jdphuff.c).
//!
//! Parsing a scan depends only on which coefficients are zero; a bit mask holds this without the coefficients.

use super::huffman::HuffmanTable;
use super::markers::NATURAL_ORDER;
use super::scan::{Block, Bookmark, ReadyTables, ScanHeader};

/// A partially decoded block.
pub(super) struct BlockMut<'b> {
    /// Mask of non-zero coefficients, in zigzag order.
    pub(super) mask: &'b mut u64,
    /// The coefficients, if stored.
    pub(super) coefficients: Option<&'b mut Block>,
}

impl BlockMut<'_> {
    fn set(&mut self, k: usize, value: i16) {
        let k = k.min(63);
        *self.mask = *self.mask & !(1 << k) | u64::from(value != 0) << k;
        if let Some(block) = &mut self.coefficients {
            block[usize::from(NATURAL_ORDER[k] & 63)] = value;
        }
    }

    /// Applies a correction bit to a non-zero coefficient. A second correction of the same bit has no effect.
    fn correct(&mut self, k: usize, at: &mut Bookmark<'_>, bit: i16) {
        if !at.bits.bit() {
            return;
        }
        if let Some(block) = &mut self.coefficients {
            let value = &mut block[usize::from(NATURAL_ORDER[k & 63] & 63)];
            if *value & bit == 0 {
                *value = if *value >= 0 {
                    value.wrapping_add(bit)
                } else {
                    value.wrapping_sub(bit)
                };
            }
        }
    }
}

/// Decodes a block's part of a progressive scan.
pub(super) fn decode(
    at: &mut Bookmark<'_>,
    header: &ScanHeader,
    part: usize,
    tables: &ReadyTables,
    mut block: BlockMut<'_>,
) {
    match (header, tables) {
        (
            ScanHeader {
                first: 0,
                high: 0,
                low,
                ..
            },
            (Some(dc), _),
        ) => {
            let value = at.dc(part, dc).wrapping_shl(u32::from(*low)) as i16;
            block.set(0, value);
        }
        (ScanHeader { first: 0, low, .. }, _) => {
            if at.bits.bit()
                && let Some(block) = block.coefficients
            {
                block[0] |= 1 << (low & 15);
            }
        }
        (ScanHeader { high: 0, .. }, (_, Some(ac))) => ac_first(at, header, ac, &mut block),
        (_, (_, Some(ac))) => ac_refine(at, header, ac, &mut block),
        _ => {}
    }
}

fn ac_first(at: &mut Bookmark<'_>, header: &ScanHeader, table: &HuffmanTable, block: &mut BlockMut<'_>) {
    if at.eob_run > 0 {
        at.eob_run -= 1;
        return;
    }
    let (mut k, last) = (usize::from(header.first), usize::from(header.last));
    while k <= last {
        let (run, size, value) = at.bits.run_and_value(table);
        if size != 0 {
            k += run;
            if k > last {
                at.bits.note_damage();
            }
            block.set(k, value.wrapping_shl(u32::from(header.low)) as i16);
            k += 1;
        } else if run == 15 {
            k += 16;
        } else {
            at.eob_run = eob_run(at, run) - 1;
            return;
        }
    }
}

/// Length of an end-of-band run, including this block.
fn eob_run(at: &mut Bookmark<'_>, exponent: usize) -> u32 {
    let exponent = exponent as u32 & 15;
    (1 << exponent) + at.bits.number(exponent)
}

fn ac_refine(at: &mut Bookmark<'_>, header: &ScanHeader, table: &HuffmanTable, block: &mut BlockMut<'_>) {
    let bit = 1i16 << (header.low & 15);
    let (mut k, last) = (usize::from(header.first), usize::from(header.last));
    if at.eob_run == 0 {
        while k <= last {
            let (mut run, size) = at.bits.symbol(table);
            let mut value = 0;
            if size != 0 {
                if size != 1 {
                    at.bits.note_damage();
                }
                value = if at.bits.bit() { bit } else { -bit };
            } else if run != 15 {
                at.eob_run = eob_run(at, run);
                break;
            }
            // The run counts coefficients that are still zero.
            while k <= last {
                if *block.mask >> k & 1 != 0 {
                    block.correct(k, at, bit);
                } else if run == 0 {
                    break;
                } else {
                    run -= 1;
                }
                k += 1;
            }
            if value != 0 {
                if k > last {
                    at.bits.note_damage();
                }
                block.set(k, value);
            }
            k += 1;
        }
    }
    if at.eob_run > 0 {
        correct_all(at, k..=last, bit, block);
        at.eob_run -= 1;
    }
}

/// Applies a correction bit to each remaining non-zero coefficient of a band.
fn correct_all(
    at: &mut Bookmark<'_>,
    band: std::ops::RangeInclusive<usize>,
    bit: i16,
    block: &mut BlockMut<'_>,
) {
    if band.is_empty() {
        return;
    }
    let mut left = *block.mask & (u64::MAX << band.start()) & (u64::MAX >> (63 - band.end()));
    while left != 0 {
        block.correct(left.trailing_zeros() as usize, at, bit);
        left &= left - 1;
    }
}
