//! Files of many kinds, their RGB pixels and the patches that transformers makes of them.

use std::io::Cursor;

use image::{DynamicImage, ExtendedColorType, ImageEncoder, ImageFormat, RgbImage};
use medical_vision::processing::RgbPage;
use safetensors::SafeTensors;
use serde::Deserialize;

use super::{Random, fixture, image_fixture, nano, read};

#[derive(Deserialize)]
struct Manifest {
    images: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    file: String,
    tolerance: u8,
    height: u32,
    width: u32,
    min_pixels: u64,
    max_pixels: u64,
    grid: [usize; 3],
    pixel_values: bool,
}

fn rows() -> Vec<Row> {
    let text = std::fs::read(fixture("images/manifest.json")).unwrap();
    serde_json::from_slice::<Manifest>(&text).unwrap().images
}

impl Row {
    /// The golden's tensors: RGB bytes and, if it has them, one frame of the patches.
    fn golden(&self) -> (RgbPage, Option<Vec<f32>>) {
        let file = image_fixture(&format!("{}.safetensors", self.file));
        let tensors = SafeTensors::deserialize(&file).unwrap();
        let pixels = tensors.tensor("rgb").unwrap().data().to_vec();
        let values = self.pixel_values.then(|| {
            let (bytes, _) = tensors.tensor("pixel_values").unwrap().data().as_chunks::<4>();
            bytes.iter().map(|b| f32::from_le_bytes(*b)).collect()
        });
        let (width, height) = (self.width, self.height);
        (RgbPage::new(width, height, pixels), values)
    }
}

#[test]
fn every_kind_of_file_decodes_to_its_pixels() {
    let rows = rows();
    assert!(rows.len() >= 30);
    for row in rows {
        let page = read(&image_fixture(&row.file)).unwrap_or_else(|error| panic!("{}: {error}", row.file));
        assert_eq!((page.width, page.height), (row.width, row.height), "{}", row.file);
        let (golden, _) = row.golden();
        let differences = page
            .pixels
            .iter()
            .zip(&golden.pixels)
            .map(|(a, b)| a.abs_diff(*b));
        assert!(differences.max().unwrap() <= row.tolerance, "{}", row.file);
    }
}

#[test]
fn patches_equal_those_of_transformers() {
    let mut compared = 0;
    for row in rows() {
        let (page, golden) = row.golden();
        let processor = nano()
            .with_pixel_bounds(Some(row.min_pixels), Some(row.max_pixels))
            .unwrap();
        let patches = processor.process(&page).unwrap();
        let grid = patches.grid;
        assert_eq!([grid.t, grid.h, grid.w], row.grid, "{}", row.file);
        assert_eq!(patches.pixel_values.size(), [grid.patches() as i64, 1176]);
        let levels = processor.process_levels(&page).unwrap();
        assert_eq!(
            (levels.grid, levels.levels.size()),
            (grid, vec![grid.patches() as i64, 588])
        );
        assert!(
            processor
                .normalise(&levels.levels)
                .unwrap()
                .equal(&patches.pixel_values)
        );
        let Some(golden) = golden else { continue };
        let values = Vec::<f32>::try_from(patches.pixel_values.flatten(0, -1)).unwrap();
        // The golden holds one of two equal frames.
        let frames = golden
            .chunks_exact(196)
            .flat_map(|frame| frame.iter().chain(frame));
        assert_eq!(values.len(), golden.len() * 2, "{}", row.file);
        let unequal = values.iter().zip(frames).filter(|(a, b)| a != b).count();
        assert_eq!(unequal, 0, "{}", row.file);
        compared += 1;
    }
    assert!(compared >= 12);
}

/// Where the pixel at the stored place lies in the upright picture of `width` x `height`.
fn stored_to_upright(orientation: u8, x: u32, y: u32, width: u32, height: u32) -> (u32, u32) {
    let (right, bottom) = (width - 1, height - 1);
    match orientation {
        1 => (x, y),
        2 => (right - x, y),
        3 => (right - x, bottom - y),
        4 => (x, bottom - y),
        5 => (y, x),
        6 => (right - y, x),
        7 => (right - y, bottom - x),
        _ => (y, bottom - x),
    }
}

#[test]
fn exif_orientations_are_undone() {
    let upright = Random(1).page(7, 4);
    let picture = RgbImage::from_raw(7, 4, upright.pixels.clone()).unwrap();
    for orientation in 1..=8 {
        let (width, height) = if orientation < 5 { (7, 4) } else { (4, 7) };
        let stored = RgbImage::from_fn(width, height, |x, y| {
            let (x, y) = stored_to_upright(orientation, x, y, 7, 4);
            *picture.get_pixel(x, y)
        });
        // A little-endian TIFF header and one directory with one entry: tag 0x112, a short.
        let exif = [
            &b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0"[..],
            &[orientation, 0, 0, 0, 0, 0, 0, 0],
        ]
        .concat();
        let mut png = Vec::new();
        let mut encoder = image::codecs::png::PngEncoder::new(&mut png);
        encoder.set_exif_metadata(exif.clone()).unwrap();
        encoder
            .write_image(&stored, width, height, ExtendedColorType::Rgb8)
            .unwrap();
        let mut webp = Vec::new();
        let mut encoder = image::codecs::webp::WebPEncoder::new_lossless(&mut webp);
        encoder.set_exif_metadata(exif).unwrap();
        encoder
            .write_image(&stored, width, height, ExtendedColorType::Rgb8)
            .unwrap();
        for file in [png, webp] {
            assert!(read(&file) == Ok(upright.clone()), "orientation {orientation}");
        }
    }
}

/// Encodes with the image crate.
fn encoded(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut file = Vec::new();
    picture.write_to(&mut Cursor::new(&mut file), format).unwrap();
    file
}

#[test]
fn a_page_of_the_right_size_is_not_resampled() {
    let page = Random(2).page(56, 84);
    let patches = nano().process(&page).unwrap();
    assert_eq!((patches.grid.h, patches.grid.w), (6, 4));
    // Patch 1 is the second of the first row's first block: its first value is the red of the 15th pixel.
    let value = patches.pixel_values.double_value(&[1, 0]);
    let expected = (f32::from(page.pixels[14 * 3]) - 0.48145466 * 255.0) / (0.26862954 * 255.0);
    assert_eq!(value, f64::from(expected));
}

#[test]
fn a_page_whose_size_is_untrue_is_refused() {
    let mut page = Random(3).page(56, 84);
    page.pixels.pop();
    assert!(nano().process(&page).is_err());
    for (width, height) in [(0, 0), (0, 5), (u32::MAX, u32::MAX)] {
        let page = RgbPage::new(width, height, Vec::new());
        assert!(nano().process(&page).is_err());
    }
}

#[test]
fn alpha_in_every_format_that_has_it_is_composited_on_white() {
    let mut random = Random(4);
    let rgba = image::RgbaImage::from_fn(9, 5, |_, _| {
        image::Rgba(std::array::from_fn(|_| random.next() as u8))
    });
    let expected: Vec<u8> = rgba
        .pixels()
        .flat_map(|p| {
            [0, 1, 2]
                .map(|c| (f64::from(p[c]) * f64::from(p[3]) / 255.0 + 255.0 - f64::from(p[3])).round() as u8)
        })
        .collect();
    let picture = DynamicImage::ImageRgba8(rgba);
    // TIFF has fixtures of its own.
    for format in [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Bmp] {
        let page = read(&encoded(&picture, format)).unwrap();
        assert_eq!(page.pixels, expected, "{format:?}");
    }
}

#[test]
fn webp_of_every_kind_and_size_has_libwebp_s_pixels() {
    let file = image_fixture("webp/webp.safetensors");
    let tensors = SafeTensors::deserialize(&file).unwrap();
    assert!(tensors.len() >= 40);
    for (name, golden) in tensors.iter() {
        let page =
            read(&image_fixture(&format!("webp/{name}"))).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(
            golden.shape(),
            [page.height as usize, page.width as usize, 3],
            "{name}"
        );
        // The fill under transparency is rounded differently.
        let most = u8::from(name.contains("alpha"));
        let furthest = page
            .pixels
            .iter()
            .zip(golden.data())
            .map(|(a, b)| a.abs_diff(*b))
            .max();
        assert!(furthest <= Some(most), "{name}: {furthest:?}");
    }
}
