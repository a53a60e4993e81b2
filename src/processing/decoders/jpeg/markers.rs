//! Marker segments: tables, frame header, scan headers (libjpeg-turbo: jdmarker.c).

use std::sync::Arc;

use super::{
    frame::Frame,
    huffman::{HuffmanSpec, standard},
    scan::{ScanHeader, ScanPart},
};
use crate::error::ImageError;

/// The first restart marker.
pub(super) const RST0: u8 = 0xd0;
/// The last restart marker.
pub(super) const RST7: u8 = 0xd7;
/// The end of the image.
pub(super) const EOI: u8 = 0xd9;
const SOI: u8 = 0xd8;
const SOS: u8 = 0xda;
const DHT: u8 = 0xc4;
const DAC: u8 = 0xcc;
const DQT: u8 = 0xdb;
const DNL: u8 = 0xdc;
const DRI: u8 = 0xdd;
const DHP: u8 = 0xde;
const EXP: u8 = 0xdf;
const APP0: u8 = 0xe0;
const APP14: u8 = 0xee;
const APP15: u8 = 0xef;
const COM: u8 = 0xfe;
const TEM: u8 = 0x01;
/// JPEG-LS's start of frame.
const SOF55: u8 = 0xf7;

/// Zigzag order as row * 8 + column. Runs past the end stay at the last index, as in libjpeg.
pub(super) const NATURAL_ORDER: [u8; 128] = natural_order();

const fn natural_order() -> [u8; 128] {
    let mut order = [63; 128];
    let (mut row, mut column, mut k) = (0u8, 0u8, 0);
    while k < 64 {
        order[k] = row * 8 + column;
        k += 1;
        let upwards = (row + column) % 2 == 0;
        if upwards && column == 7 || !upwards && row != 7 && column == 0 {
            row += 1;
        } else if !upwards && row == 7 || upwards && row == 0 {
            column += 1;
        } else if upwards {
            (row, column) = (row - 1, column + 1);
        } else {
            (row, column) = (row + 1, column - 1);
        }
    }
    order
}

/// Finds the next marker from `position` on; returns it and the position after it.
pub(super) fn next_marker(data: &[u8], position: usize) -> Option<(u8, usize)> {
    let mut rest = data.get(position..)?;
    loop {
        let start = rest.iter().position(|&byte| byte == 0xff)?;
        rest = &rest[start..];
        let fill = rest.iter().position(|&byte| byte != 0xff)?;
        let code = rest[fill];
        rest = &rest[fill + 1..];
        if code != 0 {
            return Some((code, data.len() - rest.len()));
        }
    }
}

/// Quantization steps in natural order, with the precision of libjpeg's inverse DCT.
pub(super) type QuantTable = [i16; 64];

/// Tables that a segment may redefine anywhere.
#[derive(Clone, Default)]
pub(super) struct Tables {
    quant: [Option<QuantTable>; 4],
    dc: [Option<Arc<HuffmanSpec>>; 4],
    ac: [Option<Arc<HuffmanSpec>>; 4],
    restart_interval: u32,
}

impl Tables {
    /// The quantization table with that number.
    pub(super) fn quant(&self, number: u8) -> Result<QuantTable, ImageError> {
        let table = self.quant.get(usize::from(number)).copied().flatten();
        table.ok_or(ImageError::Undecodable)
    }

    /// The Huffman table with that number.
    pub(super) fn huffman(&self, number: u8, dc: bool) -> Result<Arc<HuffmanSpec>, ImageError> {
        let tables = if dc { &self.dc } else { &self.ac };
        let table = tables.get(usize::from(number)).cloned().flatten();
        table.ok_or(ImageError::Undecodable)
    }

    /// MCUs between restart markers; 0: no restart markers.
    pub(super) fn restart_interval(&self) -> u32 {
        self.restart_interval
    }

    /// Fills missing tables 0 and 1 with the standard's, which motion JPEG omits.
    pub(super) fn add_standard(&mut self) {
        for (number, (dc, ac)) in standard().into_iter().enumerate() {
            self.dc[number].get_or_insert_with(|| Arc::new(dc));
            self.ac[number].get_or_insert_with(|| Arc::new(ac));
        }
    }
}

/// Reads marker segments in order.
#[derive(Clone)]
pub(super) struct Markers<'a> {
    data: &'a [u8],
    position: usize,
    /// A marker that was read ahead of its segment.
    pending: Option<u8>,
    /// Tables defined so far.
    pub(super) tables: Tables,
    /// The frame, after its header.
    pub(super) frame: Option<Frame>,
    /// Whether a JFIF header was read.
    pub(super) jfif: bool,
    /// The colour transform of Adobe's APP14.
    pub(super) adobe: Option<u8>,
}

/// Reads the parameters of a segment in order.
struct Segment<'a>(&'a [u8]);

impl<'a> Segment<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], ImageError> {
        let (head, rest) = self.0.split_at_checked(count).ok_or(ImageError::Undecodable)?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ImageError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(ImageError::Undecodable)?;
        self.0 = rest;
        Ok(*head)
    }

    fn end(&self) -> Result<(), ImageError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(ImageError::Undecodable)
        }
    }
}

impl<'a> Markers<'a> {
    /// Starts at the start of an image. `tables`: those of an abbreviated stream.
    pub(super) fn new(data: &'a [u8], tables: Tables) -> Result<Self, ImageError> {
        if !data.starts_with(&[0xff, SOI]) {
            return Err(ImageError::Undecodable);
        }
        Ok(Self {
            data,
            position: 2,
            pending: None,
            tables: Tables {
                restart_interval: 0,
                ..tables
            },
            frame: None,
            jfif: false,
            adobe: None,
        })
    }

    /// Current position.
    pub(super) fn position(&self) -> usize {
        self.position
    }

    /// Continues after the data of a scan, which ended with `marker`.
    pub(super) fn resume(&mut self, marker: u8, position: usize) {
        (self.pending, self.position) = (Some(marker), position);
    }

    /// Reads segments up to the next scan, whose data starts at the reader's position; `None` if no scan follows.
    pub(super) fn next_scan(&mut self) -> Result<Option<ScanHeader>, ImageError> {
        loop {
            let marker = match self.pending.take() {
                Some(marker) => marker,
                None => match next_marker(self.data, self.position) {
                    Some((marker, after)) => {
                        self.position = after;
                        marker
                    }
                    None => return Ok(None),
                },
            };
            match marker {
                EOI => return Ok(None),
                RST0..=RST7 | TEM => {}
                _ => {
                    if self.frame.is_none() {
                        refuse(marker)?;
                    }
                    // A truncated segment is the end of the file.
                    let Some(segment) = self.segment() else {
                        return Ok(None);
                    };
                    if let Some(scan) = self.read(marker, segment)? {
                        return Ok(Some(scan));
                    }
                }
            }
        }
    }

    /// Parameters of the segment at the position, if complete.
    fn segment(&mut self) -> Option<Segment<'a>> {
        let (length, rest) = self.data.get(self.position..)?.split_first_chunk::<2>()?;
        let length = usize::from(u16::from_be_bytes(*length)).saturating_sub(2);
        let body = rest.get(..length)?;
        self.position += 2 + length;
        Some(Segment(body))
    }

    fn read(&mut self, marker: u8, mut segment: Segment<'a>) -> Result<Option<ScanHeader>, ImageError> {
        match marker {
            0xc0..=0xc2 if self.frame.is_none() => {
                self.frame = Some(Frame::read(marker == 0xc2, segment.0, self.data)?);
            }
            DHT => self.huffman_tables(segment)?,
            DQT => self.quant_tables(segment)?,
            DRI => {
                self.tables.restart_interval = u32::from(u16::from_be_bytes(segment.array()?));
                segment.end()?;
            }
            SOS => return self.scan(segment).map(Some),
            APP0 => self.jfif |= segment.0.len() >= 14 && segment.0.starts_with(b"JFIF\0"),
            APP14 => {
                if let [b'A', b'd', b'o', b'b', b'e', _, _, _, _, _, _, transform, ..] = segment.0 {
                    self.adobe = Some(*transform);
                }
            }
            DAC | DNL | COM | APP0..=APP15 => {}
            // A second SOI or frame, or an undefined marker.
            _ => return Err(ImageError::Undecodable),
        }
        Ok(None)
    }

    fn huffman_tables(&mut self, mut segment: Segment<'a>) -> Result<(), ImageError> {
        while !segment.0.is_empty() {
            let [place] = segment.array()?;
            let counts: [u8; 16] = segment.array()?;
            let total = counts.iter().map(|&count| usize::from(count)).sum();
            let number = usize::from(place & 15);
            if total > 256 || place > 0x1f || number > 3 {
                return Err(ImageError::Undecodable);
            }
            let spec = Arc::new(HuffmanSpec::new(counts, segment.take(total)?));
            let tables = if place < 0x10 {
                &mut self.tables.dc
            } else {
                &mut self.tables.ac
            };
            tables[number] = Some(spec);
        }
        Ok(())
    }

    fn quant_tables(&mut self, mut segment: Segment<'a>) -> Result<(), ImageError> {
        while !segment.0.is_empty() {
            let [place] = segment.array()?;
            let wide = place >> 4 != 0;
            let values = segment.take(if wide { 128 } else { 64 })?;
            let mut table = [0; 64];
            for (k, &natural) in NATURAL_ORDER[..64].iter().enumerate() {
                let value = if wide {
                    u16::from_be_bytes([values[2 * k], values[2 * k + 1]])
                } else {
                    u16::from(values[k])
                };
                table[usize::from(natural)] = value as i16;
            }
            let slot = self.tables.quant.get_mut(usize::from(place & 15));
            *slot.ok_or(ImageError::Undecodable)? = Some(table);
        }
        Ok(())
    }

    fn scan(&mut self, mut segment: Segment<'a>) -> Result<ScanHeader, ImageError> {
        let frame = self.frame.as_ref().ok_or(ImageError::Undecodable)?;
        let [count] = segment.array()?;
        if !(1..=4).contains(&count) {
            return Err(ImageError::Undecodable);
        }
        let mut parts: Vec<ScanPart> = Vec::with_capacity(4);
        for _ in 0..count {
            let [id, tables] = segment.array()?;
            let component = (0..frame.components.len()).find(|&index| {
                frame.components[index].id == id && parts.iter().all(|part| part.component != index)
            });
            parts.push(ScanPart {
                component: component.ok_or(ImageError::Undecodable)?,
                dc: tables >> 4,
                ac: tables & 15,
            });
        }
        let [first, last, approximation] = segment.array()?;
        segment.end()?;
        ScanHeader::new(
            frame,
            parts,
            (first, last),
            (approximation >> 4, approximation & 15),
        )
    }
}

/// Unsupported kinds of JPEG, by their markers.
fn refuse(marker: u8) -> Result<(), ImageError> {
    let name = match marker {
        0xc3 | 0xcb => "lossless JPEG",
        0xc5..=0xc7 | 0xcd..=0xcf | DHP | EXP => "hierarchical JPEG",
        0xc9 | 0xca => "JPEG with arithmetic coding",
        SOF55 => "JPEG-LS",
        _ => return Ok(()),
    };
    Err(ImageError::UnsupportedVariant(name.into()))
}
