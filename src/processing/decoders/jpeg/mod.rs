//! JPEG: baseline, extended sequential and progressive, 8 bits per sample, Huffman-coded.
//!
//! The pixels are bit-identical to libjpeg-turbo's default (slow integer inverse DCT, fancy upsampling), which Pillow and most
//! other programs use. Rows are emitted as they are decoded, so that memory does not grow with the height. The missing part of a
//! truncated file is grey, as in libjpeg, and reported; unlike libjpeg, incomplete progressive detail is not smoothed.

mod bits;
mod colour;
mod frame;
mod huffman;
mod idct;
mod markers;
mod passes;
mod picture;
mod progressive;
mod scan;
mod upsample;

use crate::error::ImageError;
use colour::Conversion;
use frame::Frame;
use markers::{Markers, QuantTable, Tables};
use picture::{Picture, RowFn};
use scan::{Scan, ScanHeader};

/// Memory budget for the coefficients of a multi-scan file; a larger image is decoded in bands.
const COEFFICIENT_BYTES: usize = 24 << 20;

/// Content of the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Colours {
    /// RGB, by the file's own markers.
    Rgb,
    /// The components as stored: upsampled and interleaved, without colour conversion.
    Stored,
}

/// A JPEG with parsed headers.
pub(super) struct Jpeg<'a> {
    bytes: &'a [u8],
    frame: Frame,
    /// After the first scan's header.
    markers: Markers<'a>,
    first_scan: ScanHeader,
}

impl<'a> Jpeg<'a> {
    /// Reads the markers up to the first scan. `tables`: the abbreviated stream of TIFF's JPEGTables, or empty.
    pub(super) fn open(bytes: &'a [u8], tables: &'a [u8]) -> Result<Self, ImageError> {
        let mut defined = Tables::default();
        if !tables.is_empty() {
            let mut markers = Markers::new(tables, defined)?;
            if markers.next_scan()?.is_some() {
                return Err(ImageError::Undecodable);
            }
            defined = markers.tables;
        }
        let mut markers = Markers::new(bytes, defined)?;
        let first_scan = markers.next_scan()?.ok_or(ImageError::Undecodable)?;
        let frame = markers.frame.clone().ok_or(ImageError::Undecodable)?;
        if !frame.progressive {
            markers.tables.add_standard();
        }
        Ok(Self {
            bytes,
            frame,
            markers,
            first_scan,
        })
    }

    /// Width and height.
    pub(super) fn size(&self) -> (u32, u32) {
        (self.frame.width as u32, self.frame.height as u32)
    }

    /// Number of components: 1, 3 or 4.
    pub(super) fn components(&self) -> usize {
        self.frame.components.len()
    }

    /// Calls `row` for every row, top to bottom.
    /// Returns whether data is missing or damaged; that part is grey or coarse.
    pub(super) fn decode(&self, colours: Colours, row: RowFn<'_>) -> Result<bool, ImageError> {
        let frame = &self.frame;
        let ids: Vec<u8> = frame.components.iter().map(|component| component.id).collect();
        let conversion = Conversion::choose(colours, &ids, self.markers.jfif, self.markers.adobe);
        let picture = Picture::new(frame, conversion);
        if frame.progressive || self.first_scan.parts.len() < frame.components.len() {
            let (markers, header) = (self.markers.clone(), self.first_scan.clone());
            return passes::decode(
                self.bytes,
                frame,
                COEFFICIENT_BYTES,
                markers,
                header,
                picture,
                row,
            );
        }
        self.decode_single_scan(picture, row)
    }

    /// Decodes a sequential scan of all components: each row of MCUs is emitted as soon as it is read.
    fn decode_single_scan(&self, mut picture: Picture<'_>, row: RowFn<'_>) -> Result<bool, ImageError> {
        let frame = &self.frame;
        let quant = frame
            .components
            .iter()
            .map(|component| self.markers.tables.quant(component.quant));
        let quant = quant.collect::<Result<Vec<QuantTable>, _>>()?;
        let scan = Scan::new(self.first_scan.clone(), frame, &self.markers.tables)?;
        let mut decoder = scan.enter(frame, scan.start(self.bytes, self.markers.position()))?;
        let mut block = [0; 64];
        for mcu_row in 0..frame.mcu_rows {
            picture.clear();
            if !decoder.is_ended() {
                decoder.rows(mcu_row..mcu_row + 1, |at, tables, place| {
                    let last = at.sequential(place.part, tables, &mut block);
                    let component = &frame.components[place.component];
                    if place.column < component.blocks_wide && place.row < component.blocks_high {
                        let place = (place.component, place.row, place.column);
                        picture.put(place, &block, last, &quant[place.0]);
                    }
                    block = [0; 64];
                });
            }
            if mcu_row == 0 && decoder.is_ended() {
                return Err(ImageError::Undecodable);
            }
            picture.finish_mcu_row(row)?;
        }
        let (damaged, marker, position) = decoder.end();
        let mut markers = self.markers.clone();
        markers.resume(marker, position);
        // Neither a frame nor a scan may follow.
        if markers.next_scan()?.is_some() {
            return Err(ImageError::Undecodable);
        }
        Ok(damaged)
    }
}
