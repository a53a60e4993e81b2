//! TIFF: the kinds that scanners and office programs write, and directories that lie. Files are written by hand here, so
//! that every field can be wrong.

use medical_vision::error::ImageError;
use medical_vision::processing::{DecodeLimits, PageWarning, RgbPage, decode_page};
use safetensors::SafeTensors;
use serde_json::Value;

use super::{Random, fixture, image_fixture};
use crate::suite::allocation::peak_allocation;

const SHORT: u16 = 3;
const LONG: u16 = 4;

fn read(bytes: &[u8]) -> Result<RgbPage, ImageError> {
    decode(bytes).map(|(page, _)| page)
}

/// What is said of a file.
struct Found {
    truncated: bool,
    pages: u32,
}

fn decode(bytes: &[u8]) -> Result<(RgbPage, Found), ImageError> {
    let decoded = decode_page(bytes, &DecodeLimits::default(), None)?;
    let mut found = Found {
        truncated: false,
        pages: 1,
    };
    for warning in decoded.warnings {
        match warning {
            PageWarning::Truncated => found.truncated = true,
            PageWarning::FirstOf(pages) => found.pages = pages,
            other => panic!("{other} in a TIFF"),
        }
    }
    Ok((decoded.page, found))
}

/// A file of one strip, whose directory has the tags every picture needs.
#[derive(Clone)]
struct Tiff {
    big_endian: bool,
    entries: Vec<(u16, u16, Vec<u32>)>,
    strip: Vec<u8>,
}

impl Tiff {
    fn new(width: u32, height: u32, bits: u32, samples: u32, photometric: u32, strip: Vec<u8>) -> Self {
        let entries = vec![
            (256, LONG, vec![width]),
            (257, LONG, vec![height]),
            (258, SHORT, vec![bits; samples as usize]),
            (259, SHORT, vec![1]),
            (262, SHORT, vec![photometric]),
            (273, LONG, vec![8]),
            (277, SHORT, vec![samples]),
            (279, LONG, vec![strip.len() as u32]),
        ];
        Self {
            big_endian: false,
            entries,
            strip,
        }
    }

    fn with(mut self, tag: u16, kind: u16, values: Vec<u32>) -> Self {
        self.entries.retain(|entry| entry.0 != tag);
        self.entries.push((tag, kind, values));
        self.entries.sort_by_key(|entry| entry.0);
        self
    }

    fn number(&self, value: u32, size: usize) -> Vec<u8> {
        if self.big_endian {
            value.to_be_bytes()[4 - size..].to_vec()
        } else {
            value.to_le_bytes()[..size].to_vec()
        }
    }

    /// Header, strip, directory, then the values that do not fit into it.
    fn bytes(&self) -> Vec<u8> {
        let mut file = if self.big_endian {
            b"MM\0\x2a".to_vec()
        } else {
            b"II\x2a\0".to_vec()
        };
        let directory = 8 + self.strip.len();
        file.extend(self.number(directory as u32, 4));
        file.extend(&self.strip);
        file.extend(self.number(self.entries.len() as u32, 2));
        let mut outside = Vec::new();
        let outside_at = directory + 2 + self.entries.len() * 12 + 4;
        for (tag, kind, values) in &self.entries {
            let size = if *kind == SHORT { 2 } else { 4 };
            let mut bytes: Vec<u8> = values
                .iter()
                .flat_map(|value| self.number(*value, size))
                .collect();
            if bytes.len() > 4 {
                let at = outside_at + outside.len();
                outside.append(&mut bytes);
                bytes = self.number(at as u32, 4);
            }
            bytes.resize(4, 0);
            for (value, size) in [
                (u32::from(*tag), 2),
                (u32::from(*kind), 2),
                (values.len() as u32, 4),
            ] {
                file.extend(self.number(value, size));
            }
            file.extend(bytes);
        }
        file.extend([0; 4]);
        file.extend(outside);
        file
    }

    /// In both byte orders.
    fn read(&self) -> RgbPage {
        let little = read(&self.bytes()).unwrap();
        let big = Self {
            big_endian: true,
            ..self.clone()
        };
        assert!(read(&big.bytes()) == Ok(little.clone()));
        little
    }
}

/// `width` samples of `bits` a row, packed; and the same one by one.
fn packed(bits: usize, width: usize, height: usize) -> (Vec<u8>, Vec<usize>) {
    let mut random = Random(bits as u64);
    let samples: Vec<usize> = (0..width * height).map(|_| random.below(1 << bits)).collect();
    let mut bytes = Vec::new();
    for row in samples.chunks(width) {
        for group in row.chunks(8 / bits) {
            let byte = group.iter().fold(0, |byte, sample| byte << bits | sample);
            bytes.push((byte << (bits * (8 / bits - group.len()))) as u8);
        }
    }
    (bytes, samples)
}

/// The refusal that the manifest names, or none.
fn refusal(expected: &str) -> Option<String> {
    match expected {
        "rgb" | "truncated" => None,
        "Undecodable" => Some(ImageError::Undecodable.to_string()),
        what => Some(format!(
            "{what} is not supported; save the page as PNG and try again"
        )),
    }
}

#[test]
fn every_kind_is_read_as_the_judges_read_it_or_refused_by_its_name() {
    let folder = fixture("images/tiff");
    let manifest = std::fs::read(folder.join("manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let pixels = std::fs::read(folder.join("tiff.safetensors")).unwrap();
    let pixels = SafeTensors::deserialize(&pixels).unwrap();
    let files = manifest["files"].as_array().unwrap();
    assert!(files.len() > 100);
    for row in files {
        let name = row["name"].as_str().unwrap();
        let expected = row["expected"].as_str().unwrap();
        let result = decode(&std::fs::read(folder.join(name)).unwrap());
        if let Some(text) = refusal(expected) {
            assert_eq!(result.map(|_| ()).unwrap_err().to_string(), text, "{name}");
            continue;
        }
        let (page, found) = result.unwrap_or_else(|error| panic!("{name}: {error}"));
        let right = pixels.tensor(row["pixels"].as_str().unwrap_or(name)).unwrap();
        assert_eq!(
            right.shape(),
            [page.height as usize, page.width as usize, 3],
            "{name}"
        );
        // Of a damaged file, the rows before the damage.
        let whole = row["whole"].as_u64().unwrap_or(page.height.into()) as usize;
        let bytes = whole * page.width as usize * 3;
        let differences = page.pixels[..bytes].iter().zip(right.data());
        let most = differences.map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0);
        assert!(
            u64::from(most) <= row["tolerance"].as_u64().unwrap(),
            "{name}: {most}"
        );
        assert_eq!(found.truncated, expected == "truncated", "{name}");
        assert_eq!(u64::from(found.pages), row["pages"].as_u64().unwrap(), "{name}");
    }
}

#[test]
fn palettes_of_every_depth_are_expanded() {
    let mut random = Random(1);
    for bits in [1, 2, 4, 8] {
        let (strip, samples) = packed(bits, 13, 5);
        let colours: Vec<[u8; 3]> = (0..1 << bits)
            .map(|_| [0; 3].map(|_: u8| random.next() as u8))
            .collect();
        let tiff = Tiff::new(13, 5, bits as u32, 1, 3, strip);
        let expected: Vec<u8> = samples.iter().flat_map(|sample| colours[*sample]).collect();
        // Writers fill the lower halves with zeros or with the upper ones, or use 8 bits alone.
        for factor in [256, 257, 1] {
            let channel = |c: usize| colours.iter().map(move |colour| u32::from(colour[c]) * factor);
            let map = (0..3).flat_map(channel).collect();
            assert_eq!(
                tiff.clone().with(320, SHORT, map).read().pixels,
                expected,
                "{bits} bits, {factor}"
            );
        }
        assert_eq!(
            read(&tiff.clone().bytes()),
            Err(ImageError::Undecodable),
            "no colours"
        );
        let short = tiff.with(320, SHORT, vec![0; (3 << bits) - 1]);
        assert_eq!(
            read(&short.bytes()),
            Err(ImageError::Undecodable),
            "too few colours"
        );
    }
}

#[test]
fn grey_of_every_depth_is_stretched_and_turned_white_side_up() {
    for bits in [1, 2, 4, 8] {
        let (strip, samples) = packed(bits, 11, 6);
        for (photometric, black) in [(1, 0), (0, 255)] {
            let page = Tiff::new(11, 6, bits as u32, 1, photometric, strip.clone()).read();
            let level = |sample: &usize| black ^ (sample * 255 / ((1 << bits) - 1)) as u8;
            let expected: Vec<u8> = samples.iter().flat_map(|sample| [level(sample); 3]).collect();
            assert_eq!(page.pixels, expected, "{bits} bits, photometric {photometric}");
        }
    }
}

#[test]
fn fax_pages_are_read() {
    // Group 4: eight rows equal to the imaginary white one, and the end of the block.
    let strip = vec![0xff, 0x00, 0x10, 0x01];
    let page = Tiff::new(8, 8, 1, 1, 0, strip).with(259, SHORT, vec![4]).read();
    assert!(page.pixels.iter().all(|level| *level == 255) && page.pixels.len() == 192);
}

#[test]
fn grey_with_alpha_is_composited_on_white() {
    let strip = vec![100, 255, 100, 0, 0, 128, 200, 3];
    let page = Tiff::new(4, 1, 8, 2, 1, strip).with(338, SHORT, vec![2]).read();
    assert_eq!(page.pixels, [[100; 3], [255; 3], [127; 3], [254; 3]].concat());
}

#[test]
fn brightness_and_colour_differences_become_rgb() {
    let strip = vec![76, 85, 255, 150, 44, 21, 29, 255, 107, 130, 128, 128];
    let page = Tiff::new(4, 1, 8, 3, 6, strip)
        .with(530, SHORT, vec![1, 1])
        .read();
    assert_eq!(page.pixels, [254, 0, 0, 0, 255, 1, 0, 0, 254, 130, 130, 130]);
}

#[test]
fn the_orientation_is_undone_whatever_its_type_is() {
    let rgb = Tiff::new(3, 2, 8, 3, 2, (0..18).collect());
    let turned = [9, 10, 11, 0, 1, 2, 12, 13, 14, 3, 4, 5, 15, 16, 17, 6, 7, 8];
    for kind in [SHORT, LONG] {
        let upright = rgb.clone().with(274, kind, vec![6]).read();
        assert_eq!((upright.width, upright.height), (2, 3));
        assert_eq!(upright.pixels, turned);
    }
    // XMP, padded to four bytes a value.
    let xmp = b"<rdf tiff:Orientation=\"6\"/>\0";
    let values = xmp
        .as_chunks::<4>()
        .0
        .iter()
        .map(|bytes| u32::from_le_bytes(*bytes))
        .collect();
    let file = rgb.with(700, LONG, values).bytes();
    assert_eq!(read(&file).unwrap().pixels, turned);
}

#[test]
fn what_no_decoder_reads_is_called_so() {
    let rgb = Tiff::new(3, 2, 8, 3, 2, (0..18).collect());
    for (tag, value) in [
        (259, 2),
        (259, 34_712),
        (259, 12_345),
        (262, 8),
        (262, 32_803),
        (262, 77),
    ] {
        let file = rgb.clone().with(tag, SHORT, vec![value]).bytes();
        let error = read(&file).unwrap_err();
        assert!(
            matches!(error, ImageError::UnsupportedVariant(_)),
            "{tag} {value}: {error}"
        );
    }
}

fn refused_cheaply(tiff: &Tiff, what: &str) -> ImageError {
    let file = tiff.bytes();
    let (result, peak) = peak_allocation(|| read(&file));
    assert!(peak < file.len() + (1 << 20), "{what}: {peak} bytes");
    result.expect_err(what)
}

#[test]
fn a_directory_that_lies_costs_nothing() {
    let rgb = Tiff::new(3, 2, 8, 3, 2, (0..18).collect());
    let tiled = |width, height| {
        let tiled = rgb
            .clone()
            .with(322, LONG, vec![width])
            .with(323, LONG, vec![height]);
        let mut tiled = tiled.with(324, LONG, vec![8]).with(325, LONG, vec![18]);
        tiled.entries.retain(|entry| ![273, 279].contains(&entry.0));
        tiled
    };
    for (what, tiff) in [
        (
            "strip outside the file",
            rgb.clone().with(273, LONG, vec![1 << 20]),
        ),
        (
            "strip longer than the file",
            rgb.clone().with(279, LONG, vec![u32::MAX]),
        ),
        (
            "strips that overlap",
            rgb.clone()
                .with(273, LONG, vec![8; 40])
                .with(279, LONG, vec![18; 40]),
        ),
        ("no rows", rgb.clone().with(257, LONG, vec![0])),
        ("no size", rgb.clone().with(256, LONG, vec![])),
        ("tiles without a side", tiled(0, 16)),
    ] {
        assert_eq!(refused_cheaply(&tiff, what), ImageError::Undecodable, "{what}");
    }
    for (width, height) in [(1 << 16, 1 << 16), (u32::MAX, 1), (16, u32::MAX)] {
        let error = refused_cheaply(&tiled(width, height), "tiles");
        assert!(matches!(error, ImageError::TooManyPixels { .. }), "{error:?}");
    }
    let mut twice = rgb.clone();
    twice.entries.push((279, LONG, vec![u32::MAX]));
    assert_eq!(
        refused_cheaply(&twice, "tag named twice"),
        ImageError::Undecodable
    );
    // Values are counted by the directory, whether or not the file has them.
    let mut file = rgb.bytes();
    let entry = file.windows(4).position(|bytes| bytes == [2, 1, 3, 0]).unwrap();
    for count in [1u32 << 16, 1 << 24, u32::MAX] {
        file[entry + 4..entry + 8].copy_from_slice(&count.to_le_bytes());
        let (result, peak) = peak_allocation(|| read(&file));
        assert_eq!(result, Err(ImageError::Undecodable), "{count} values");
        assert!(peak < 1 << 20, "{count} values: {peak} bytes");
    }
}

#[test]
fn a_piece_in_jpeg_cannot_be_larger_than_its_place() {
    let jpeg = image_fixture("rgb-444.jpg");
    let tiff = |width, height, strip: &[u8]| {
        Tiff::new(width, height, 8, 3, 6, strip.to_vec())
            .with(259, SHORT, vec![7])
            .with(530, SHORT, vec![1, 1])
    };
    let (width, height) = (51, 74);
    tiff(width, height, &jpeg).read();
    let small = tiff(width, 16, &jpeg);
    assert_eq!(refused_cheaply(&small, "a larger frame"), ImageError::Undecodable);
    let cut = tiff(width, height, &jpeg[..jpeg.len() - 40]);
    assert!(decode(&cut.bytes()).is_ok_and(|(_, found)| found.truncated));
}

#[test]
fn rows_that_are_missing_are_white() {
    let rgb = Tiff::new(3, 4, 8, 3, 2, (0..36).collect()).with(278, LONG, vec![2]);
    // The second strip is outside the file.
    let file = rgb
        .clone()
        .with(273, LONG, vec![8, 1 << 20])
        .with(279, LONG, vec![18, 18]);
    let (page, found) = decode(&file.bytes()).unwrap();
    assert!(found.truncated);
    let right: Vec<u8> = (0..18).chain([255; 18]).collect();
    assert_eq!(page.pixels, right);
    let none = rgb
        .with(273, LONG, vec![1 << 19, 1 << 20])
        .with(279, LONG, vec![18, 18]);
    assert_eq!(read(&none.bytes()), Err(ImageError::Undecodable));
}

#[test]
fn a_picture_without_a_visible_pixel_is_opaque() {
    let strip = vec![10, 20, 30, 0, 40, 50, 60, 0];
    for kind in [1, 2] {
        let file = Tiff::new(2, 1, 8, 4, 2, strip.clone()).with(338, SHORT, vec![kind]);
        assert_eq!(file.read().pixels, [10, 20, 30, 40, 50, 60]);
    }
}

#[test]
fn directories_in_a_ring_are_counted_once() {
    let mut file = Tiff::new(3, 2, 8, 3, 2, (0..18).collect()).bytes();
    let directory = u32::from_le_bytes(file[4..8].try_into().unwrap()) as usize;
    let next = directory + 2 + usize::from(file[directory]) * 12;
    file[next..next + 4].copy_from_slice(&(directory as u32).to_le_bytes());
    assert_eq!(decode(&file).unwrap().1.pages, 1);
}
