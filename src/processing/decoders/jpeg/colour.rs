//! Colour conversion of a row of each component to a row of pixels (libjpeg-turbo: jdapimin.c, jdcolor.c; CMYK: Pillow's Convert.c).

use super::Colours;

/// Colour space of the components, and their conversion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Conversion {
    /// Interleaved without conversion.
    Stored,
    /// Grey, three times.
    Grey,
    /// Red, green, blue.
    Rgb,
    /// YCbCr.
    Ycc,
    /// CMYK, inverted as Adobe writes it.
    Cmyk,
    /// YCCK.
    Ycck,
}

impl Conversion {
    /// Chooses as libjpeg does: a JFIF header takes precedence over Adobe's marker, and that over the components' identifiers.
    pub(super) fn choose(colours: Colours, ids: &[u8], jfif: bool, adobe: Option<u8>) -> Self {
        match (colours, ids, jfif, adobe) {
            (Colours::Stored, ..) => Self::Stored,
            (_, [_], ..) => Self::Grey,
            (_, [_, _, _], true, _) => Self::Ycc,
            (_, [_, _, _], _, Some(0)) => Self::Rgb,
            (_, [b'R', b'G', b'B'], _, None) => Self::Rgb,
            (_, [_, _, _], ..) => Self::Ycc,
            (_, _, _, None | Some(0)) => Self::Cmyk,
            _ => Self::Ycck,
        }
    }

    /// Bytes per pixel.
    pub(super) fn channels(self, components: usize) -> usize {
        if self == Self::Stored { components } else { 3 }
    }

    /// Converts a row. `lines` have one sample per pixel; those of missing components are empty.
    pub(super) fn row(self, lines: [&[u8]; 4], out: &mut [u8]) {
        let [a, b, c, d] = lines;
        match self {
            Self::Stored => match lines {
                [a, [], ..] => out.copy_from_slice(a),
                [a, b, c, []] => interleave(a, b, c, out),
                _ => {
                    for (i, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                        *out = [a[i], b[i], c[i], d[i]];
                    }
                }
            },
            Self::Grey => interleave(a, a, a, out),
            Self::Rgb => interleave(a, b, c, out),
            Self::Ycc => each([a, b, c], out, ycc),
            Self::Cmyk => each(lines, out, |[c, m, y, k]| {
                [c, m, y].map(|ink| std::array::from_fn(|i| over_black(ink[i], k[i])))
            }),
            // CMY is the inverse of these colours.
            Self::Ycck => each(lines, out, |[y, cb, cr, k]| {
                ycc([y, cb, cr]).map(|light| std::array::from_fn(|i| over_black(255 - light[i], k[i])))
            }),
        }
    }
}

/// Pixels converted at a time.
const LANES: usize = 16;

fn interleave(a: &[u8], b: &[u8], c: &[u8], out: &mut [u8]) {
    for (((out, &a), &b), &c) in out.as_chunks_mut::<3>().0.iter_mut().zip(a).zip(b).zip(c) {
        *out = [a, b, c];
    }
}

/// Converts `LANES` pixels at a time: planes in, planes out, so that the compiler can use vectors.
#[inline(always)]
fn each<const N: usize>(
    lines: [&[u8]; N],
    out: &mut [u8],
    convert: impl Fn([&[u8; LANES]; N]) -> [[u8; LANES]; 3],
) {
    let lines = lines.map(|line| line.as_chunks::<LANES>());
    let (wholes, out) = out.as_chunks_mut::<{ 3 * LANES }>();
    for (i, out) in wholes.iter_mut().enumerate() {
        pack(&convert(lines.map(|(chunks, _)| &chunks[i])), out);
    }
    let rest = lines.map(|(_, line)| {
        let mut padded = [0; LANES];
        padded[..line.len()].copy_from_slice(line);
        padded
    });
    let planes = convert(rest.each_ref());
    for (i, out) in out.as_chunks_mut::<3>().0.iter_mut().enumerate() {
        *out = [planes[0][i], planes[1][i], planes[2][i]];
    }
}

/// Interleaves three planes, four pixels at a time.
#[inline(always)]
fn pack(planes: &[[u8; LANES]; 3], out: &mut [u8; 3 * LANES]) {
    let mut pixels = [0; LANES];
    for (i, pixel) in pixels.iter_mut().enumerate() {
        *pixel = u32::from(planes[0][i]) | u32::from(planes[1][i]) << 8 | u32::from(planes[2][i]) << 16;
    }
    for (four, out) in pixels.as_chunks::<4>().0.iter().zip(out.as_chunks_mut::<12>().0) {
        let [a, b, c, d] = four.map(u64::from);
        out[..8].copy_from_slice(&(a | b << 24 | c << 48).to_le_bytes());
        out[8..].copy_from_slice(&((c >> 16 | d << 8) as u32).to_le_bytes());
    }
}

/// 65536 * 1.402, 1.772, 0.34414 and 0.71414, less whole multiples of 65536 so that 16 bits hold them.
const CR_TO_RED: i32 = 91881 - 65536;
const CB_TO_BLUE: i32 = 116_130 - 2 * 65536;
const CB_TO_GREEN: i32 = -22554;
const CR_TO_GREEN: i32 = 65536 - 46802;

#[inline(always)]
fn ycc([y, cb, cr]: [&[u8; LANES]; 3]) -> [[u8; LANES]; 3] {
    let mut out = [[0; LANES]; 3];
    let scaled = |value: i32| ((value + 32768) >> 16) as i16;
    for i in 0..LANES {
        let y = i16::from(y[i]);
        let (cb, cr) = (i16::from(cb[i]) - 128, i16::from(cr[i]) - 128);
        let red = y + cr + scaled(i32::from(cr) * CR_TO_RED);
        let green = y - cr + scaled(i32::from(cb) * CB_TO_GREEN + i32::from(cr) * CR_TO_GREEN);
        let blue = y + 2 * cb + scaled(i32::from(cb) * CB_TO_BLUE);
        out[0][i] = red.clamp(0, 255) as u8;
        out[1][i] = green.clamp(0, 255) as u8;
        out[2][i] = blue.clamp(0, 255) as u8;
    }
    out
}

/// RGB value of an inverted ink and inverted black, as Pillow computes it.
fn over_black(inverted: u8, inverted_black: u8) -> u8 {
    let (ink, light) = (u32::from(255 - inverted), u32::from(inverted_black));
    let product = ink * light + 128;
    (light - ((product + (product >> 8)) >> 8)) as u8
}
