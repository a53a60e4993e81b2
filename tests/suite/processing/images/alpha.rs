//! A picture without one visible pixel is opaque: Windows' clipboard, for one, leaves alpha at 0.

use image::{ImageEncoder, RgbaImage};

use super::read;

const COLOURS: [[u8; 3]; 4] = [[200, 10, 20], [0, 0, 0], [255, 255, 255], [90, 91, 92]];

/// A BMP with a V5 header and alpha in the highest byte, as the clipboard's.
fn bmp_v5(alphas: [u8; 4]) -> Vec<u8> {
    let mut file = b"BM".to_vec();
    file.extend((14 + 124 + 16u32).to_le_bytes());
    file.extend([0; 4]);
    file.extend((14 + 124u32).to_le_bytes());
    file.extend(124u32.to_le_bytes());
    file.extend([4i32, -1].map(i32::to_le_bytes).concat());
    file.extend([1u16, 32].map(u16::to_le_bytes).concat());
    const BITFIELDS: u32 = 3;
    file.extend([BITFIELDS, 16, 0, 0, 0, 0].map(u32::to_le_bytes).concat());
    file.extend(
        [0x00ff_0000u32, 0xff00, 0xff, 0xff00_0000]
            .map(u32::to_le_bytes)
            .concat(),
    );
    file.extend(b"BGRs");
    file.resize(14 + 124, 0);
    for ([r, g, b], alpha) in COLOURS.into_iter().zip(alphas) {
        file.extend([b, g, r, alpha]);
    }
    file
}

fn rgba(alphas: [u8; 4]) -> Vec<u8> {
    let pixels = COLOURS.into_iter().zip(alphas);
    pixels.flat_map(|([r, g, b], alpha)| [r, g, b, alpha]).collect()
}

fn png(alphas: [u8; 4]) -> Vec<u8> {
    let mut file = Vec::new();
    let encoder = image::codecs::png::PngEncoder::new(&mut file);
    encoder
        .write_image(&rgba(alphas), 4, 1, image::ExtendedColorType::Rgba8)
        .unwrap();
    file
}

fn webp(alphas: [u8; 4]) -> Vec<u8> {
    let mut file = Vec::new();
    let picture = RgbaImage::from_raw(4, 1, rgba(alphas)).unwrap();
    let encoder = image::codecs::webp::WebPEncoder::new_lossless(&mut file);
    encoder
        .write_image(&picture, 4, 1, image::ExtendedColorType::Rgba8)
        .unwrap();
    file
}

/// Colour 0 is the transparent one.
fn gif(indices: [u8; 4]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = gif::Encoder::new(&mut file, 4, 1, &COLOURS.concat()).unwrap();
    let frame = gif::Frame {
        width: 4,
        height: 1,
        buffer: indices.to_vec().into(),
        transparent: Some(0),
        ..gif::Frame::default()
    };
    encoder.write_frame(&frame).unwrap();
    drop(encoder);
    file
}

#[test]
fn a_picture_without_a_visible_pixel_is_opaque() {
    for (name, file) in [
        ("BMP", bmp_v5([0; 4])),
        ("PNG", png([0; 4])),
        ("WebP", webp([0; 4])),
    ] {
        assert_eq!(read(&file).unwrap().pixels, COLOURS.concat(), "{name}");
    }
    assert_eq!(read(&gif([0; 4])).unwrap().pixels, [COLOURS[0]; 4].concat());
}

#[test]
fn one_visible_pixel_keeps_the_others_transparent() {
    let expected = [[255; 3], [0; 3], [255; 3], [255; 3]].concat();
    let alphas = [0, 255, 0, 0];
    for (name, file) in [
        ("BMP", bmp_v5(alphas)),
        ("PNG", png(alphas)),
        ("WebP", webp(alphas)),
    ] {
        assert_eq!(read(&file).unwrap().pixels, expected, "{name}");
    }
    assert_eq!(read(&gif([0, 1, 0, 0])).unwrap().pixels, expected);
}
