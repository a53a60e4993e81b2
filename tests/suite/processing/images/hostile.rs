//! Files that lie, end early or are damaged: an error from the fixed table, soon, and never a wrong picture.

use std::time::{Duration, Instant};

use medical_vision::Error;
use medical_vision::error::ImageError;
use medical_vision::processing::{DecodeLimits, RgbPage, decode};

use super::{Random, image_fixture, read};
use crate::suite::allocation::peak_allocation;

/// One or more small files of every format and kind.
const FILES: [&str; 16] = [
    "rgb8.png",
    "palette-alpha.png",
    "rgb16.png",
    "bilevel.png",
    "rgb-444.jpg",
    "rgb-420.jpg",
    "progressive.jpg",
    "cmyk.jpg",
    "lossy.webp",
    "lossless-alpha.webp",
    "orient-8.webp",
    "rgb-lzw.tiff",
    "grey-deflate.tiff",
    "rgb24.bmp",
    "palette.bmp",
    "transparent.gif",
];

/// Far above what any of these takes, on any machine: a decoder let loose on a bomb takes longer.
const SOON: Duration = Duration::from_secs(2);

/// Decodes and checks that it took little time and memory.
fn read_cheaply(bytes: &[u8], what: &str) -> Result<RgbPage, ImageError> {
    let start = Instant::now();
    let (result, peak) = peak_allocation(|| read(bytes));
    assert!(start.elapsed() < SOON, "{what}: {:?}", start.elapsed());
    assert!(peak < bytes.len() + (48 << 20), "{what}: {peak} bytes");
    result
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// Puts the right check sums on the chunks of a PNG, as far as it can be followed.
fn repair_png(png: &mut [u8]) {
    let mut at = 8;
    while let Some(length) = png.get(at..at + 4) {
        let length = u32::from_be_bytes(length.try_into().unwrap()) as usize;
        let end = at.saturating_add(8).saturating_add(length);
        if end.saturating_add(4) > png.len() {
            return;
        }
        let sum = crc32(&png[at + 4..end]);
        put(png, end, &sum.to_be_bytes());
        at = end + 4;
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

fn png_chunk(name: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let mut chunk = [&(body.len() as u32).to_be_bytes()[..], name, body, &[0; 4]].concat();
    let end = chunk.len() - 4;
    let sum = crc32(&chunk[4..end]);
    put(&mut chunk, end, &sum.to_be_bytes());
    chunk
}

fn webp(chunks: &[(&[u8; 4], Vec<u8>)]) -> Vec<u8> {
    let mut body = b"WEBP".to_vec();
    for (name, chunk) in chunks {
        body.extend_from_slice(*name);
        body.extend_from_slice(&(chunk.len() as u32).to_le_bytes());
        body.extend_from_slice(chunk);
        body.resize(body.len().next_multiple_of(2), 0);
    }
    [&b"RIFF"[..], &(body.len() as u32).to_le_bytes(), &body].concat()
}

#[test]
fn what_is_no_image_is_refused() {
    assert_eq!(read(b""), Err(ImageError::Empty));
    let others: [&[u8]; 12] = [
        b"Discharge summary.png\n",
        b"BMI 24.1, blood pressure 120/80",
        b"\x89PNG",
        b"%PDF-1.7\n",
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"\0\0\x01\0\x01\0\x10\x10\0\0\x01\0",
        b"\0\0\0\x1cftypavif\0\0\0\0",
        b"\0\0\0\x0cjP  \r\n\x87\n",
        b"8BPS\0\x01",
        b"PK\x03\x04",
        b"RIFF\x24\0\0\0WAVEfmt ",
    ];
    for bytes in others {
        assert_eq!(read(bytes), Err(ImageError::UnsupportedFormat), "{bytes:?}");
    }
}

#[test]
fn a_header_that_claims_too_much_is_refused_before_decoding() {
    let side = 22_000u32;
    let header = [&side.to_be_bytes()[..], &side.to_be_bytes(), &[8, 0, 0, 0, 0]].concat();
    let png = [
        &b"\x89PNG\r\n\x1a\n"[..],
        &png_chunk(b"IHDR", &header),
        &png_chunk(b"IDAT", b"x"),
        &png_chunk(b"IEND", b""),
    ]
    .concat();
    let mut bmp = image_fixture("rgb24.bmp");
    put(&mut bmp, 18, &[side.to_le_bytes(), side.to_le_bytes()].concat());
    let mut gif = image_fixture("transparent.gif");
    put(&mut gif, 6, &[0xff; 4]);
    let mut jpeg = image_fixture("rgb-444.jpg");
    let frame = jpeg.windows(2).position(|marker| marker == [0xff, 0xc0]).unwrap();
    put(&mut jpeg, frame + 5, &[0xff; 4]);
    let mut tiff = image_fixture("grey-deflate.tiff");
    let directory = u32::from_le_bytes(tiff[4..8].try_into().unwrap()) as usize;
    for entry in 0..usize::from(tiff[directory]) {
        let at = directory + 2 + entry * 12;
        // Width, height, rows a strip.
        if let [0x00 | 0x01 | 0x16, 1] = tiff[at..at + 2] {
            put(&mut tiff, at + 2, &[4, 0, 1, 0, 0, 0]);
            put(&mut tiff, at + 8, &side.to_le_bytes());
        }
    }
    let small_canvas = vec![0; 10];
    let large_frame = b"\0\0\0\x9d\x01\x2a\xff\x3f\xff\x3f".to_vec();
    let large_animation = [&[0u8; 6][..], &[0xff; 6], &[0; 20]].concat();
    let files = [
        ("PNG", png),
        ("BMP", bmp),
        ("GIF", gif),
        ("JPEG", jpeg),
        ("TIFF", tiff),
        ("WebP", webp(&[(b"VP8 ", large_frame.clone())])),
        (
            "WebP lossless",
            webp(&[(b"VP8L", b"\x2f\xff\xff\xff\x0f".to_vec())]),
        ),
        (
            "WebP canvas",
            webp(&[(b"VP8X", [vec![0; 4], vec![0xff; 6]].concat())]),
        ),
        (
            "WebP frame",
            webp(&[(b"VP8X", small_canvas.clone()), (b"VP8 ", large_frame)]),
        ),
        (
            "WebP animation",
            webp(&[(b"VP8X", small_canvas), (b"ANMF", large_animation)]),
        ),
    ];
    for (name, file) in files {
        let (result, peak) = peak_allocation(|| read(&file));
        assert!(
            matches!(
                result,
                Err(ImageError::TooManyPixels {
                    limit: 40_000_000,
                    ..
                })
            ),
            "{name}: {result:?}"
        );
        assert!(peak < 1 << 20, "{name}: {peak} bytes");
    }
}

#[test]
fn the_limit_is_exact() {
    let png = image_fixture("rgb8.png");
    let at = |max_pixels| decode(&png, &DecodeLimits { max_pixels });
    assert!(at(61 * 200).is_ok());
    let (width, height, limit) = (200, 61, 61 * 200 - 1);
    assert_eq!(at(limit), Err(ImageError::TooManyPixels { width, height, limit }));
}

#[test]
fn claims_inside_a_file_do_not_cost_memory() {
    // A first frame far larger than its canvas.
    let mut gif = image_fixture("transparent.gif");
    let frame = 13 + 3 * (2usize << (gif[10] & 7));
    let frame = frame + gif[frame..].iter().position(|byte| *byte == 0x2c).unwrap();
    put(&mut gif, frame + 5, &[0xff; 4]);
    assert_eq!(read_cheaply(&gif, "GIF frame"), Err(ImageError::Undecodable));
    // A chunk of 4 GB.
    let mut file = image_fixture("orient-8.webp");
    let exif = file.windows(4).position(|name| name == b"EXIF").unwrap();
    put(&mut file, exif + 4, &[0xfe, 0xff, 0xff, 0xff]);
    assert_eq!(read_cheaply(&file, "WebP chunk"), Err(ImageError::Undecodable));
    // A colour profile of 128 MB in a few hundred kB.
    let mut info = png::Info::with_size(1, 1);
    info.icc_profile = Some(vec![0; 128 << 20].into());
    let mut file = Vec::new();
    let mut writer = png::Encoder::with_info(&mut file, info)
        .unwrap()
        .write_header()
        .unwrap();
    writer.write_image_data(&[0]).unwrap();
    drop(writer);
    assert!(file.len() < 2 << 20);
    read_cheaply(&file, "PNG profile").unwrap();
}

#[test]
fn a_truncated_file_is_refused() {
    for name in FILES {
        let whole = image_fixture(name);
        let page = read(&whole).unwrap();
        let points = (0..whole.len())
            .step_by(whole.len().div_ceil(150))
            .chain(whole.len() - 40..whole.len());
        for length in points {
            // All pixels may be there already when the last bytes are missing.
            match read(&whole[..length]) {
                Ok(cut) => assert!(cut == page && length + 40 > whole.len(), "{name} at {length}"),
                Err(ImageError::TooManyPixels { .. }) => panic!("{name} at {length}"),
                Err(_) => {}
            }
        }
    }
}

#[test]
fn a_single_pixel_is_a_picture() {
    let page = read(&image_fixture("one.png")).unwrap();
    assert_eq!((page.width, page.height, page.pixels.len()), (1, 1, 3));
}

#[test]
fn a_line_is_no_page() {
    let line = image::GrayImage::new(20_000, 1);
    let mut png = std::io::Cursor::new(Vec::new());
    line.write_to(&mut png, image::ImageFormat::Png).unwrap();
    let page = read(png.get_ref()).unwrap();
    let error = super::nano().process(&page).err().unwrap();
    let expected = ImageError::AspectRatio {
        width: 20_000,
        height: 1,
    };
    assert!(matches!(error, Error::Image(error) if error == expected));
}

fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    const TELLING: [u32; 8] = [0, 1, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff];
    for _ in 0..=random.below(6) {
        let length = bytes.len();
        if length < 16 {
            return;
        }
        // Headers are where lies are told.
        let reach = if random.below(2) == 0 {
            length.min(120)
        } else {
            length
        };
        let at = random.below(reach - 4);
        let value = TELLING[random.below(TELLING.len())];
        match random.below(8) {
            0 | 1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes[at] = random.next() as u8,
            3 => put(bytes, at, &value.to_le_bytes()),
            4 => put(bytes, at, &value.to_be_bytes()),
            5 => put(bytes, at, &(value as u16).to_le_bytes()),
            6 => bytes.truncate(length - random.below(length / 2)),
            _ => {
                let (from, to) = (random.below(length - 8), random.below(length - 8));
                bytes.copy_within(from..from + 8, to);
            }
        }
    }
}

#[test]
fn mutated_files_end_in_a_picture_or_an_error() {
    let limits = DecodeLimits {
        max_pixels: 2_000_000,
    };
    let mut random = Random(7);
    let (mut pictures, mut slowest) = (0, (Duration::ZERO, ""));
    for round in 0..5_000 {
        let name = FILES[round % FILES.len()];
        let mut file = image_fixture(name);
        mutate(&mut file, &mut random);
        if name.ends_with("png") && round % 8 != 0 {
            repair_png(&mut file);
        }
        let start = Instant::now();
        let (result, peak) = peak_allocation(|| decode(&file, &limits));
        assert!(peak < 64 << 20, "{name}, round {round}: {peak} bytes");
        slowest = slowest.max((start.elapsed(), name));
        match result {
            Ok(page) => {
                let pixels = u64::from(page.width) * u64::from(page.height);
                assert!(pixels <= limits.max_pixels && page.pixels.len() as u64 == pixels * 3);
                pictures += 1;
            }
            Err(ImageError::TooManyPixels { width, height, limit }) => {
                assert!(u64::from(width) * u64::from(height) > limit);
            }
            Err(ImageError::AspectRatio { .. }) => panic!("decoding does not mind the ratio"),
            Err(_) => {}
        }
    }
    // Neither all harmless nor all refused at the door.
    assert!((100..4_900).contains(&pictures), "{pictures}");
    assert!(slowest.0 < SOON, "{slowest:?}");
}

#[test]
fn error_texts_hold_no_path_no_address_and_no_decoders_words() {
    let (width, height) = (1, 2);
    let errors = [
        ImageError::Empty,
        ImageError::UnsupportedFormat,
        ImageError::Undecodable,
        ImageError::UnsupportedVariant("JPEG with arithmetic coding".into()),
        ImageError::TooManyPixels {
            width,
            height,
            limit: 3,
        },
        ImageError::AspectRatio { width, height },
    ];
    for error in errors {
        let text = error.to_string().to_lowercase();
        for word in [
            "/", "0x", "::", "crc", "chunk", "huffman", "zune", "marker", "decoder", "panic", "{", "`",
        ] {
            assert!(!text.contains(word), "{text}");
        }
    }
}
