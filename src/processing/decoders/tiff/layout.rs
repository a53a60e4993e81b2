//! Storage layout of an image, checked before its data is read.

use super::{
    ccitt::Fax,
    colour::{Colour, Opacity, YCbCr},
    directory::Directory,
    predictor::Predictor,
    samples::{Format, Samples},
    segments::Table,
};
use crate::error::ImageError;
use crate::processing::{DecodeLimits, decoders::Alpha};

const IMAGE_WIDTH: u16 = 256;
const IMAGE_LENGTH: u16 = 257;
const BITS_PER_SAMPLE: u16 = 258;
const COMPRESSION: u16 = 259;
const PHOTOMETRIC_INTERPRETATION: u16 = 262;
const FILL_ORDER: u16 = 266;
const SAMPLES_PER_PIXEL: u16 = 277;
const ROWS_PER_STRIP: u16 = 278;
const PLANAR_CONFIGURATION: u16 = 284;
const T4_OPTIONS: u16 = 292;
const T6_OPTIONS: u16 = 293;
const PREDICTOR: u16 = 317;
const TILE_WIDTH: u16 = 322;
const TILE_LENGTH: u16 = 323;
const TILE_OFFSETS: u16 = 324;
const INK_SET: u16 = 332;
const EXTRA_SAMPLES: u16 = 338;
const SAMPLE_FORMAT: u16 = 339;
const JPEG_TABLES: u16 = 347;
const YCBCR_SUBSAMPLING: u16 = 530;

/// Maximum samples per pixel, and maximum bytes per row of a strip or tile.
const MAX_SAMPLES: u64 = 256;
const MAX_ROW_BYTES: usize = 16 << 20;

/// Compression of strips and tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    /// 1.
    None,
    /// 2, 3 and 4.
    Fax(Fax),
    /// 5.
    Lzw,
    /// 7, each strip or tile a stream of its own.
    Jpeg,
    /// 8, and 32946 as it was numbered before.
    Deflate,
    /// 32773.
    PackBits,
    /// 50000.
    Zstd,
}

/// Storage layout of an image.
pub(super) struct Layout<'a> {
    /// Pixels per row.
    pub(super) width: u32,
    /// Rows.
    pub(super) height: u32,
    /// Compression of strips and tiles.
    pub(super) compression: Compression,
    /// Whether the least significant bit of a byte comes first (FillOrder 2).
    pub(super) turned: bool,
    /// Whether the most significant byte of a sample comes first.
    pub(super) big_endian: bool,
    /// Predictor applied before compression.
    pub(super) predictor: Predictor,
    /// Format of samples.
    pub(super) samples: Samples,
    /// Samples per pixel in a plane: all, or one if planes are separate.
    pub(super) per_pixel: usize,
    /// Colour space.
    pub(super) colour: Colour,
    /// Kind of alpha, if any.
    pub(super) opacity: Option<Opacity>,
    /// Indices of the samples that are used: colour, then alpha.
    pub(super) channels: Vec<usize>,
    /// Whether planes are separate (PlanarConfiguration 2).
    pub(super) separate: bool,
    /// Width and height of a strip or tile.
    pub(super) segment: (u32, u32),
    /// Chroma subsampling, horizontal and vertical.
    pub(super) subsampling: (usize, usize),
    /// Tables shared by JPEG strips or tiles.
    pub(super) jpeg_tables: &'a [u8],
    /// Whether fax data may use the uncompressed mode, which is not supported.
    pub(super) uncompressed_mode: bool,
    /// Offsets of strips or tiles.
    pub(super) table: Table<'a>,
}

fn unsupported<T>(what: &'static str) -> Result<T, ImageError> {
    Err(ImageError::UnsupportedVariant(what.into()))
}

/// Sample size, the same for all samples of a pixel.
struct Pixel {
    samples: usize,
    bits: usize,
    format: Format,
}

impl<'a> Layout<'a> {
    /// Reads and checks the layout.
    ///
    /// # Errors
    /// [`ImageError`] for unsupported and for contradictory values.
    pub(super) fn read(
        directory: &Directory<'a>,
        limits: &DecodeLimits,
        alpha: Alpha,
    ) -> Result<Self, ImageError> {
        let width = side(directory, IMAGE_WIDTH)?.ok_or(ImageError::Undecodable)?;
        let height = side(directory, IMAGE_LENGTH)?.ok_or(ImageError::Undecodable)?;
        limits.check(width, height)?;
        let compression = compression(directory)?;
        let pixel = pixel(directory)?;
        let colour = colour(directory, &pixel, compression)?;
        check_kind(&pixel, &colour, compression)?;
        let separate = match directory.first(PLANAR_CONFIGURATION)? {
            None | Some(1) => false,
            Some(2) => pixel.samples > 1,
            _ => return Err(ImageError::Undecodable),
        };
        let per_pixel = if separate { 1 } else { pixel.samples };
        let (opacity, channels) = channels(directory, &pixel, &colour, alpha)?;
        let (segment, tiled) = segment(directory, width, height)?;
        limits.check(segment.0, segment.1)?;
        let mut subsampling = subsampling(directory, &colour)?;
        if subsampling != (1, 1) && (separate || pixel.samples != 3) {
            return unsupported("TIFF with subsampled colours in separate planes or with further samples");
        }
        // A JPEG stream has its own subsampling.
        if compression == Compression::Jpeg {
            subsampling = (1, 1);
        }
        let indexed = matches!(colour, Colour::Palette(_));
        let layout = Self {
            width,
            height,
            compression,
            turned: directory.first(FILL_ORDER)? == Some(2),
            big_endian: directory.big_endian,
            predictor: predictor(directory, &pixel, compression)?,
            samples: Samples::new(pixel.bits, pixel.format, directory.big_endian, indexed),
            per_pixel,
            colour,
            opacity,
            channels,
            separate,
            segment,
            subsampling,
            jpeg_tables: directory.values(JPEG_TABLES)?.map_or(&[], |tables| tables.bytes),
            uncompressed_mode: uncompressed_mode(directory, compression)?,
            table: Table::read(directory, tiled)?,
        };
        layout.check_combination()?;
        Ok(layout)
    }

    /// Bytes per row of a strip or tile, or per group of rows that share chroma samples.
    pub(super) fn row_bytes(&self) -> usize {
        let width = self.segment.0 as usize;
        match self.subsampling {
            (1, 1) => (width * self.per_pixel * self.samples.bits()).div_ceil(8),
            (across, down) => width.div_ceil(across) * (across * down + 2),
        }
    }

    fn check_combination(&self) -> Result<(), ImageError> {
        let shared = self.subsampling != (1, 1);
        if shared && self.predictor != Predictor::None {
            return unsupported("TIFF with a predictor over subsampled colours");
        }
        if matches!(self.compression, Compression::Fax(_)) && self.per_pixel != 1 {
            return unsupported("TIFF with fax compression of several samples");
        }
        if self.row_bytes() > MAX_ROW_BYTES {
            return unsupported("TIFF with rows of more than 16 MiB");
        }
        Ok(())
    }
}

/// Reads a width or height, saturating.
fn side(directory: &Directory, tag: u16) -> Result<Option<u32>, ImageError> {
    let side = directory.first(tag)?;
    Ok(side.map(|side| u32::try_from(side).unwrap_or(u32::MAX)))
}

fn compression(directory: &Directory) -> Result<Compression, ImageError> {
    Ok(match directory.first(COMPRESSION)?.unwrap_or(1) {
        1 => Compression::None,
        2 => Compression::Fax(Fax::Rle),
        3 => {
            let options = directory.first(T4_OPTIONS)?.unwrap_or(0);
            Compression::Fax(if options & 1 == 0 {
                Fax::Group3
            } else {
                Fax::Group3TwoDimensional
            })
        }
        4 => Compression::Fax(Fax::Group4),
        5 => Compression::Lzw,
        6 => return unsupported("TIFF with old-style JPEG compression"),
        7 => Compression::Jpeg,
        8 | 32_946 => Compression::Deflate,
        32_773 => Compression::PackBits,
        50_000 => Compression::Zstd,
        9 | 10 | 34_661 => return unsupported("TIFF with JBIG compression"),
        32_766 => return unsupported("TIFF with NeXT compression"),
        32_771 => return unsupported("TIFF with word-aligned fax compression"),
        32_809 => return unsupported("TIFF with ThunderScan compression"),
        32_909 => return unsupported("TIFF with PixarLog compression"),
        33_003 | 33_005 | 34_712 => return unsupported("TIFF with JPEG 2000 compression"),
        34_676 | 34_677 => return unsupported("TIFF with SGI Log compression"),
        34_887 => return unsupported("TIFF with LERC compression"),
        34_892 => return unsupported("TIFF with lossy JPEG compression of raw data"),
        34_925 => return unsupported("TIFF with LZMA compression"),
        50_001 | 34_927 => return unsupported("TIFF with WebP compression"),
        50_002 | 52_546 => return unsupported("TIFF with JPEG XL compression"),
        _ => return unsupported("TIFF with this compression"),
    })
}

fn uncompressed_mode(directory: &Directory, compression: Compression) -> Result<bool, ImageError> {
    let options = match compression {
        Compression::Fax(Fax::Group3 | Fax::Group3TwoDimensional) => directory.first(T4_OPTIONS)?,
        Compression::Fax(Fax::Group4) => directory.first(T6_OPTIONS)?,
        _ => None,
    };
    Ok(options.unwrap_or(0) & 2 != 0)
}

/// The common value of a tag; `None` if its values differ.
fn same(directory: &Directory, tag: u16, default: u64, samples: u64) -> Result<Option<u64>, ImageError> {
    let Some(values) = directory.values(tag)? else {
        return Ok(Some(default));
    };
    let first = values.get(0).ok_or(ImageError::Undecodable)?;
    let samples = usize::try_from(samples).unwrap_or(usize::MAX);
    let equal = values.integers().take(samples).all(|value| value == Some(first));
    Ok(equal.then_some(first))
}

fn pixel(directory: &Directory) -> Result<Pixel, ImageError> {
    let samples = directory.first(SAMPLES_PER_PIXEL)?;
    let listed = directory
        .values(BITS_PER_SAMPLE)?
        .map_or(1, |bits| bits.len() as u64);
    let samples = samples.unwrap_or(listed);
    match samples {
        0 => return Err(ImageError::Undecodable),
        1..=MAX_SAMPLES => {}
        _ => return unsupported("TIFF with more than 256 samples a pixel"),
    }
    let Some(bits) = same(directory, BITS_PER_SAMPLE, 1, samples)? else {
        return unsupported("TIFF with samples of different sizes");
    };
    let Some(format) = same(directory, SAMPLE_FORMAT, 1, samples)? else {
        return unsupported("TIFF with samples of different kinds");
    };
    let (samples, bits) = (samples as usize, usize::try_from(bits).unwrap_or(0));
    let format = match (format, bits) {
        (_, 0) | (_, 129..) => return Err(ImageError::Undecodable),
        (1 | 4, 1..=16) => Format::Unsigned,
        (1 | 4, 17..=32) => return unsupported("TIFF with 32-bit integers"),
        (1 | 4, _) => return unsupported("TIFF with 64-bit integers"),
        (2, _) => return unsupported("TIFF with signed samples"),
        (3, 16 | 32 | 64) => Format::Float,
        (3, _) => return unsupported("TIFF with floating-point samples of this size"),
        (5 | 6, _) => return unsupported("TIFF with complex samples"),
        _ => return Err(ImageError::Undecodable),
    };
    Ok(Pixel {
        samples,
        bits,
        format,
    })
}

fn colour(directory: &Directory, pixel: &Pixel, compression: Compression) -> Result<Colour, ImageError> {
    let photometric = directory.first(PHOTOMETRIC_INTERPRETATION)?;
    // Without the tag it is a fax, as in Pillow.
    let photometric = photometric.unwrap_or(if pixel.samples < 3 { 0 } else { 2 });
    Ok(match photometric {
        0 => Colour::WhiteIsZero,
        // A lone transparency mask is an image of the mask. A lone Y is grey.
        1 | 4 => Colour::BlackIsZero,
        6 if pixel.samples < 3 => Colour::BlackIsZero,
        2 => Colour::Rgb,
        3 if pixel.bits > 8 => return unsupported("TIFF with a palette of more than 256 colours"),
        3 => Colour::palette(directory, pixel.bits)?,
        5 => match directory.first(INK_SET)? {
            None | Some(1) => Colour::Cmyk,
            _ => return unsupported("TIFF with inks other than CMYK"),
        },
        6 if compression == Compression::Jpeg => Colour::YCbCr(Box::new(YCbCr::jpeg())),
        6 => Colour::YCbCr(Box::new(YCbCr::of(directory)?)),
        8..=10 => return unsupported("TIFF with CIE L*a*b* colours"),
        32_803 | 34_892 => return unsupported("TIFF with raw camera data"),
        32_844 | 32_845 => return unsupported("TIFF with LogLuv colours"),
        _ => return unsupported("TIFF with this photometric interpretation"),
    })
}

/// Rejects samples that are invalid for a photometric interpretation or a compression.
fn check_kind(pixel: &Pixel, colour: &Colour, compression: Compression) -> Result<(), ImageError> {
    if pixel.samples < colour.samples() {
        return Err(ImageError::Undecodable);
    }
    match (colour, compression) {
        (Colour::YCbCr(_), _) if pixel.bits != 8 => {
            unsupported("TIFF with YCbCr colours of other than 8 bits")
        }
        (Colour::Palette(_), _) if pixel.format == Format::Float => Err(ImageError::Undecodable),
        (_, Compression::Jpeg) if pixel.bits != 8 => {
            unsupported("TIFF with JPEG compression of other than 8 bits")
        }
        (_, Compression::Fax(_)) if pixel.bits != 1 => {
            unsupported("TIFF with fax compression of several bits")
        }
        _ => Ok(()),
    }
}

fn predictor(
    directory: &Directory,
    pixel: &Pixel,
    compression: Compression,
) -> Result<Predictor, ImageError> {
    // Other compressions have no predictor, whatever the tag says.
    if !matches!(
        compression,
        Compression::Lzw | Compression::Deflate | Compression::Zstd
    ) {
        return Ok(Predictor::None);
    }
    match directory.first(PREDICTOR)? {
        None | Some(1) => Ok(Predictor::None),
        Some(2) if matches!(pixel.bits, 8 | 16 | 32 | 64) => Ok(Predictor::Horizontal),
        Some(2) => unsupported("TIFF with a predictor over samples of this size"),
        Some(3) if pixel.format == Format::Float => Ok(Predictor::FloatingPoint),
        Some(3) => Err(ImageError::Undecodable),
        _ => unsupported("TIFF with this predictor"),
    }
}

/// Kind of alpha, and indices of the samples that are used. The first extra sample of kind alpha is alpha.
fn channels(
    directory: &Directory,
    pixel: &Pixel,
    colour: &Colour,
    alpha: Alpha,
) -> Result<(Option<Opacity>, Vec<usize>), ImageError> {
    let colours = colour.samples();
    let rgb = matches!(colour, Colour::Rgb);
    let extra = pixel.samples - colours;
    let opacity = |kind| match kind {
        Some(1) => Some(Opacity::Associated),
        Some(2) => Some(Opacity::Unassociated),
        // Corel Draw 10 writes this.
        Some(999) if rgb => Some(Opacity::Unassociated),
        _ => None,
    };
    let found = match directory.values(EXTRA_SAMPLES)? {
        Some(kinds) => kinds
            .integers()
            .take(extra)
            .enumerate()
            .find_map(|(index, kind)| Some((opacity(kind)?, colours + index))),
        // An unspecified fourth sample, as in Pillow.
        None => (rgb && extra == 1).then_some((Opacity::Unassociated, colours)),
    };
    let found = found.filter(|_| matches!(alpha, Alpha::OnWhite));
    let channels = (0..colours).chain(found.map(|found| found.1)).collect();
    Ok((found.map(|found| found.0), channels))
}

/// Width and height of a strip or tile, and whether it is a tile.
fn segment(directory: &Directory, width: u32, height: u32) -> Result<((u32, u32), bool), ImageError> {
    if directory.values(TILE_OFFSETS)?.is_some() {
        let tile = side(directory, TILE_WIDTH)?.zip(side(directory, TILE_LENGTH)?);
        return Ok((tile.ok_or(ImageError::Undecodable)?, true));
    }
    // Some writers use the tags of strips for tiles.
    if let Some(tile) = side(directory, TILE_WIDTH)?.zip(side(directory, TILE_LENGTH)?) {
        return Ok((tile, false));
    }
    let rows = side(directory, ROWS_PER_STRIP)?.filter(|rows| *rows > 0);
    Ok(((width, rows.unwrap_or(height).min(height)), false))
}

/// Chroma subsampling, horizontal and vertical.
fn subsampling(directory: &Directory, colour: &Colour) -> Result<(usize, usize), ImageError> {
    if !matches!(colour, Colour::YCbCr(_)) {
        return Ok((1, 1));
    }
    let Some(values) = directory.values(YCBCR_SUBSAMPLING)? else {
        return Ok((2, 2));
    };
    match (values.get(0), values.get(1)) {
        (Some(across @ (1 | 2 | 4)), Some(down @ (1 | 2 | 4))) => Ok((across as usize, down as usize)),
        _ => Err(ImageError::Undecodable),
    }
}
