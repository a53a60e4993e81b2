//! DICOM against pydicom.

use std::path::PathBuf;

use medical_vision::documents::{Document, Kind, OpenOptions};
use medical_vision::error::{DocumentError, ImageError};
use medical_vision::processing::{DecodeLimits, decode};
use proptest::prelude::*;
use serde::Deserialize;

use super::{open, with_worker};

#[derive(Deserialize)]
struct Expected {
    files: Vec<ExpectedFile>,
}

#[derive(Deserialize)]
struct ExpectedFile {
    file: String,
    #[serde(default)]
    frames: Vec<String>,
    #[serde(default)]
    lossy: bool,
    refused: Option<String>,
    report: Option<String>,
}

/// The files, or all of pydicom's where the generator wrote them to a folder.
fn folder() -> PathBuf {
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/dicom");
    std::env::var_os("TEST_DICOM_FOLDER").map_or(fixtures, PathBuf::from)
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(folder().join(name)).expect(name)
}

fn document(name: &str) -> Result<Document, DocumentError> {
    open(bytes(name), &OpenOptions::default())
}

fn expected() -> Vec<ExpectedFile> {
    let expected: Expected = serde_json::from_slice(&bytes("expected.json")).expect("JSON");
    expected.files
}

#[test]
fn frames_are_pydicoms_within_a_grey_level() {
    let mut wrong = Vec::new();
    for expected in expected().iter().filter(|file| !file.frames.is_empty()) {
        let name = &expected.file;
        let opened = match document(name) {
            Ok(opened) => opened,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        assert_eq!(opened.pages() as usize, expected.frames.len(), "{name}");
        for (number, png) in (1..).zip(&expected.frames) {
            let golden = decode(&bytes(png), &DecodeLimits::default()).expect(png);
            let page = match opened.page(number, None) {
                Ok(page) => page.page,
                Err(error) => {
                    wrong.push(format!("{name}: {error}"));
                    continue;
                }
            };
            assert_eq!((page.width, page.height), (golden.width, golden.height), "{name}");
            let differences: Vec<u8> = page
                .pixels
                .iter()
                .zip(&golden.pixels)
                .map(|(a, b)| a.abs_diff(*b))
                .collect();
            let most = differences.iter().max().copied().unwrap_or(0);
            let mean = differences
                .iter()
                .map(|difference| f64::from(*difference))
                .sum::<f64>()
                / differences.len() as f64;
            if most > 1 && (!expected.lossy || mean > 1.0) {
                wrong.push(format!(
                    "{name} frame {number}: up to {most}, {mean:.3} on average"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn others_are_refused_by_their_names() {
    for expected in expected() {
        let Some(what) = expected.refused else { continue };
        let error = document(&expected.file)
            .and_then(|document| document.page(1, None))
            .expect_err(&expected.file);
        assert!(error.to_string().contains(&what), "{}: {error}", expected.file);
    }
}

#[test]
fn reports_are_text() {
    let mut found = 0;
    for expected in expected() {
        let Some(text) = expected.report else { continue };
        let opened = document(&expected.file).expect(&expected.file);
        assert_eq!(opened.report(), Some(text.as_str()), "{}", expected.file);
        assert!(opened.page(1, None).is_err());
        found += 1;
    }
    assert!(found > 0);
}

#[test]
fn the_facts_are_few_and_not_the_patients() {
    let opened = document("own_inverted.dcm").expect("opens");
    let facts = opened.dicom().expect("facts");
    let json = serde_json::to_value(facts).expect("JSON");
    let expected = serde_json::json!({
        "sop_class": "1.2.840.10008.5.1.4.1.1.7", "modality": "OT", "burned_in_annotation": "YES", "frames": 1,
    });
    assert_eq!(json, expected);
    assert_eq!(opened.kind(), Kind::Dicom);
    assert!(!format!("{opened:?} {:?}", opened.page(1, None)).contains("CANARY"));
}

#[test]
fn a_pdf_in_a_dicom_file_opens_as_pdf() {
    let opened = open(bytes("own_pdf.dcm"), &with_worker()).expect("opens");
    assert_eq!(
        (opened.pages(), opened.dicom().map(|facts| facts.frames)),
        (3, Some(3))
    );
    let page = opened.page(2, None).expect("a page");
    assert_eq!(page.text.expect("text").words[0].text, "Lab");
}

#[test]
fn a_file_without_preamble_is_read() {
    let whole = bytes("own_window.dcm");
    let expected = document("own_window.dcm").and_then(|document| document.page(1, None));
    for start in [128, 132] {
        let opened = open(whole[start..].to_vec(), &OpenOptions::default()).expect("opens");
        assert_eq!(opened.page(1, None), expected, "from byte {start}");
    }
}

#[test]
fn hostile_files_are_errors() {
    let options = with_worker();
    let whole = bytes("own_window.dcm");
    for length in [132, 200, 400, 600, whole.len() - 100] {
        let read = open(whole[..length].to_vec(), &options).and_then(|document| document.page(1, None));
        assert!(read.is_err(), "{length} bytes");
    }
    // 65535 x 65535, by its attributes.
    let mut huge = whole.clone();
    for tag in [[0x28, 0, 0x10, 0], [0x28, 0, 0x11, 0]] {
        let at = huge.windows(4).position(|bytes| bytes == tag).expect("a tag");
        huge[at + 8..at + 10].fill(0xff);
    }
    let read = open(huge, &options).and_then(|document| document.page(1, None));
    let too_many = ImageError::TooManyPixels {
        width: 65535,
        height: 65535,
        limit: 40_000_000,
    };
    assert_eq!(read, Err(too_many.into()));
    // A private transfer syntax.
    let mut private = whole.clone();
    let uid = b"1.2.840.10008.1.2.1\0";
    let at = private
        .windows(uid.len())
        .position(|bytes| bytes == uid)
        .expect("a transfer syntax");
    private[at..at + uid.len()].copy_from_slice(b"1.2.999.10008.1.2.1\0");
    let refused = open(private, &options)
        .and_then(|document| document.page(1, None))
        .expect_err("refused");
    assert!(refused.to_string().contains("transfer syntax"), "{refused}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn changed_bytes_never_panic(
        file in prop::sample::select(vec!["own_palette.dcm", "own_overlay.dcm", "SC_rgb_rle.dcm", "SC_rgb_jpeg_dcmtk.dcm", "reportsi.dcm"]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
    ) {
        let mut bytes = bytes(file);
        for (index, byte) in changes {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(document) = open(bytes, &OpenOptions::default()) {
            let _ = document.page(1, None);
        }
    }
}
