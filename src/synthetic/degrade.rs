//! Degrades a clean page: pen marks, stamps, skew, blur, sensor noise, compression.

use std::sync::LazyLock;

use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;

use super::{marks, style::Degradation, vocabulary::Shared};
use crate::random::SeededRng;
use crate::rendering::{GreyPage, encode_grey};

/// An image file.
pub(super) struct EncodedImage {
    pub(super) bytes: Vec<u8>,
    pub(super) extension: &'static str,
}

/// Applies `degradation` in physical order: pen and stamps, position on the scanner, lens, sensor, file.
pub(super) fn degrade(
    mut page: GreyPage,
    degradation: &Degradation,
    rng: &mut SeededRng,
    shared: &Shared,
) -> EncodedImage {
    marks::pen_marks(&mut page, rng, degradation.pen_marks);
    for _ in 0..degradation.stamps {
        marks::stamp(&mut page, rng, shared);
    }
    if degradation.skew_degrees.abs() > 0.05 {
        page = skew(&page, degradation.skew_degrees);
    }
    if degradation.blur > 0 {
        for _ in 0..degradation.blur_passes {
            page = blur(&page, degradation.blur.min(84));
        }
    }
    sensor_noise(&mut page, degradation, rng);
    specks(&mut page, degradation.specks, rng);
    match degradation.jpeg {
        Some(quality) => jpeg(&page, quality),
        None => png(&page),
    }
}

pub(super) fn png(page: &GreyPage) -> EncodedImage {
    let mut bytes = Vec::new();
    encode_grey(page, &mut bytes).expect("writing to memory does not fail");
    EncodedImage {
        bytes,
        extension: "png",
    }
}

fn jpeg(page: &GreyPage, quality: u8) -> EncodedImage {
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, quality)
        .encode(&page.pixels, page.width, page.height, ExtendedColorType::L8)
        .expect("a grey page is within what JPEG holds");
    EncodedImage {
        bytes,
        extension: "jpg",
    }
}

/// Rotates around the centre, bilinear; pixels from outside are white.
fn skew(page: &GreyPage, degrees: f64) -> GreyPage {
    const ONE: f64 = 65_536.0;
    let (width, height) = (page.width as usize, page.height as usize);
    let (sin, cos) = degrees.to_radians().sin_cos();
    let (middle_x, middle_y) = (width as f64 / 2.0, height as f64 / 2.0);
    let (step_x, step_y) = ((cos * ONE) as i32, (-sin * ONE) as i32);
    let mut pixels = vec![255; width * height];
    for (index, row) in pixels.chunks_exact_mut(width).enumerate() {
        let down = index as f64 - middle_y;
        let mut x = ((middle_x - middle_x * cos + down * sin) * ONE) as i32;
        let mut y = ((middle_y + middle_x * sin + down * cos) * ONE) as i32;
        for pixel in row {
            let (left, top) = (x >> 16, y >> 16);
            if left >= 0 && top >= 0 && (left as usize) < width - 1 && (top as usize) < height - 1 {
                let start = top as usize * width + left as usize;
                let (upper, lower) = (
                    &page.pixels[start..start + 2],
                    &page.pixels[start + width..start + width + 2],
                );
                let (right, below) = ((x >> 8 & 255) as u32, (y >> 8 & 255) as u32);
                let mix = |pair: &[u8]| u32::from(pair[0]) * (256 - right) + u32::from(pair[1]) * right;
                *pixel = ((mix(upper) * (256 - below) + mix(lower) * below) >> 16) as u8;
            }
            x += step_x;
            y += step_y;
        }
    }
    GreyPage { pixels, ..*page }
}

/// Separable 3-tap blur with weights `[share, 256 - 2 share, share] / 256`; border pixels stay.
fn blur(page: &GreyPage, share: u32) -> GreyPage {
    let width = page.width as usize;
    let (share, kept) = (share as u16, 256 - 2 * share as u16);
    let mix = |a: u8, b: u8, c: u8| {
        ((u16::from(a) * share)
            .wrapping_add(u16::from(b) * kept)
            .wrapping_add(u16::from(c) * share)
            >> 8) as u8
    };
    let mut across = page.pixels.clone();
    for (source, target) in page
        .pixels
        .chunks_exact(width)
        .zip(across.chunks_exact_mut(width))
    {
        let neighbours = source.iter().zip(&source[1..]).zip(&source[2..]);
        for (target, ((a, b), c)) in target[1..].iter_mut().zip(neighbours) {
            *target = mix(*a, *b, *c);
        }
    }
    let mut pixels = across.clone();
    let rows = across.chunks_exact(width);
    let around = rows.clone().zip(rows.clone().skip(1)).zip(rows.skip(2));
    for (target, ((a, b), c)) in pixels.chunks_exact_mut(width).skip(1).zip(around) {
        for (target, ((a, b), c)) in target.iter_mut().zip(a.iter().zip(b).zip(c)) {
            *target = mix(*a, *b, *c);
        }
    }
    GreyPage { pixels, ..*page }
}

/// Approximately normal noise with a standard deviation of 32; each row of a page reads it from a random offset.
static NOISE: LazyLock<Vec<i8>> = LazyLock::new(|| {
    let mut bytes = vec![0; (1 << 16) * 4];
    SeededRng::new(0, "noise", 0, 0).fill(&mut bytes);
    bytes
        .chunks_exact(4)
        .map(|four| {
            // The sum of four uniform bytes has a standard deviation of 147.8.
            let sum: i32 = four.iter().map(|byte| i32::from(*byte)).sum();
            ((sum - 510) * 32 / 148).clamp(-127, 127) as i8
        })
        .collect()
});

/// Maps ink and paper to their grey levels and adds a brightness gradient and noise.
fn sensor_noise(page: &mut GreyPage, degradation: &Degradation, rng: &mut SeededRng) {
    const FRACTION: i32 = 1024;
    let (width, height) = (page.width as usize, f64::from(page.height));
    let (ink, paper) = (i32::from(degradation.ink), i32::from(degradation.paper));
    let shades: [i32; 256] =
        std::array::from_fn(|level| (ink * 255 + (paper - ink) * level as i32) * FRACTION / 255);
    let strength = (degradation.noise * f64::from(FRACTION) / 32.0) as i32;
    let slope = (degradation.shade[0] * f64::from(FRACTION) / width as f64) as i32;
    let from = -slope * width as i32 / 2;
    for (index, row) in page.pixels.chunks_exact_mut(width).enumerate() {
        let offset = rng.below(NOISE.len() - width);
        let noise = &NOISE[offset..offset + width];
        let down = (degradation.shade[1] * f64::from(FRACTION) * (index as f64 / height - 0.5)) as i32;
        let mut light = from + down;
        for (pixel, noise) in row.iter_mut().zip(noise) {
            let level = shades[usize::from(*pixel)] + light + i32::from(*noise) * strength;
            *pixel = (level / FRACTION).clamp(0, 255) as u8;
            light += slope;
        }
    }
}

/// Dust: dots of one to three pixels in random shades.
fn specks(page: &mut GreyPage, count: usize, rng: &mut SeededRng) {
    let width = page.width as usize;
    for _ in 0..count {
        let place = rng.below(page.pixels.len());
        let shade = rng.below(256) as u8;
        for at in [place, place + 1, place + width]
            .into_iter()
            .take(rng.between(1, 3))
        {
            if let Some(pixel) = page.pixels.get_mut(at) {
                *pixel = shade;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn page(width: u32, height: u32, seed: u64) -> GreyPage {
        let mut pixels = vec![0; (width * height) as usize];
        SeededRng::new(seed, "page", 0, 0).fill(&mut pixels);
        GreyPage {
            width,
            height,
            pixels,
        }
    }

    #[test]
    fn noise_has_its_nominal_mean_and_deviation() {
        let mean = NOISE.iter().map(|noise| f64::from(*noise)).sum::<f64>() / NOISE.len() as f64;
        let square = NOISE.iter().map(|noise| f64::from(*noise).powi(2)).sum::<f64>() / NOISE.len() as f64;
        assert!(
            mean.abs() < 1.0 && (square.sqrt() - 32.0).abs() < 1.0,
            "{mean} {}",
            square.sqrt()
        );
    }

    #[test]
    fn skew_is_invertible_and_keeps_white() {
        let mut block = GreyPage {
            width: 200,
            height: 160,
            pixels: vec![255; 200 * 160],
        };
        for row in 60..100 {
            block.pixels[row * 200 + 70..row * 200 + 130].fill(0);
        }
        let back = skew(&skew(&block, 2.5), -2.5);
        let far = block
            .pixels
            .iter()
            .zip(&back.pixels)
            .filter(|(a, b)| a.abs_diff(**b) > 128)
            .count();
        assert!(far < 60, "{far}");
        let moved = block
            .pixels
            .iter()
            .zip(&skew(&block, 2.5).pixels)
            .filter(|(a, b)| a.abs_diff(**b) > 128)
            .count();
        assert!(moved > 60, "{moved}");
        let white = GreyPage {
            width: 50,
            height: 40,
            pixels: vec![255; 2000],
        };
        assert!(skew(&white, 3.0).pixels.iter().all(|pixel| *pixel >= 254));
    }

    proptest! {
        #[test]
        fn blur_keeps_the_mean_and_smooths(seed: u64, share in 1u32..85) {
            let before = page(60, 50, seed);
            let after = blur(&before, share);
            let mean = |page: &GreyPage| page.pixels.iter().map(|p| f64::from(*p)).sum::<f64>() / 3000.0;
            prop_assert!((mean(&before) - mean(&after)).abs() < 4.0);
            let rough = |page: &GreyPage| page.pixels.windows(2).map(|pair| u32::from(pair[0].abs_diff(pair[1]))).sum::<u32>();
            prop_assert!(rough(&after) < rough(&before));
        }
    }
}
