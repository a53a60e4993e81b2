//! Reads a row of strips or tiles, in all planes, into rows of pixels.

use super::{
    layout::{Compression, Layout},
    samples::Pick,
    segments::Segment,
};
use crate::error::ImageError;
use crate::processing::decoders::{
    RowSink,
    jpeg::{Colours, Jpeg},
};

/// A band of pixels up to this size is decompressed one strip or tile after the other; for a larger one, all readers are open.
const SMALL_BAND: usize = 8 << 20;
/// A band of pixels up to this size is buffered if its readers would take more than `MAX_READERS`.
const LARGE_BAND: usize = 24 << 20;
const MAX_READERS: usize = 34 << 20;
/// The JPEG decoder cannot pause after a row, so its bands are buffered.
const MAX_JPEG_BAND: usize = 64 << 20;

/// Result of decoding.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Found {
    /// Rows, or parts of rows, are missing or damaged.
    pub(super) truncated: bool,
    /// Some pixel is visible.
    pub(super) visible: bool,
    /// Some pixel was decoded.
    pub(super) any: bool,
}

/// Decodes an image into a sink after its `begin`.
pub(super) fn decode(layout: &Layout, sink: &mut dyn RowSink) -> Result<Found, ImageError> {
    let (width, height) = (layout.width as usize, layout.height);
    let (across, down) = layout.segment;
    let grid = Grid {
        columns: layout.width.div_ceil(across) as usize,
        bands: height.div_ceil(down) as usize,
    };
    let mut bands = Bands {
        layout,
        grid,
        sink,
        rgb: vec![0; width * 3],
        ends: vec![0; grid.columns],
        found: Found::default(),
    };
    for band in 0..grid.bands {
        let rows = down.min(height - band as u32 * down);
        bands.band(band, rows)?;
    }
    Ok(bands.found)
}

/// Arrangement of strips or tiles in a plane.
#[derive(Debug, Clone, Copy)]
struct Grid {
    columns: usize,
    bands: usize,
}

struct Bands<'l, 'a, 's> {
    layout: &'l Layout<'a>,
    grid: Grid,
    sink: &'s mut dyn RowSink,
    rgb: Vec<u8>,
    /// Per column: the first missing row of the band.
    ends: Vec<u32>,
    found: Found,
}

/// One strip or tile of a band.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Index in the table of strips or tiles.
    index: usize,
    column: usize,
    /// Channel of its plane; `None` if it has all.
    channel: Option<usize>,
}

impl<'a> Bands<'_, 'a, '_> {
    fn band(&mut self, band: usize, rows: u32) -> Result<(), ImageError> {
        self.ends.fill(rows);
        let places = self.places(band);
        let bytes = (rows as usize).saturating_mul(self.row_samples());
        let readers = places.len().saturating_mul(self.layout.reader_bytes());
        let (small, one) = (bytes <= SMALL_BAND, places.len() == 1);
        let missing = |place: &Place| self.layout.stored(place.index, rows).is_empty();
        if places.iter().all(missing) {
            self.ends.fill(0);
            return (0..rows).try_for_each(|row| self.emit(&[], row));
        }
        match self.layout.compression {
            Compression::Jpeg if one => self.stream_jpeg(places[0], rows),
            Compression::Jpeg if bytes <= MAX_JPEG_BAND => self.hold(&places, rows, bytes),
            Compression::Jpeg => Err(too_large()),
            _ if readers <= MAX_READERS && (one || !small) => self.lockstep(&places, rows),
            _ if bytes <= LARGE_BAND => self.hold(&places, rows, bytes),
            _ => Err(too_large()),
        }
    }

    /// Bytes per row of pixels, with all channels.
    fn row_samples(&self) -> usize {
        self.layout.width as usize * self.layout.channels.len()
    }

    fn places(&self, band: usize) -> Vec<Place> {
        let Grid { columns, bands } = self.grid;
        let planes: Vec<(usize, Option<usize>)> = if self.layout.separate {
            let channels = self.layout.channels.iter().enumerate();
            channels.map(|(channel, plane)| (*plane, Some(channel))).collect()
        } else {
            vec![(0, None)]
        };
        let place = |plane: usize, channel| {
            (0..columns).map(move |column| Place {
                index: (plane * bands + band) * columns + column,
                column,
                channel,
            })
        };
        planes
            .into_iter()
            .flat_map(|(plane, channel)| place(plane, channel))
            .collect()
    }

    /// Reads all strips or tiles of the band row by row.
    fn lockstep(&mut self, places: &[Place], rows: u32) -> Result<(), ImageError> {
        let parts = places.iter().map(|place| Part::open(self.layout, *place, rows));
        let mut parts: Vec<Part> = parts.collect::<Result<_, _>>()?;
        let mut samples = vec![0; self.row_samples()];
        for row in 0..rows {
            for part in &mut parts {
                if self.ends[part.place.column] > row && !part.row(self.layout, &mut samples) {
                    self.ends[part.place.column] = row;
                }
            }
            self.emit(&samples, row)?;
        }
        self.found.truncated |= parts.iter().any(|part| part.segment.damaged);
        Ok(())
    }

    /// Reads one strip or tile after the other into the pixels of the whole band.
    fn hold(&mut self, places: &[Place], rows: u32, bytes: usize) -> Result<(), ImageError> {
        let mut samples = vec![0; bytes];
        let width = self.row_samples();
        for place in places {
            let mut lines = samples.chunks_exact_mut(width);
            let mut end = 0;
            if self.layout.compression == Compression::Jpeg {
                let pick = Picks::new(self.layout, *place);
                let layout = self.layout;
                let damaged;
                (end, damaged) = jpeg(layout, *place, rows, &mut |row| {
                    if let Some(line) = lines.next() {
                        pick.unpack(layout, row, line);
                    }
                    Ok(())
                })?;
                self.found.truncated |= damaged;
            } else {
                let mut part = Part::open(self.layout, *place, rows)?;
                while let Some(line) = lines.next()
                    && part.row(self.layout, line)
                {
                    end += 1;
                }
                self.found.truncated |= part.segment.damaged;
            }
            let first = &mut self.ends[place.column];
            *first = end.min(*first);
        }
        for (row, line) in samples.chunks_exact(width).enumerate() {
            self.emit(line, row as u32)?;
        }
        Ok(())
    }

    /// Reads a JPEG strip of the width of the image, row by row.
    fn stream_jpeg(&mut self, place: Place, rows: u32) -> Result<(), ImageError> {
        let mut samples = vec![0; self.row_samples()];
        let (layout, pick) = (self.layout, Picks::new(self.layout, place));
        let mut row = 0;
        let (end, damaged) = jpeg(layout, place, rows, &mut |stored| {
            pick.unpack(layout, stored, &mut samples);
            row += 1;
            self.emit(&samples, row - 1)
        })?;
        self.found.truncated |= damaged;
        self.ends.fill(end);
        (row..rows).try_for_each(|row| self.emit(&samples, row))
    }

    /// Emits a row of the band, white if missing.
    fn emit(&mut self, samples: &[u8], row: u32) -> Result<(), ImageError> {
        let layout = self.layout;
        let missing = self.ends.iter().filter(|end| **end <= row).count();
        if missing < self.ends.len() {
            self.found.any = true;
            self.found.visible |= layout.colour.convert(samples, layout.opacity, &mut self.rgb);
        }
        if missing > 0 {
            self.found.truncated = true;
            let width = layout.segment.0 as usize * 3;
            for (pixels, end) in self.rgb.chunks_mut(width).zip(&self.ends) {
                if *end <= row {
                    pixels.fill(255);
                }
            }
        }
        self.sink.row(&self.rgb)
    }
}

/// Decodes a JPEG strip or tile; returns its number of rows and whether some are damaged.
fn jpeg(
    layout: &Layout,
    place: Place,
    rows: u32,
    take: &mut dyn FnMut(&[u8]) -> Result<(), ImageError>,
) -> Result<(u32, bool), ImageError> {
    let stored = layout.stored(place.index, rows);
    let jpeg = match Jpeg::open(stored, layout.jpeg_tables) {
        Err(ImageError::Undecodable | ImageError::Empty) => return Ok((0, true)),
        jpeg => jpeg?,
    };
    // A frame may be padded to whole blocks.
    let most = |side: u32| side.checked_next_multiple_of(16).unwrap_or(u32::MAX);
    let (width, height) = jpeg.size();
    let fits = width <= most(layout.segment.0) && height <= most(layout.segment.1);
    let needed = layout
        .segment
        .0
        .min(layout.width - place.column as u32 * layout.segment.0);
    if !fits || width < needed || jpeg.components() != layout.per_pixel {
        return Err(ImageError::Undecodable);
    }
    let (mut row, mut refused) = (0, None);
    let result = jpeg.decode(Colours::Stored, &mut |stored| {
        if row < rows {
            row += 1;
            take(stored).inspect_err(|error| refused = Some(error.clone()))?;
        }
        Ok(())
    });
    match (refused, result) {
        (Some(error), _) | (None, Err(error @ ImageError::UnsupportedVariant(_))) => Err(error),
        (None, result) => Ok((row, result.unwrap_or(true))),
    }
}

fn too_large() -> ImageError {
    ImageError::UnsupportedVariant("TIFF with this many or such large tiles or planes".into())
}

/// Destination of the samples of a strip or tile in a row of pixels.
struct Picks {
    picks: Vec<Pick>,
    /// Byte range in the row.
    range: (usize, usize),
    /// Whether the stored samples are exactly the channels.
    plain: bool,
}

impl Picks {
    fn new(layout: &Layout, place: Place) -> Self {
        let channels = layout.channels.len();
        let pick = |sample, channel| Pick {
            from: (sample, layout.per_pixel),
            to: (channel, channels),
        };
        let picks: Vec<Pick> = match place.channel {
            Some(channel) => vec![pick(0, channel)],
            None => {
                let channels = layout.channels.iter().enumerate();
                channels.map(|(channel, sample)| pick(*sample, channel)).collect()
            }
        };
        let (width, across) = (layout.width as usize, layout.segment.0 as usize);
        let start = place.column * across;
        let end = width.min(start.saturating_add(across));
        let all = place.channel.is_none() && channels == layout.per_pixel;
        Self {
            picks,
            range: (start * channels, end * channels),
            plain: all && layout.samples.bits() == 8,
        }
    }

    fn unpack(&self, layout: &Layout, row: &[u8], line: &mut [u8]) {
        let line = &mut line[self.range.0..self.range.1];
        if self.plain && row.len() >= line.len() {
            line.copy_from_slice(&row[..line.len()]);
        } else {
            for pick in &self.picks {
                layout.samples.unpack(row, *pick, line);
            }
        }
    }
}

/// An open strip or tile.
struct Part<'a> {
    place: Place,
    picks: Picks,
    segment: Segment<'a>,
    /// The stored bytes of a row, or of rows that share chroma samples; and one of those rows, expanded.
    stored: Vec<u8>,
    spread: Vec<u8>,
    scratch: Vec<u8>,
    /// Rows read.
    rows: usize,
}

impl<'a> Part<'a> {
    fn open(layout: &Layout<'a>, place: Place, rows: u32) -> Result<Self, ImageError> {
        Ok(Self {
            place,
            picks: Picks::new(layout, place),
            segment: Segment::open(layout, place.index, rows)?,
            stored: vec![0; layout.row_bytes()],
            spread: Vec::new(),
            scratch: Vec::new(),
            rows: 0,
        })
    }

    /// Reads the next row into a row of pixels; false if there is none.
    fn row(&mut self, layout: &Layout, line: &mut [u8]) -> bool {
        let (across, down) = layout.subsampling;
        let inside = self.rows % down;
        if inside == 0 {
            if !self.segment.row(&mut self.stored) {
                return false;
            }
            let bytes = layout.samples.bits() / 8;
            layout.predictor.undo(
                &mut self.stored,
                layout.per_pixel,
                bytes,
                layout.big_endian,
                &mut self.scratch,
            );
        }
        self.rows += 1;
        if (across, down) == (1, 1) {
            self.picks.unpack(layout, &self.stored, line);
        } else {
            self.spread_row(across, down, inside);
            self.picks.unpack(layout, &self.spread, line);
        }
        true
    }

    /// A row of units: the luma of `across * down` pixels and their two chroma samples.
    fn spread_row(&mut self, across: usize, down: usize, row: usize) {
        self.spread.clear();
        for unit in self.stored.chunks_exact(across * down + 2) {
            let (brightness, differences) = unit.split_at(across * down);
            for y in &brightness[row * across..][..across] {
                self.spread.extend([*y, differences[0], differences[1]]);
            }
        }
    }
}
