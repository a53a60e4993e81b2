//! TIFF files with several directories.

use medical_vision::documents::OpenOptions;
use medical_vision::error::{DocumentError, ImageError};
use medical_vision::processing::{DecodeLimits, PageWarning, decode_page};

use super::open;
use super::tiff_file::{TiffFile, grey_page};

const SUBFILE_TYPE: u16 = 254;

/// Width of each page, or its error.
fn widths(file: Vec<u8>) -> Vec<Result<u32, DocumentError>> {
    let document = open(file, &OpenOptions::default()).expect("opens");
    let pages = document.pages_ahead((1..=document.pages()).collect(), None);
    pages.map(|(_, page)| page.map(|page| page.page.width)).collect()
}

#[test]
fn directories_are_pages_but_for_thumbnails_and_masks() {
    let mut file = TiffFile::new();
    for (width, kind) in [(5, 1), (10, 0), (20, 2), (6, 1), (7, 4), (30, 0)] {
        let mut page = grey_page(width, 4, width as u8);
        page.fields.push((SUBFILE_TYPE, kind));
        file.page(&page);
    }
    let file = file.finish();
    assert_eq!(widths(file.clone()), [Ok(10), Ok(20), Ok(30)]);
    let document = open(file.clone(), &OpenOptions::default()).expect("opens");
    let second = document.page(2, None).expect("a page");
    assert_eq!((second.number, second.page.pixels[0]), (2, 20));
    assert_eq!(second.warnings, []);
    assert_eq!(
        document.page(4, None),
        Err(DocumentError::NoSuchPage { number: 4, pages: 3 })
    );
    assert_eq!(
        document.page(0, None),
        Err(DocumentError::NoSuchPage { number: 0, pages: 3 })
    );
    // As one picture, it is its first page.
    let picture = decode_page(&file, &DecodeLimits::default(), None).expect("a picture");
    assert_eq!(
        (picture.page.width, picture.warnings),
        (10, vec![PageWarning::FirstOf(3)])
    );
    // A file of thumbnails alone has its first one.
    let mut only = TiffFile::new();
    let mut page = grey_page(5, 4, 0);
    page.fields.push((SUBFILE_TYPE, 1));
    only.page(&page);
    assert_eq!(widths(only.finish()), [Ok(5)]);
}

#[test]
fn directories_that_form_a_ring_are_read_once() {
    let mut file = TiffFile::new();
    let first = file.page(&grey_page(10, 4, 0));
    let second = file.page(&grey_page(20, 4, 0));
    for to in [first, second] {
        file.point_to(to);
    }
    assert_eq!(widths(file.finish()), [Ok(10), Ok(20)]);
}

#[test]
fn a_huge_or_damaged_page_costs_only_itself() {
    let mut file = TiffFile::new();
    let mut huge = grey_page(1, 1, 0);
    huge.fields[0].1 = 65535;
    huge.fields[1].1 = 65535;
    file.page(&huge);
    let mut damaged = grey_page(20, 4, 0);
    damaged.fields[3].1 = 7777;
    file.page(&damaged);
    file.page(&grey_page(30, 4, 0));
    let found = widths(file.finish());
    let too_many = ImageError::TooManyPixels {
        width: 65535,
        height: 65535,
        limit: 40_000_000,
    };
    assert_eq!(found[0], Err(too_many.into()));
    assert!(matches!(found[1], Err(DocumentError::Image(_))), "{found:?}");
    assert_eq!(found[2], Ok(30));
}

#[test]
fn a_chain_that_leaves_the_file_ends_there() {
    let mut file = TiffFile::new();
    file.page(&grey_page(10, 4, 0));
    file.point_to(0xffff_fff0);
    assert_eq!(widths(file.finish()), [Ok(10)]);
}
