//! Scans: their headers, the order of their MCUs, and sequential blocks (libjpeg-turbo: jdinput.c, jdhuff.c).

use std::ops::Range;
use std::sync::Arc;

use super::{
    bits::BitReader,
    frame::{Component, Frame},
    huffman::{HuffmanSpec, HuffmanTable},
    markers::{NATURAL_ORDER, Tables},
};
use crate::error::ImageError;

/// Coefficients of a block, in natural order.
pub(super) type Block = [i16; 64];

/// Maximum blocks in an MCU of an interleaved scan.
const MAX_BLOCKS_IN_MCU: usize = 10;
/// Maximum bit position that libjpeg accepts.
const MAX_AL: u8 = 13;

/// A component of a scan: its index in the frame and the numbers of its Huffman tables.
#[derive(Debug, Clone, Copy)]
pub(super) struct ScanPart {
    /// Index among the frame's components.
    pub(super) component: usize,
    /// The DC table.
    pub(super) dc: u8,
    /// The AC table.
    pub(super) ac: u8,
}

/// A scan header that fits its frame.
#[derive(Debug, Clone)]
pub(super) struct ScanHeader {
    /// The components.
    pub(super) parts: Vec<ScanPart>,
    /// The first coefficient of a progressive scan, in zigzag order (Ss).
    pub(super) first: u8,
    /// The last one (Se).
    pub(super) last: u8,
    /// The bit position before this scan; 0: no scan was there (Ah).
    pub(super) high: u8,
    /// The bit position after it (Al).
    pub(super) low: u8,
}

impl ScanHeader {
    /// Checks the parameters. Those of a sequential scan are ignored: some files have zeros there.
    pub(super) fn new(
        frame: &Frame,
        parts: Vec<ScanPart>,
        (first, last): (u8, u8),
        (high, low): (u8, u8),
    ) -> Result<Self, ImageError> {
        let blocks =
            |part: &ScanPart| frame.components[part.component].h * frame.components[part.component].v;
        let too_many = parts.len() > 1 && parts.iter().map(blocks).sum::<usize>() > MAX_BLOCKS_IN_MCU;
        let band = if first == 0 {
            last == 0
        } else {
            first <= last && last < 64 && parts.len() == 1
        };
        let approximation = low <= MAX_AL && (high == 0 || high == low + 1);
        if too_many || frame.progressive && !(band && approximation) {
            return Err(ImageError::Undecodable);
        }
        Ok(Self {
            parts,
            first,
            last,
            high,
            low,
        })
    }

    /// Mask of the scan's coefficients in a block.
    pub(super) fn band(&self) -> u64 {
        u64::MAX << (self.first & 63) & u64::MAX >> (63 - self.last.min(63))
    }
}

/// (DC, AC) of a component, as the file defines them.
type DefinedTables = (Option<Arc<HuffmanSpec>>, Option<Arc<HuffmanSpec>>);

/// A scan and the tables defined at its start.
pub(super) struct Scan {
    /// Its header.
    pub(super) header: ScanHeader,
    /// (DC, AC) for each component, if the scan needs them.
    tables: Vec<DefinedTables>,
    restart_interval: u32,
}

impl Scan {
    /// Takes the tables that the scan needs.
    pub(super) fn new(header: ScanHeader, frame: &Frame, defined: &Tables) -> Result<Self, ImageError> {
        let dc = !frame.progressive || header.first == 0 && header.high == 0;
        let ac = !frame.progressive || header.first != 0;
        let take = |wanted: bool, number, is_dc| wanted.then(|| defined.huffman(number, is_dc)).transpose();
        let tables = header
            .parts
            .iter()
            .map(|part| Ok((take(dc, part.dc, true)?, take(ac, part.ac, false)?)));
        Ok(Self {
            tables: tables.collect::<Result<_, ImageError>>()?,
            restart_interval: defined.restart_interval(),
            header,
        })
    }

    /// Bookmark of the start of the data.
    pub(super) fn start<'a>(&self, data: &'a [u8], position: usize) -> Bookmark<'a> {
        Bookmark {
            bits: BitReader::new(data, position),
            predictions: [0; 4],
            eob_run: 0,
            to_restart: self.restart_interval,
            next_restart: 0,
        }
    }

    /// Starts decoding at a bookmark.
    pub(super) fn enter<'s, 'a>(
        &'s self,
        frame: &'s Frame,
        at: Bookmark<'a>,
    ) -> Result<Decoder<'s, 'a>, ImageError> {
        let ready = |spec: &Option<Arc<HuffmanSpec>>, dc| {
            spec.as_ref().map(|spec| HuffmanTable::new(spec, dc)).transpose()
        };
        let tables = self
            .tables
            .iter()
            .map(|(dc, ac)| Ok((ready(dc, true)?, ready(ac, false)?)));
        Ok(Decoder {
            frame,
            scan: self,
            tables: tables.collect::<Result<_, ImageError>>()?,
            at,
        })
    }
}

/// A position in a scan's data at which decoding can continue.
#[derive(Clone)]
pub(super) struct Bookmark<'a> {
    /// The bits from here on.
    pub(super) bits: BitReader<'a>,
    predictions: [i32; 4],
    /// Remaining blocks of an end-of-band run.
    pub(super) eob_run: u32,
    to_restart: u32,
    next_restart: u8,
}

/// (DC, AC) of a component.
pub(super) type ReadyTables = (Option<Box<HuffmanTable>>, Option<Box<HuffmanTable>>);

/// Location of a block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Index of the scan's part.
    pub(super) part: usize,
    /// Index among the frame's components.
    pub(super) component: usize,
    /// Row of blocks, from the top of the image.
    pub(super) row: usize,
    /// The column of blocks.
    pub(super) column: usize,
}

impl Place {
    fn new(part: usize, component: usize, row: usize, column: usize) -> Self {
        Self {
            part,
            component,
            row,
            column,
        }
    }
}

/// Decodes the data of a scan from a bookmark.
pub(super) struct Decoder<'s, 'a> {
    frame: &'s Frame,
    scan: &'s Scan,
    tables: Vec<ReadyTables>,
    /// Current position.
    pub(super) at: Bookmark<'a>,
}

impl Decoder<'_, '_> {
    /// Iterates over the blocks of some rows of MCUs in the scan's order.
    /// `block` decodes one; it is not called where data is missing.
    pub(super) fn rows(
        &mut self,
        rows: Range<usize>,
        mut block: impl FnMut(&mut Bookmark<'_>, &ReadyTables, Place),
    ) {
        let frame = self.frame;
        if let [ScanPart { component, .. }] = self.scan.header.parts[..] {
            let Component {
                v,
                blocks_wide,
                blocks_high,
                ..
            } = frame.components[component];
            for row in rows.start * v..(rows.end * v).min(blocks_high) {
                for column in 0..blocks_wide {
                    self.mcu(|at, tables| block(at, &tables[0], Place::new(0, component, row, column)));
                }
            }
            return;
        }
        for mcu_row in rows {
            for mcu_column in 0..frame.mcus_wide {
                let parts = &self.scan.header.parts;
                self.mcu(|at, tables| {
                    for (index, (part, tables)) in parts.iter().zip(tables).enumerate() {
                        let Component { h, v, .. } = frame.components[part.component];
                        for (y, x) in (0..v).flat_map(|y| (0..h).map(move |x| (y, x))) {
                            let (row, column) = (mcu_row * v + y, mcu_column * h + x);
                            block(at, tables, Place::new(index, part.component, row, column));
                        }
                    }
                });
            }
        }
    }

    /// Reads a restart marker if due, then decodes an MCU if there is data.
    #[inline(always)]
    fn mcu(&mut self, decode: impl FnOnce(&mut Bookmark<'_>, &[ReadyTables])) {
        let at = &mut self.at;
        if self.scan.restart_interval > 0 {
            if at.to_restart == 0 {
                at.bits.restart(at.next_restart);
                at.next_restart = (at.next_restart + 1) % 8;
                (at.predictions, at.eob_run) = ([0; 4], 0);
                at.to_restart = self.scan.restart_interval;
            }
            at.to_restart -= 1;
        }
        if !at.bits.is_exhausted() {
            decode(at, &self.tables);
        }
    }

    /// Whether the scan has no more data.
    pub(super) fn is_ended(&self) -> bool {
        self.at.bits.is_ended(self.scan.restart_interval > 0)
    }

    /// Whether data was missing, skipped or undecodable, with the marker and position after the scan.
    pub(super) fn end(mut self) -> (bool, u8, usize) {
        let (marker, position) = self.at.bits.end();
        (self.at.bits.is_damaged(), marker, position)
    }
}

impl Bookmark<'_> {
    /// Decodes a DC difference; returns the coefficient.
    #[inline(always)]
    pub(super) fn dc(&mut self, part: usize, table: &HuffmanTable) -> i32 {
        let (_, _, difference) = self.bits.run_and_value(table);
        let prediction = &mut self.predictions[part & 3];
        *prediction = prediction.wrapping_add(difference);
        *prediction
    }

    /// Decodes a block of a sequential scan into a zeroed block; returns the zigzag index of the last coefficient.
    #[inline(always)]
    pub(super) fn sequential(&mut self, part: usize, tables: &ReadyTables, block: &mut Block) -> usize {
        let (Some(dc), Some(ac)) = tables else {
            return 0;
        };
        block[0] = self.dc(part, dc) as i16;
        let mut window = self.bits.window;
        let mut last = 0;
        let mut k = 1;
        while k < 64 {
            let (run, size, value) = self.bits.run_and_value_from(&mut window, ac);
            if size != 0 {
                k += run;
                block[usize::from(NATURAL_ORDER[k & 127] & 63)] = value as i16;
                last = k;
                k += 1;
            } else if run == 15 {
                k += 16;
            } else {
                break;
            }
        }
        self.bits.window = window;
        if last > 63 {
            self.bits.note_damage();
        }
        last.min(63)
    }
}
