//! JPEG files of every kind against libjpeg-turbo's pixels, as Pillow gives them.

use std::collections::BTreeMap;

use safetensors::SafeTensors;
use serde::Deserialize;

use medical_vision::processing::{DecodeLimits, PageWarning, RgbPage, decode_page};

use super::image_fixture;

fn decode(bytes: &[u8]) -> Result<(RgbPage, bool), String> {
    let decoded = decode_page(bytes, &DecodeLimits::default(), None).map_err(|error| error.to_string())?;
    let truncated = decoded.warnings.contains(&PageWarning::Truncated);
    Ok((decoded.page, truncated))
}

#[derive(Deserialize)]
struct Manifest {
    images: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    file: String,
    kind: String,
    /// "rgb", "truncated", or why the file is refused.
    expected: String,
}

fn rows() -> Vec<Row> {
    let text = image_fixture("jpeg/manifest.json");
    serde_json::from_slice::<Manifest>(&text).unwrap().images
}

/// (height, width, pixels) by file.
fn goldens() -> BTreeMap<String, (usize, usize, Vec<u8>)> {
    let file = image_fixture("jpeg/jpeg.safetensors");
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let golden = |(name, tensor): (String, safetensors::tensor::TensorView<'_>)| {
        let [height, width, 3] = *tensor.shape() else {
            panic!("{name}: {:?}", tensor.shape())
        };
        (name, (height, width, tensor.data().to_vec()))
    };
    tensors.tensors().into_iter().map(golden).collect()
}

#[test]
fn every_kind_of_jpeg_decodes_to_libjpegs_pixels_or_says_why_not() {
    let (rows, goldens) = (rows(), goldens());
    assert!(rows.len() >= 100 && goldens.len() >= 60);
    for Row { file, kind, expected } in rows {
        let decoded = decode(&image_fixture(&format!("jpeg/{file}")));
        let (page, truncated) = match (decoded, expected.as_str()) {
            (Ok(decoded), "rgb" | "truncated") => decoded,
            (Ok(_), _) => panic!("{file} ({kind}) was read"),
            (Err(error), _) => {
                assert_eq!(error.to_string(), expected, "{file} ({kind})");
                continue;
            }
        };
        assert_eq!(truncated, expected == "truncated", "{file} ({kind})");
        let Some((height, width, pixels)) = goldens.get(&file) else {
            continue;
        };
        assert_eq!(
            (page.height as usize, page.width as usize),
            (*height, *width),
            "{file} ({kind})"
        );
        let differing = page.pixels.iter().zip(pixels).filter(|(a, b)| a != b).count();
        assert_eq!(
            (page.pixels.len(), differing),
            (pixels.len(), 0),
            "{file} ({kind})"
        );
    }
}

#[test]
fn a_jpeg_cut_anywhere_is_never_said_to_be_whole() {
    for name in [
        "base-420",
        "base-grey",
        "scans-y-cb-cr",
        "prog-default",
        "prog-deep",
        "restart-1",
        "ycck-prog",
    ] {
        let whole = image_fixture(&format!("jpeg/{name}.jpg"));
        let (page, _) = decode(&whole).unwrap();
        // The last bytes may be padding.
        for length in 0..whole.len() - 4 {
            match decode(&whole[..length]) {
                Ok((part, true)) => assert_eq!(part.pixels.len(), page.pixels.len()),
                Ok((part, false)) => assert_eq!(part.pixels, page.pixels, "{name}: {length}"),
                Err(_) => {}
            }
        }
    }
}

/// Writes entropy-coded data.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    held: u64,
    count: u32,
}

impl Bits {
    fn put(&mut self, value: u32, length: u32) {
        self.held = self.held << length | u64::from(value);
        self.count += length;
        while self.count >= 8 {
            self.count -= 8;
            let byte = (self.held >> self.count) as u8;
            self.bytes.push(byte);
            if byte == 0xff {
                self.bytes.push(0);
            }
        }
    }

    /// The bits after a symbol of that size.
    fn value(&mut self, value: i32, size: u32) {
        self.put(
            (if value < 0 { value + (1 << size) - 1 } else { value }) as u32,
            size,
        );
    }

    fn end(mut self) -> Vec<u8> {
        self.put(0x7f, 7);
        self.bytes
    }
}

fn segment(marker: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u16 + 2).to_be_bytes();
    [&[0xff, marker], &length[..], body].concat()
}

/// A grey file of 8 * `SIDE` pixels a side with the same coefficients either way.
fn large(progressive: bool) -> Vec<u8> {
    let sides = (SIDE as u16 * 8).to_be_bytes();
    let frame = [&[8], &sides[..], &sides, &[1, 1, 0x11, 0]].concat();
    let mut file = b"\xff\xd8".to_vec();
    file.extend(segment(0xdb, &[&[0][..], &[5; 64]].concat()));
    file.extend(segment(if progressive { 0xc2 } else { 0xc0 }, &frame));
    // DC: sizes 0 to 7 have codes of 4 bits. AC: 0x00, 0x01, 0x02 and 0xe0 have codes of 3.
    file.extend(segment(
        0xc4,
        &[&[0, 0, 0, 0, 8][..], &[0; 12], &[0, 1, 2, 3, 4, 5, 6, 7]].concat(),
    ));
    file.extend(segment(
        0xc4,
        &[&[0x10, 0, 0, 4][..], &[0; 13], &[0, 1, 2, 0xe0]].concat(),
    ));
    let mut scan = |spectrum: [u8; 3], bits: Bits| {
        file.extend(segment(0xda, &[&[1, 1, 0], &spectrum[..]].concat()));
        file.extend(bits.end());
    };
    let blocks = || (0..SIDE).flat_map(|row| (0..SIDE).map(move |column| (row, column)));
    let dc =
        |row: usize, column: usize| ((row * 7) % 61 + (column / 64) * 2 + (row * column) % 2) as i32 - 30;
    // One block of a row has another coefficient, of 2 or 3.
    let ac = |row: usize, column: usize| {
        if column == row % SIDE {
            2 + row as i32 % 2
        } else {
            0
        }
    };
    let difference = |bits: &mut Bits, before: &mut i32, value: i32| {
        let size = 32 - (value - *before).unsigned_abs().leading_zeros();
        bits.put(size, 4);
        bits.value(value - *before, size);
        *before = value;
    };
    let (mut first, mut before) = (Bits::default(), 0);
    if !progressive {
        for (row, column) in blocks() {
            difference(&mut first, &mut before, dc(row, column));
            if ac(row, column) != 0 {
                first.put(2, 3);
                first.value(ac(row, column), 2);
            }
            first.put(0, 3);
        }
        scan([0, 63, 0], first);
        return [file, b"\xff\xd9".to_vec()].concat();
    }
    let (mut refined, mut ac_first, mut ac_refined) = (Bits::default(), Bits::default(), Bits::default());
    for (row, column) in blocks() {
        difference(&mut first, &mut before, dc(row, column) >> 1);
        refined.put(dc(row, column) as u32 & 1, 1);
        if ac(row, column) != 0 {
            ac_first.put(0b0011, 4);
        } else {
            ac_first.put(0, 3);
        }
        if (row * SIDE + column).is_multiple_of(16384) {
            ac_refined.put(3, 3);
            ac_refined.put(0, 14);
        }
        if ac(row, column) != 0 {
            ac_refined.put(ac(row, column) as u32 & 1, 1);
        }
    }
    scan([0, 0, 0x01], first);
    scan([1, 1, 0x01], ac_first);
    scan([0, 0, 0x10], refined);
    scan([1, 1, 0x10], ac_refined);
    scan([2, 63, 0x00], {
        let mut bits = Bits::default();
        for _ in 0..SIDE * SIDE / 16384 {
            bits.put(3 << 14, 17);
        }
        bits
    });
    [file, b"\xff\xd9".to_vec()].concat()
}

/// Blocks of a side of a file whose coefficients are more than are kept at a time.
const SIDE: usize = 512;

#[test]
fn a_large_progressive_jpeg_gives_the_pixels_of_its_sequential_twin() {
    let (progressive, cut) = decode(&large(true)).unwrap();
    let (sequential, cut_too) = decode(&large(false)).unwrap();
    assert!(!cut && !cut_too);
    assert!(progressive.pixels == sequential.pixels);
}
