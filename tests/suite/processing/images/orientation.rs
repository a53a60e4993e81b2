//! Pages are turned as their metadata asks, wherever it stands: against Pillow's `exif_transpose`.

use safetensors::SafeTensors;
use serde_json::Value;

use super::{image_fixture, nano, read};
use medical_vision::processing::{DecodeLimits, decode_page};

#[test]
fn the_orientation_is_found_in_every_place_that_programs_write_it_to() {
    let manifest: Value = serde_json::from_slice(&image_fixture("orientation/manifest.json")).unwrap();
    let file = image_fixture("orientation/orientation.safetensors");
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let rows = manifest["images"].as_array().unwrap();
    assert!(rows.len() >= 45);
    for row in rows {
        let name = row["file"].as_str().unwrap();
        let bytes = image_fixture(&format!("orientation/{name}"));
        let page = read(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        let upright = tensors.tensor(name).unwrap();
        assert_eq!(
            upright.shape(),
            [page.height as usize, page.width as usize, 3],
            "{name}"
        );
        assert!(page.pixels == upright.data(), "{name}");
        assert_eq!(page.height == 40, row["turned"].as_bool().unwrap(), "{name}");
        let scaled = decode_page(&bytes, &DecodeLimits::default(), Some(&nano().bounds())).unwrap();
        assert_eq!(scaled.page.original_size(), (page.height, page.width), "{name}");
    }
}

#[test]
fn metadata_that_lies_costs_neither_the_picture_nor_memory() {
    let whole = image_fixture("orientation/exif-rational-big.jpg");
    let plain = read(&image_fixture("orientation/exif-1.jpg")).unwrap();
    let at = whole.windows(4).position(|bytes| bytes == b"Exif").unwrap() + 6;
    // Directory, type, number of values, offset of the value.
    for (place, length) in [(4, 4), (12, 2), (14, 4), (18, 4)] {
        let mut file = whole.clone();
        file[at + place..at + place + length].fill(0xff);
        let page = read(&file).unwrap();
        assert!(page.pixels == plain.pixels, "{place}");
    }
    // A profile of 100 MB in some kilobytes.
    let mut png = Vec::new();
    let mut encoder = png::Encoder::new(&mut png, 1, 1);
    let text = "Raw profile type exif".to_owned();
    encoder.add_ztxt_chunk(text, "\n".repeat(100 << 20)).unwrap();
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&[7]).unwrap();
    drop(writer);
    let (page, peak) = crate::suite::allocation::peak_allocation(|| read(&png));
    assert_eq!(page.unwrap().pixels, [7; 3]);
    assert!(peak < 32 << 20, "{peak} bytes");
}
