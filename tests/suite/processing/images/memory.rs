//! A page takes memory for its rows, not for its picture: 40 megapixels of any format and depth.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::write::ZlibEncoder;
use medical_vision::processing::{DecodeLimits, RgbPage, decode_page, decoder_memory};

use super::{image_fixture, nano};
use crate::suite::allocation::peak_allocation;

const SIDE: u32 = 6320;
const LIMIT: usize = 64 << 20;

/// 40 megapixels of one colour in 38 bytes.
pub const LOSSLESS_WEBP: &[u8] = &[
    b'R', b'I', b'F', b'F', 0x1e, 0, 0, 0, b'W', b'E', b'B', b'P', b'V', b'P', b'8', b'L', 0x11, 0, 0, 0,
    0x2f, 0xaf, 0xd8, 0x2b, 0x06, 0x07, 0xd0, 0xff, 0xfe, 0xf7, 0xbf, 0xff, 0x81, 0x88, 0xe8, 0x7f, 0, 0,
];

/// 40 megapixels of one colour, lossy.
pub fn lossy_webp() -> Vec<u8> {
    let mut file = Vec::new();
    flate2::read::GzDecoder::new(&image_fixture("webp/lossy-large.webp.gz")[..])
        .read_to_end(&mut file)
        .unwrap();
    file
}

/// Zeros, packed.
fn packed_zeros(bytes: usize) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    let block = vec![0; 1 << 20];
    for start in (0..bytes).step_by(block.len()) {
        encoder
            .write_all(&block[..block.len().min(bytes - start)])
            .unwrap();
    }
    encoder.finish().unwrap()
}

/// One Deflate strip of R G B A.
pub fn tiff(bits: u16, format: u16) -> Vec<u8> {
    let strip = packed_zeros(SIDE as usize * SIDE as usize * 4 * usize::from(bits / 8));
    let directory = 8 + strip.len().next_multiple_of(2);
    let outside = directory + 2 + 11 * 12 + 4;
    let mut file = [&b"II*\0"[..], &(directory as u32).to_le_bytes(), &strip].concat();
    file.resize(directory, 0);
    file.extend(11u16.to_le_bytes());
    let at = |place: usize| (outside + place * 8) as u32;
    for (tag, kind, count, value) in [
        (256u16, 4u16, 1u32, SIDE),
        (257, 4, 1, SIDE),
        (258, 3, 4, at(0)),
        (259, 3, 1, 8),
        (262, 3, 1, 2),
        (273, 4, 1, 8),
        (277, 3, 1, 4),
        (278, 4, 1, SIDE),
        (279, 4, 1, strip.len() as u32),
        (338, 3, 1, 2),
        (339, 3, 4, at(1)),
    ] {
        file.extend(tag.to_le_bytes());
        file.extend(kind.to_le_bytes());
        file.extend(count.to_le_bytes());
        file.extend(value.to_le_bytes());
    }
    file.extend([0; 4]);
    file.extend([bits; 4].map(u16::to_le_bytes).concat());
    file.extend([format; 4].map(u16::to_le_bytes).concat());
    file
}

fn png(interlaced: bool) -> Vec<u8> {
    let chunk = |name: &[u8; 4], body: &[u8]| {
        let crc = crc32fast::hash(&[name, body].concat());
        [
            &(body.len() as u32).to_be_bytes()[..],
            name,
            body,
            &crc.to_be_bytes(),
        ]
        .concat()
    };
    let sides = [SIDE.to_be_bytes(), SIDE.to_be_bytes()].concat();
    let header = [&sides[..], &[16, 6, 0, 0, u8::from(interlaced)]].concat();
    // A row of each pass begins with a byte for its filter.
    let side = SIDE as usize;
    let rows = if interlaced {
        2 * side.div_ceil(8) + side / 8 + side.div_ceil(4) + side / 4 + side.div_ceil(2) + side / 2
    } else {
        side
    };
    let pixels = packed_zeros(side * side * 8 + rows);
    [
        &b"\x89PNG\r\n\x1a\n"[..],
        &chunk(b"IHDR", &header),
        &chunk(b"IDAT", &pixels),
        &chunk(b"IEND", b""),
    ]
    .concat()
}

fn read_within(file: &[u8], limit: usize, what: &str) -> RgbPage {
    let bounds = nano().bounds();
    let limits = DecodeLimits::default();
    let (decoded, peak) = peak_allocation(|| decode_page(file, &limits, Some(&bounds)));
    let page = decoded.unwrap_or_else(|error| panic!("{what}: {error}")).page;
    assert!(peak < limit, "{what}: {} MiB", peak >> 20);
    let claimed = decoder_memory(file, &limits, Some(&bounds)).unwrap();
    assert!(peak as u64 <= claimed, "{what}: {peak} bytes, {claimed} claimed");
    assert!(u64::from(page.width) * u64::from(page.height) <= bounds.max_pixels);
    page
}

#[test]
fn forty_megapixels_of_wide_samples_take_a_few_mebibytes() {
    for (what, file) in [
        ("TIFF of 32-bit floats", tiff(32, 3)),
        ("TIFF of 16 bits", tiff(16, 1)),
        ("PNG of 16 bits", png(false)),
        ("interlaced PNG of 16 bits", png(true)),
    ] {
        let page = read_within(&file, LIMIT, what);
        // Alpha is 0 everywhere: the picture is opaque, and black.
        assert!(page.pixels.iter().all(|sample| *sample == 0), "{what}");
    }
}

#[test]
fn formats_whose_decoders_hold_the_picture_hold_no_more_than_they_say() {
    let page = read_within(LOSSLESS_WEBP, 200 << 20, "WebP");
    let first = page.pixels[0];
    assert!(page.pixels.iter().all(|sample| *sample == first));
    let page = read_within(&lossy_webp(), 80 << 20, "lossy WebP");
    for pixel in page.pixels.as_chunks::<3>().0 {
        let furthest = pixel.iter().zip([250, 10, 10]).map(|(a, b)| a.abs_diff(b)).max();
        assert!(furthest <= Some(24), "{pixel:?}");
    }
    let mut gif = Vec::new();
    let mut encoder =
        gif::Encoder::new(&mut gif, SIDE as u16, SIDE as u16, &[0, 0, 0, 255, 255, 255]).unwrap();
    let frame =
        gif::Frame::from_indexed_pixels(SIDE as u16, SIDE as u16, vec![1; (SIDE * SIDE) as usize], None);
    encoder.write_frame(&frame).unwrap();
    drop(encoder);
    let page = read_within(&gif, LIMIT, "GIF");
    assert!(page.pixels.iter().all(|sample| *sample == 255));
}
