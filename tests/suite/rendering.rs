//! Pages against Pillow's: same places, same shades but for a few of the last bits.

use std::path::{Path, PathBuf};

use medical_vision::processing::{DecodeLimits, RgbPage, decode};
use medical_vision::rendering::{
    EVALUATION_PAGE, PageSize, TEST_PAGE, document_page, encode_grey, encode_rgb, text_lines, text_page,
};
use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/rendering")
        .join(name)
}

fn texts() -> Value {
    serde_json::from_slice(&std::fs::read(fixture("pages.json")).unwrap()).unwrap()
}

fn strings(value: &Value) -> Vec<String> {
    let items = value.as_array().unwrap().iter();
    items.map(|item| item.as_str().unwrap().to_owned()).collect()
}

fn drawn_by_pillow(name: &str) -> RgbPage {
    decode(&std::fs::read(fixture(name)).unwrap(), &DecodeLimits::default()).unwrap()
}

/// FreeType flattens curves a little differently: 1 sample of ink in 200 may be off by more than 2 levels, none by more than 8.
fn assert_close(ours: &RgbPage, pillow: &RgbPage) {
    assert_eq!((ours.width, ours.height), (pillow.width, pillow.height));
    let differences = ours
        .pixels
        .iter()
        .zip(&pillow.pixels)
        .map(|(a, b)| a.abs_diff(*b));
    let ink = pillow.pixels.iter().filter(|shade| **shade < 255).count();
    let (mut largest, mut far) = (0, 0);
    for difference in differences {
        largest = largest.max(difference);
        far += usize::from(difference > 2);
    }
    assert!(ink > 1000, "an empty page proves nothing");
    assert!(largest <= 8, "{largest} levels");
    assert!(
        far * 200 <= ink,
        "{far} of {ink} samples are off by more than 2 levels"
    );
}

#[test]
fn documents_match_pillow() {
    let texts = texts();
    let side = |index: usize| u32::try_from(texts["size"][index].as_u64().unwrap()).unwrap();
    let size = PageSize {
        width: side(0),
        height: side(1),
    };
    let ours = document_page(
        texts["title"].as_str().unwrap(),
        &strings(&texts["content"]),
        size,
    );
    assert_close(&ours, &drawn_by_pillow("document.png"));
}

#[test]
fn plain_text_matches_python_and_pillow() {
    let texts = texts();
    let lines = text_lines(texts["text"].as_str().unwrap());
    assert_eq!(lines, strings(&texts["lines"]));
    assert_close(&text_page(&lines).to_rgb(), &drawn_by_pillow("text.png"));
}

#[test]
fn geometry_is_that_of_the_original_project() {
    let at = |page: &RgbPage, x: u32, y: u32| {
        let start = ((y * page.width + x) * 3) as usize;
        [page.pixels[start], page.pixels[start + 1], page.pixels[start + 2]]
    };
    let (black, white) = ([0; 3], [255; 3]);
    for (size, width, height) in [(TEST_PAGE, 900, 1100), (EVALUATION_PAGE, 920, 1200)] {
        let many = vec!["|".to_owned(); 200];
        let page = document_page("TITLE", &many, size);
        assert_eq!((page.width, page.height), (width, height));
        for corner in [
            (20, 20),
            (width - 20, 20),
            (20, height - 20),
            (width - 20, height - 20),
        ] {
            assert_eq!(at(&page, corner.0, corner.1), black, "{corner:?}");
        }
        for (x, y) in [(21, 500), (width - 21, 500), (500, 21), (500, height - 21)] {
            assert_eq!(at(&page, x, y), black, "the border is 2 px wide at {x}, {y}");
        }
        for (x, y) in [
            (19, 500),
            (22, 500),
            (width - 19, 500),
            (width - 22, 500),
            (500, 22),
            (500, height - 22),
        ] {
            assert_eq!(at(&page, x, y), white, "the border is 2 px wide at {x}, {y}");
        }
        assert_eq!(
            [
                at(&page, 39, 70),
                at(&page, 40, 70),
                at(&page, width - 40, 70),
                at(&page, width - 39, 70)
            ],
            [white, black, black, white]
        );
        let row_has_ink = |y: u32| (30..width - 30).any(|x| at(&page, x, y) != white);
        let last = (71..height - 22).rev().find(|y| row_has_ink(*y)).unwrap();
        // The last line's top is the last of 85, 103, ... that is not past height - 60.
        let top = 85 + (height - 60 - 85) / 18 * 18;
        assert!(
            (top..top + 18).contains(&last),
            "{last} is not of the line at {top}"
        );
        let navy = page
            .pixels
            .as_chunks::<3>()
            .0
            .iter()
            .filter(|pixel| **pixel == [0, 0, 128])
            .count();
        assert!(navy > 50, "the title is navy");
    }
    for (lines, height) in [(0, 400), (18, 400), (19, 402), (49, 942), (50, 960), (80, 960)] {
        let page = text_page(&vec!["line"; lines]);
        assert_eq!((page.width, page.height), (800, height), "{lines} lines");
    }
}

#[test]
fn png_files_are_lossless_and_deterministic() {
    let lines = text_lines("A file\nof two lines");
    let grey = text_page(&lines);
    let colour = document_page("A FILE", &lines, TEST_PAGE);
    for (page, encode) in [
        (
            grey.to_rgb(),
            &(|| {
                let mut file = Vec::new();
                encode_grey(&grey, &mut file).unwrap();
                file
            }) as &dyn Fn() -> Vec<u8>,
        ),
        (colour.clone(), &|| {
            let mut file = Vec::new();
            encode_rgb(&colour, &mut file).unwrap();
            file
        }),
    ] {
        let file = encode();
        assert_eq!(decode(&file, &DecodeLimits::default()).unwrap(), page);
        assert_eq!(file, encode());
    }
}
