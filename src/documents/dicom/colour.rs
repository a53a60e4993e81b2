//! Colours that DICOM alone has.

use dicom_object::{DefaultDicomObject, Tag};

/// A palette: three tables.
pub(super) struct Palette([Table; 3]);

struct Table {
    first: i32,
    levels: Vec<u8>,
}

impl Palette {
    /// Reads the tables; `None` if one is missing or damaged.
    pub(super) fn read(object: &DefaultDicomObject) -> Option<Self> {
        let table = |element: u16| {
            let descriptor = object.element_opt(Tag(0x0028, 0x1101 + element)).ok()??;
            let descriptor = descriptor.to_multi_int::<i32>().ok()?;
            let [entries, first, bits] = descriptor[..] else {
                return None;
            };
            let entries = match entries & 0xffff {
                0 => 65536,
                entries => entries as usize,
            };
            let data = object.element_opt(Tag(0x0028, 0x1201 + element)).ok()??;
            let data = data.to_bytes().ok()?;
            // 8-bit entries are stored two in a word by some programs, one in a word by others.
            let levels: Vec<u8> = match bits {
                8 if data.len() < 2 * entries => data.iter().copied().take(entries).collect(),
                8 => data
                    .as_chunks::<2>()
                    .0
                    .iter()
                    .map(|word| u16::from_ne_bytes(*word) as u8)
                    .take(entries)
                    .collect(),
                16 => data
                    .as_chunks::<2>()
                    .0
                    .iter()
                    .map(|word| (u16::from_ne_bytes(*word) >> 8) as u8)
                    .take(entries)
                    .collect(),
                _ => return None,
            };
            (!levels.is_empty()).then_some(Table { first, levels })
        };
        Some(Self([table(0)?, table(1)?, table(2)?]))
    }

    /// The colours of indices; beyond its ends a table goes on as it ends.
    pub(super) fn apply(&self, indices: &[i32]) -> Vec<u8> {
        let level = |table: &Table, index: i32| {
            let last = table.levels.len() - 1;
            let at = i64::from(index) - i64::from(table.first);
            table.levels[at.clamp(0, last as i64) as usize]
        };
        let colours = indices
            .iter()
            .map(|index| self.0.each_ref().map(|table| level(table, *index)));
        colours.flatten().collect()
    }
}

/// YBR_FULL → RGB in place, as PS3.3 C.7.6.3.1.2 defines it.
pub(super) fn from_ybr(mut ybr: Vec<u8>) -> Vec<u8> {
    for pixel in ybr.as_chunks_mut::<3>().0 {
        *pixel = rgb(*pixel);
    }
    ybr
}

/// Uncompressed YBR_FULL_422, two pixels in four bytes (Y Y B R) → RGB.
pub(super) fn from_422(bytes: &[u8], width: usize, height: usize) -> Option<Vec<u8>> {
    let pairs = bytes.as_chunks::<4>().0.get(..(width * height).div_ceil(2))?;
    let pixels = pairs
        .iter()
        .flat_map(|&[left, right, blue, red]| [rgb([left, blue, red]), rgb([right, blue, red])]);
    Some(pixels.take(width * height).flatten().collect())
}

fn rgb([y, blue, red]: [u8; 3]) -> [u8; 3] {
    let (y, blue, red) = (f32::from(y), f32::from(blue) - 128.0, f32::from(red) - 128.0);
    let level = |value: f32| value.round().clamp(0.0, 255.0) as u8;
    [
        level(y + 1.402 * red),
        level(y - 0.344_136 * blue - 0.714_136 * red),
        level(y + 1.772 * blue),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_pixels_share_their_colour() {
        assert_eq!(
            from_422(&[255, 0, 128, 128], 2, 1),
            Some(vec![255, 255, 255, 0, 0, 0])
        );
        assert_eq!(from_422(&[76, 76, 85, 255], 1, 1), Some(vec![254, 0, 0]));
        assert_eq!(from_422(&[1, 2, 3], 2, 1), None);
    }

    #[test]
    fn a_palette_goes_on_beyond_its_ends() {
        let table = || Table {
            first: 10,
            levels: vec![1, 2, 3],
        };
        let palette = Palette([table(), table(), table()]);
        assert_eq!(
            palette.apply(&[-5, 10, 11, 99]),
            [1, 1, 1, 1, 1, 1, 2, 2, 2, 3, 3, 3]
        );
    }
}
