//! The embedded fonts.

use std::sync::OnceLock;

use crate::rendering::Face;

/// A font family in two weights.
pub(super) struct Family {
    pub(super) id: &'static str,
    regular: &'static [u8],
    bold: &'static [u8],
}

macro_rules! family {
    ($id:literal, $suffix:literal) => {
        Family {
            id: $id,
            regular: include_bytes!(concat!("../../assets/fonts/clinical/", $id, ".", $suffix)),
            bold: include_bytes!(concat!("../../assets/fonts/clinical/", $id, "-bold.", $suffix)),
        }
    };
}

/// The first one is the font that the embedded model was trained on.
pub(super) static FAMILIES: [Family; 16] = [
    Family {
        id: "dejavu-sans-mono",
        regular: include_bytes!("../../assets/fonts/DejaVuSansMono.ttf"),
        bold: include_bytes!("../../assets/fonts/DejaVuSansMono-Bold.ttf"),
    },
    family!("mono-1", "ttf"),
    family!("mono-2", "otf"),
    family!("mono-3", "ttf"),
    family!("mono-4", "ttf"),
    family!("sans-1", "ttf"),
    family!("sans-2", "ttf"),
    family!("sans-3", "ttf"),
    family!("sans-4", "ttf"),
    family!("sans-5", "ttf"),
    family!("sans-6", "ttf"),
    family!("sans-7", "ttf"),
    family!("serif-1", "ttf"),
    family!("serif-2", "ttf"),
    family!("serif-3", "ttf"),
    family!("serif-4", "ttf"),
];

/// Minimum and maximum size of body text, pixels.
pub(super) const SIZES: [u16; 2] = [10, 24];
/// Maximum size of titles and stamps, pixels.
const MAX_SIZE: usize = 40;

/// A face of a family, cached after the first call.
pub(super) fn face(family: usize, bold: bool, pixels: u16, hinted: bool) -> &'static Face {
    const PER_FAMILY: usize = 4 * (MAX_SIZE + 1);
    static FACES: [OnceLock<Face>; FAMILIES.len() * PER_FAMILY] =
        [const { OnceLock::new() }; FAMILIES.len() * PER_FAMILY];
    let pixels = pixels.clamp(1, MAX_SIZE as u16);
    let family = family.min(FAMILIES.len() - 1);
    let index = family * PER_FAMILY + usize::from(pixels) * 4 + usize::from(bold) * 2 + usize::from(hinted);
    FACES[index].get_or_init(|| {
        let data = if bold {
            FAMILIES[family].bold
        } else {
            FAMILIES[family].regular
        };
        let mut chosen = Face::shipped(data, pixels);
        if !hinted {
            chosen = chosen.unhinted();
        }
        // Only the first family has every character of the alphabet.
        if family == 0 {
            chosen
        } else {
            chosen.with_substitute(face(0, bold, pixels, hinted))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_face_covers_the_alphabet() {
        let alphabet = ('!'..='~').chain("—–°µ±≤≥×•→²éü’".chars());
        for (family, Family { id, .. }) in FAMILIES.iter().enumerate() {
            for (bold, hinted) in [(false, true), (true, false)] {
                let face = face(family, bold, 13, hinted);
                for character in alphabet.clone() {
                    let glyph = face.glyph(character);
                    let ink: u32 = glyph.coverage.iter().map(|coverage| u32::from(*coverage)).sum();
                    assert!(
                        ink > 100 && glyph.advance > 64 && glyph.width < 40,
                        "{id} {character:?}"
                    );
                }
                assert!(face.width("a b") > face.width("ab"));
            }
        }
        assert!(face(6, false, 13, true).width("iiii") * 2 < face(6, false, 13, true).width("mmmm"));
    }
}
