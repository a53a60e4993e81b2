//! Pages scaled while they are decoded are those that libtorch's own resampling makes of the whole page, bit for bit.

use image::{ImageEncoder, RgbImage};
use medical_vision::error::ImageError;
use medical_vision::processing::{DecodeLimits, PixelBounds, RgbPage, decode, decode_page};

use super::{Random, nano};

/// A PNG of noise, turned by an orientation.
fn png(page: &RgbPage, orientation: u8) -> Vec<u8> {
    let exif = [
        &b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0"[..],
        &[orientation],
        &[0; 6],
    ]
    .concat();
    let mut file = Vec::new();
    let mut encoder = image::codecs::png::PngEncoder::new(&mut file);
    encoder.set_exif_metadata(exif).unwrap();
    let (width, height) = (page.width, page.height);
    encoder
        .write_image(&page.pixels, width, height, image::ExtendedColorType::Rgb8)
        .unwrap();
    file
}

/// Noise hides no rounding, and edges of black and white show whether values were clipped between the passes.
fn picture(random: &mut Random, width: u32, height: u32) -> RgbPage {
    let mut page = random.page(width, height);
    if random.below(2) == 0 {
        for sample in &mut page.pixels {
            *sample = if *sample < 100 { 0 } else { 255 };
        }
    }
    page
}

#[test]
fn scaling_while_decoding_is_scaling_the_whole_page() {
    let mut random = Random(11);
    let (mut shrunk, mut enlarged) = (0, 0);
    for round in 0..160 {
        let (width, height) = (1 + random.below(700) as u32, 1 + random.below(700) as u32);
        if width.max(height) > 150 * width.min(height) {
            continue;
        }
        let most = [28 * 28, 100_000, 1_254_400][random.below(3)];
        let processor = nano().with_pixel_bounds(Some(784), Some(most)).unwrap();
        let processor = processor
            .with_max_enlargement([None, Some(1.5)][random.below(2)])
            .unwrap();
        let file = png(&picture(&mut random, width, height), 1 + (round % 8) as u8);
        let whole = decode(&file, &DecodeLimits::default()).unwrap();
        let scaled = decode_page(&file, &DecodeLimits::default(), Some(&processor.bounds())).unwrap();
        let scaled = scaled.page;
        assert_eq!(scaled.original_size(), (whole.height, whole.width));
        let (expected, found) = (
            processor.process(&whole).unwrap(),
            processor.process(&scaled).unwrap(),
        );
        let what = format!("{width}x{height}, orientation {}, {most}", 1 + round % 8);
        assert_eq!(expected.grid, found.grid, "{what}");
        assert!(expected.pixel_values.equal(&found.pixel_values), "{what}");
        let pixels = u64::from(scaled.width) * u64::from(scaled.height);
        if pixels < u64::from(width) * u64::from(height) {
            shrunk += 1
        } else {
            enlarged += 1
        }
    }
    assert!(shrunk > 40 && enlarged > 40, "{shrunk}, {enlarged}");
}

#[test]
fn bounds_that_would_scale_a_scaled_page_again_do_not() {
    // With a bound on enlargement a small page's size depends on where one starts.
    let bounds = PixelBounds {
        factor: 28,
        min_pixels: 1_000_000,
        max_pixels: 1_254_400,
        max_enlargement: Some(1.5),
    };
    let file = png(&Random(5).page(100, 90), 1);
    let page = decode_page(&file, &DecodeLimits::default(), Some(&bounds))
        .unwrap()
        .page;
    let again = bounds.scaled(page.height, page.width).unwrap();
    assert_ne!(again, (page.height, page.width));
    let processor = nano()
        .with_pixel_bounds(Some(bounds.min_pixels), Some(bounds.max_pixels))
        .unwrap()
        .with_max_enlargement(bounds.max_enlargement)
        .unwrap();
    let grid = processor.process(&page).unwrap().grid;
    assert_eq!(
        (grid.h * 14, grid.w * 14),
        (page.height as usize, page.width as usize)
    );
}

#[test]
fn a_page_that_cannot_be_scaled_is_refused_before_it_is_decoded() {
    let line = RgbImage::new(20_000, 1);
    let page = RgbPage::new(20_000, 1, line.into_raw());
    let file = png(&page, 6);
    let refused = decode_page(&file, &DecodeLimits::default(), Some(&nano().bounds()));
    let (width, height) = (1, 20_000);
    assert_eq!(refused.err(), Some(ImageError::AspectRatio { width, height }));
}
