//! 8-bit samples → RGB, composited on white.

use super::directory::{Directory, Values};
use crate::error::ImageError;
use crate::processing::decoders::samples::on_white;

const COLOR_MAP: u16 = 320;
const YCBCR_COEFFICIENTS: u16 = 529;
const REFERENCE_BLACK_WHITE: u16 = 532;

/// Colour space of the samples.
#[derive(Debug)]
pub(super) enum Colour {
    /// Grey, 0 white.
    WhiteIsZero,
    /// Grey, 0 black.
    BlackIsZero,
    /// Red, green and blue.
    Rgb,
    /// A palette: the colour of each index.
    Palette(Vec<[u8; 3]>),
    /// CMYK, 0 is no ink.
    Cmyk,
    /// YCbCr.
    YCbCr(Box<YCbCr>),
}

/// Kind of alpha.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opacity {
    /// Premultiplied (associated).
    Associated,
    /// Straight (unassociated).
    Unassociated,
}

impl Colour {
    /// Number of colour samples per pixel.
    pub(super) fn samples(&self) -> usize {
        match self {
            Self::WhiteIsZero | Self::BlackIsZero | Self::Palette(_) => 1,
            Self::Rgb | Self::YCbCr(_) => 3,
            Self::Cmyk => 4,
        }
    }

    /// Reads the palette of a directory, for indices of `bits` bits.
    pub(super) fn palette(directory: &Directory, bits: usize) -> Result<Self, ImageError> {
        let map = directory.values(COLOR_MAP)?.ok_or(ImageError::Undecodable)?;
        let count = map.len() / 3;
        if count < 1 << bits || map.len() % 3 != 0 {
            return Err(ImageError::Undecodable);
        }
        // 16-bit values; libtiff and Pillow use the high byte, which some writers leave empty.
        let shift = if map.integers().flatten().any(|value| value > 255) {
            8
        } else {
            0
        };
        let value = |index| {
            let value = map.get(index).ok_or(ImageError::Undecodable)?;
            Ok((value >> shift) as u8)
        };
        let colour = |index| Ok([value(index)?, value(count + index)?, value(2 * count + index)?]);
        (0..count.min(256))
            .map(colour)
            .collect::<Result<_, _>>()
            .map(Self::Palette)
    }

    /// Converts a row. `samples` has the colour samples of every pixel, then its alpha if there is an `opacity`. Returns whether
    /// a pixel is visible.
    pub(super) fn convert(&self, samples: &[u8], opacity: Option<Opacity>, rgb: &mut [u8]) -> bool {
        let colours = self.samples();
        match (self, opacity) {
            (Self::Rgb, None) => {
                let length = rgb.len().min(samples.len());
                rgb[..length].copy_from_slice(&samples[..length]);
            }
            (Self::WhiteIsZero, None) => each::<1>(samples, rgb, |[level]| [!level; 3]),
            (Self::BlackIsZero, None) => each::<1>(samples, rgb, |[level]| [level; 3]),
            (Self::Palette(colours), None) => each::<1>(samples, rgb, |index| colour(colours, index)),
            (Self::Cmyk, None) => each::<4>(samples, rgb, cmyk),
            (Self::YCbCr(tables), None) => each::<3>(samples, rgb, |pixel| tables.rgb(pixel)),
            (Self::WhiteIsZero, Some(opacity)) => {
                each::<2>(samples, rgb, |[level, a]| {
                    [!level; 3].map(|c| opacity.on_white(c, a))
                });
            }
            (Self::BlackIsZero, Some(opacity)) => {
                each::<2>(samples, rgb, |[level, a]| [opacity.on_white(level, a); 3]);
            }
            (Self::Palette(colours), Some(opacity)) => each::<2>(samples, rgb, |[index, a]| {
                colour(colours, [index]).map(|c| opacity.on_white(c, a))
            }),
            (Self::Rgb, Some(opacity)) => {
                each::<4>(samples, rgb, |[r, g, b, a]| {
                    [r, g, b].map(|c| opacity.on_white(c, a))
                });
            }
            (Self::YCbCr(tables), Some(opacity)) => each::<4>(samples, rgb, |[y, cb, cr, a]| {
                tables.rgb([y, cb, cr]).map(|c| opacity.on_white(c, a))
            }),
            (Self::Cmyk, Some(opacity)) => each::<5>(samples, rgb, |[c, m, y, k, a]| {
                cmyk([c, m, y, k]).map(|c| opacity.on_white(c, a))
            }),
        }
        opacity.is_none()
            || samples
                .iter()
                .skip(colours)
                .step_by(colours + 1)
                .any(|alpha| *alpha > 0)
    }
}

/// Converts pixel by pixel.
fn each<const N: usize>(samples: &[u8], rgb: &mut [u8], convert: impl Fn([u8; N]) -> [u8; 3]) {
    let pixels = samples.as_chunks::<N>().0;
    for (pixel, rgb) in pixels.iter().zip(rgb.as_chunks_mut::<3>().0) {
        *rgb = convert(*pixel);
    }
}

fn colour(colours: &[[u8; 3]], [index]: [u8; 1]) -> [u8; 3] {
    colours.get(usize::from(index)).copied().unwrap_or_default()
}

/// Converts as Pillow does.
fn cmyk([c, m, y, k]: [u8; 4]) -> [u8; 3] {
    let light = u32::from(255 - k);
    [c, m, y].map(|ink| {
        let product = u32::from(ink) * light + 128;
        (light - (((product >> 8) + product) >> 8)) as u8
    })
}

impl Opacity {
    fn on_white(self, colour: u8, alpha: u8) -> u8 {
        match self {
            Self::Associated => colour.saturating_add(255 - alpha),
            Self::Unassociated => on_white(colour, alpha),
        }
    }
}

/// Lookup tables of the conversion from YCbCr, computed and summed as in libtiff and libjpeg.
#[derive(Debug)]
pub(super) struct YCbCr {
    y: [i32; 256],
    cr_r: [i32; 256],
    cb_b: [i32; 256],
    cr_g: [i32; 256],
    cb_g: [i32; 256],
}

impl YCbCr {
    /// For a directory's YCbCrCoefficients and ReferenceBlackWhite.
    pub(super) fn of(directory: &Directory) -> Result<Self, ImageError> {
        let numbers = |values: Option<Values>| values.map(|values| values.reals());
        let luma = numbers(directory.values(YCBCR_COEFFICIENTS)?);
        let range = numbers(directory.values(REFERENCE_BLACK_WHITE)?);
        let luma = luma.and_then(|values| values.first_chunk().copied());
        let range = range.and_then(|values| values.first_chunk().copied());
        let usable = |values: &[f32]| values.iter().all(|value| value.is_finite());
        let luma = luma.unwrap_or(Self::BT601);
        let range = range.unwrap_or(Self::FULL);
        if !usable(&luma) || !usable(&range) || luma[1] == 0.0 {
            return Err(ImageError::Undecodable);
        }
        Ok(Self::new(luma, range))
    }

    /// For JPEG.
    pub(super) fn jpeg() -> Self {
        Self::new(Self::BT601, Self::FULL)
    }

    const BT601: [f32; 3] = [0.299, 0.587, 0.114];
    const FULL: [f32; 6] = [0.0, 255.0, 128.0, 255.0, 128.0, 255.0];

    fn new([red, green, blue]: [f32; 3], range: [f32; 6]) -> Self {
        let fixed = |x: f32| (f64::from(x.clamp(0.0, 2.0)) * 65536.0 + 0.5) as i32;
        let (r, b) = (2.0 - 2.0 * red, 2.0 - 2.0 * blue);
        let (cr_r, cb_b) = (fixed(r), fixed(b));
        let (cr_g, cb_g) = (-fixed(red * r / green), -fixed(blue * b / green));
        let code = |code: f32, black: f32, white: f32, most: f32| {
            let span = if white == black { 1.0 } else { white - black };
            // The black level is an integer there, too.
            let value = (code - black.trunc()) * most / span;
            value.clamp(-128.0 * 32.0, 128.0 * 32.0) as i32
        };
        let [y0, y1, cb0, cb1, cr0, cr1] = range;
        let table = |make: &dyn Fn(f32) -> i32| std::array::from_fn(|index| make(index as f32));
        let cr = |x: f32| code(x - 128.0, cr0 - 128.0, cr1 - 128.0, 127.0);
        let cb = |x: f32| code(x - 128.0, cb0 - 128.0, cb1 - 128.0, 127.0);
        Self {
            y: table(&|x| code(x, y0, y1, 255.0)),
            cr_r: table(&|x| (cr_r * cr(x) + 32768) >> 16),
            cb_b: table(&|x| (cb_b * cb(x) + 32768) >> 16),
            cr_g: table(&|x| cr_g * cr(x)),
            cb_g: table(&|x| cb_g * cb(x) + 32768),
        }
    }

    fn rgb(&self, [y, cb, cr]: [u8; 3]) -> [u8; 3] {
        let (y, cb, cr) = (self.y[usize::from(y)], usize::from(cb), usize::from(cr));
        [
            y + self.cr_r[cr],
            y + ((self.cb_g[cb] + self.cr_g[cr]) >> 16),
            y + self.cb_b[cb],
        ]
        .map(|value| value.clamp(0, 255) as u8)
    }
}
