//! Multi-scan files with bounded memory.
//!
//! If the coefficients fit the budget, one pass over the scans decodes them. For a larger image the first pass only parses: it
//! keeps one bit per coefficient and a bookmark for each scan and band. Every band is then decoded from the bookmarks of all
//! scans.

use std::ops::Range;

use super::{
    frame::Frame,
    markers::{Markers, QuantTable},
    picture::{Picture, RowFn},
    progressive::{self, BlockMut},
    scan::{Block, Bookmark, Decoder, Scan, ScanHeader},
};
use crate::error::ImageError;

/// Maximum scans of a file; real files have about 10. A scan takes time even without data.
const MAX_SCANS: usize = 256;

/// Coefficients of some rows of MCUs.
struct Coefficients {
    first_row: usize,
    components: Vec<ComponentCoefficients>,
}

/// The blocks of a component, by rows.
struct ComponentCoefficients {
    /// Blocks of a row.
    stride: usize,
    /// The first row.
    first_row: usize,
    /// Which coefficients are not zero, in zigzag order.
    masks: Vec<u64>,
    /// Empty while scans are only parsed.
    blocks: Vec<Block>,
}

impl Coefficients {
    fn new(frame: &Frame, rows: usize, kept: bool) -> Self {
        let components = frame.components.iter().map(|component| {
            let count = component.padded_blocks * component.v * rows;
            ComponentCoefficients {
                stride: component.padded_blocks,
                first_row: 0,
                masks: vec![0; count],
                blocks: vec![[0; 64]; if kept { count } else { 0 }],
            }
        });
        Self {
            first_row: 0,
            components: components.collect(),
        }
    }

    /// Resets to that row of MCUs.
    fn clear(&mut self, frame: &Frame, first_row: usize) {
        self.first_row = first_row;
        for (part, component) in self.components.iter_mut().zip(&frame.components) {
            part.first_row = first_row * component.v;
            part.masks.fill(0);
            part.blocks.fill([0; 64]);
        }
    }
}

impl ComponentCoefficients {
    #[inline(always)]
    fn index(&self, row: usize, column: usize) -> usize {
        (row - self.first_row) * self.stride + column
    }
}

/// Decodes or parses the rows of a scan.
fn decode_rows(
    decoder: &mut Decoder<'_, '_>,
    frame: &Frame,
    header: &ScanHeader,
    rows: Range<usize>,
    into: &mut Coefficients,
) {
    let mut parsed = [0; 64];
    let band = header.band();
    decoder.rows(rows, |at, tables, place| {
        let component = &mut into.components[place.component];
        let index = component.index(place.row, place.column);
        let mask = &mut component.masks[index];
        let block = component.blocks.get_mut(index);
        if at.eob_run > 0 && *mask & band == 0 {
            at.eob_run -= 1;
        } else if frame.progressive {
            let block = BlockMut {
                mask,
                coefficients: block,
            };
            progressive::decode(at, header, place.part, tables, block);
        } else {
            *mask |= 1 << at.sequential(place.part, tables, block.unwrap_or(&mut parsed));
        }
    });
}

/// State of the components after the scans so far.
struct Coverage {
    /// The bit position that each coefficient has reached, in zigzag order.
    bits: Vec<[Option<u8>; 64]>,
    /// The quantization table at the component's first scan.
    quant: Vec<Option<QuantTable>>,
}

impl Coverage {
    fn new(frame: &Frame) -> Self {
        Self {
            bits: vec![[None; 64]; frame.components.len()],
            quant: vec![None; frame.components.len()],
        }
    }

    /// Adds a scan. False: it does not follow from those before.
    fn add(&mut self, header: &ScanHeader, frame: &Frame, markers: &Markers<'_>) -> Result<bool, ImageError> {
        let mut sound = true;
        for part in &header.parts {
            let quant = &mut self.quant[part.component];
            if quant.is_none() {
                *quant = Some(markers.tables.quant(frame.components[part.component].quant)?);
            }
            let bits = &mut self.bits[part.component];
            if !frame.progressive {
                *bits = [Some(0); 64];
                continue;
            }
            sound &= header.first == 0 || bits[0].is_some();
            for bit in &mut bits[usize::from(header.first)..=usize::from(header.last)] {
                sound &= bit.unwrap_or(0) == header.high;
                *bit = Some(header.low);
            }
        }
        Ok(sound)
    }

    fn is_complete(&self) -> bool {
        self.bits.iter().flatten().all(|&bit| bit == Some(0))
    }
}

/// A scan and its bookmark at each band.
struct Marked<'a> {
    scan: Scan,
    bookmarks: Vec<Bookmark<'a>>,
}

/// Iterates over the scans of a file.
struct Passes<'a, 'f> {
    data: &'a [u8],
    frame: &'f Frame,
    markers: Markers<'a>,
    coverage: Coverage,
    scans: usize,
    damaged: bool,
}

/// Decodes all scans from `header` on, whose data starts at the position of `markers`. `budget`: bytes for coefficients.
/// Returns whether data is missing.
pub(super) fn decode<'a>(
    data: &'a [u8],
    frame: &Frame,
    budget: usize,
    markers: Markers<'a>,
    header: ScanHeader,
    mut picture: Picture<'_>,
    row: RowFn<'_>,
) -> Result<bool, ImageError> {
    let mut passes = Passes {
        data,
        frame,
        markers,
        coverage: Coverage::new(frame),
        scans: 0,
        damaged: false,
    };
    // A block and its mask.
    let bytes_of_row = frame.blocks_of_mcu_row() * (size_of::<Block>() + size_of::<u64>());
    let band = (budget / bytes_of_row).clamp(1, frame.mcu_rows);
    let kept = band == frame.mcu_rows;
    let mut coefficients = Coefficients::new(frame, frame.mcu_rows, kept);
    let scans = passes.first(header, band, &mut coefficients)?;
    if kept {
        passes.emit(&coefficients, 0..band, &mut picture, row)?;
    } else {
        drop(coefficients);
        let mut coefficients = Coefficients::new(frame, band, true);
        for (index, start) in (0..frame.mcu_rows).step_by(band).enumerate() {
            let rows = start..(start + band).min(frame.mcu_rows);
            coefficients.clear(frame, start);
            for Marked { scan, bookmarks } in &scans {
                let Some(bookmark) = bookmarks.get(index) else {
                    continue;
                };
                let mut decoder = scan.enter(frame, bookmark.clone())?;
                decode_rows(&mut decoder, frame, &scan.header, rows.clone(), &mut coefficients);
            }
            passes.emit(&coefficients, rows, &mut picture, row)?;
        }
    }
    Ok(passes.damaged || !passes.coverage.is_complete())
}

impl<'a> Passes<'a, '_> {
    /// Iterates once over all scans; returns their bookmarks if there are several bands.
    fn first(
        &mut self,
        mut header: ScanHeader,
        band: usize,
        coefficients: &mut Coefficients,
    ) -> Result<Vec<Marked<'a>>, ImageError> {
        let mut marked = Vec::new();
        loop {
            self.scans += 1;
            if self.scans > MAX_SCANS {
                return Err(ImageError::UnsupportedVariant("JPEG with so many scans".into()));
            }
            self.damaged |= !self.coverage.add(&header, self.frame, &self.markers)?;
            let scan = Scan::new(header, self.frame, &self.markers.tables)?;
            let bookmarks = self.pass(&scan, band, coefficients)?;
            if band < self.frame.mcu_rows {
                marked.push(Marked { scan, bookmarks });
            }
            match self.markers.next_scan()? {
                Some(next) => header = next,
                None => return Ok(marked),
            }
        }
    }

    /// Reads one scan to the end of its data.
    fn pass(
        &mut self,
        scan: &Scan,
        band: usize,
        coefficients: &mut Coefficients,
    ) -> Result<Vec<Bookmark<'a>>, ImageError> {
        let frame = self.frame;
        let mut bookmarks = Vec::new();
        let mut decoder = scan.enter(frame, scan.start(self.data, self.markers.position()))?;
        for row in 0..frame.mcu_rows {
            if decoder.is_ended() {
                break;
            }
            if row % band == 0 && band < frame.mcu_rows {
                bookmarks.push(decoder.at.clone());
            }
            decode_rows(&mut decoder, frame, &scan.header, row..row + 1, coefficients);
            if row == 0 && self.scans == 1 && decoder.is_ended() {
                return Err(ImageError::Undecodable);
            }
        }
        let (damaged, marker, position) = decoder.end();
        self.damaged |= damaged;
        self.markers.resume(marker, position);
        Ok(bookmarks)
    }

    /// Transforms the blocks of a band and emits its rows.
    fn emit(
        &self,
        coefficients: &Coefficients,
        rows: Range<usize>,
        picture: &mut Picture<'_>,
        row: RowFn<'_>,
    ) -> Result<(), ImageError> {
        for mcu_row in rows {
            picture.clear();
            for (index, component) in self.frame.components.iter().enumerate() {
                let Some(quant) = &self.coverage.quant[index] else {
                    continue;
                };
                let part = &coefficients.components[index];
                let end = ((mcu_row + 1) * component.v).min(component.blocks_high);
                for row in mcu_row * component.v..end {
                    for column in 0..component.blocks_wide {
                        let at = part.index(row, column);
                        let last = 63 - (part.masks[at] | 1).leading_zeros() as usize;
                        picture.put((index, row, column), &part.blocks[at], last, quant);
                    }
                }
            }
            picture.finish_mcu_row(row)?;
        }
        Ok(())
    }
}
