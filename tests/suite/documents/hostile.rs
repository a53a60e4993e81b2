//! Files that are made to exhaust a decoder, in the shipped program's worker.

use std::time::Instant;

use flate2_bomb::zeros;
use medical_vision::documents::{Document, OpenOptions};
use medical_vision::error::{DocumentError, ImageError};
use proptest::prelude::*;

use super::pdf_file::PdfFile;
use super::{bytes, open, with_worker};

/// Highly compressed zeros.
mod flate2_bomb {
    use std::io::Write;

    /// zlib data of `mebibytes` MiB of zeros.
    pub fn zeros(mebibytes: usize) -> Vec<u8> {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
        let block = vec![0; 1 << 20];
        for _ in 0..mebibytes {
            encoder.write_all(&block).expect("memory");
        }
        encoder.finish().expect("memory")
    }
}

/// A file with a harmless second page, opened in a worker.
fn hostile(make: impl FnOnce(&mut PdfFile)) -> Document {
    let mut file = PdfFile::new();
    make(&mut file);
    file.page("0 0 50 50 re f", "/MediaBox [0 0 72 72]");
    open(file.finish(), &with_worker()).expect("opens")
}

/// The first page fails with `expected`; the second one is read.
#[track_caller]
fn assert_first_page_fails(document: &Document, expected: &DocumentError) {
    assert_eq!(document.page(1, None).as_ref().err(), Some(expected));
    let second = document.page(2, None).expect("the second page");
    assert_eq!((second.page.width, second.page.height), (200, 200));
}

#[test]
fn pages_without_an_area_and_huge_ones_have_bounded_pictures() {
    for (media_box, size) in [
        ("[0 0 0 0]", (1654, 2339)),
        ("[5 5 5 900]", (1654, 2339)),
        ("[0 0 200000 200000]", (6324, 6324)),
        (
            "[-99999999999999999999 -99999999999999999999 99999999999999999999 99999999999999999999]",
            (6324, 6324),
        ),
        ("[a b c d]", (1654, 2339)),
    ] {
        let document = hostile(|file| file.page("0 0 50 50 re f", &format!("/MediaBox {media_box}")));
        let page = document.page(1, None).expect(media_box).page;
        assert_eq!((page.width, page.height), size, "{media_box}");
    }
}

#[test]
fn a_page_a_thousand_times_as_long_as_wide_is_refused() {
    let document = hostile(|file| file.page("", "/MediaBox [0 0 1000 1000000]"));
    let bounds = medical_vision::processing::PixelBounds {
        factor: 28,
        min_pixels: 3136,
        max_pixels: 1_003_520,
        max_enlargement: None,
    };
    let refused = document.page(1, Some(&bounds)).err();
    assert!(
        matches!(
            refused,
            Some(DocumentError::Image(ImageError::AspectRatio { .. }))
        ),
        "{refused:?}"
    );
}

#[test]
fn pictures_above_the_limit_are_refused_by_their_announced_size() {
    let limit = 40_000_000;
    let too_many = |width, height| DocumentError::Image(ImageError::TooManyPixels { width, height, limit });
    let entries = "/Type /XObject /Subtype /Image /BitsPerComponent 8 /ColorSpace /DeviceGray";
    let flate = hostile(|file| {
        let sizes = "/Width 60000 /Height 60000 /Filter /FlateDecode";
        let image = file.stream(&format!("{entries} {sizes}"), &zeros(1));
        file.picture_page(image);
    });
    assert_first_page_fails(&flate, &too_many(60_000, 60_000));
    let mask = hostile(|file| {
        let mask = file.stream(
            &format!("{entries} /Width 50000 /Height 50000 /Filter /FlateDecode"),
            &zeros(1),
        );
        let sizes = format!("/Width 1 /Height 1 /SMask {mask} 0 R");
        let image = file.stream(&format!("{entries} {sizes}"), &[0]);
        file.picture_page(image);
    });
    assert_first_page_fails(&mask, &too_many(50_000, 50_000));
    // The dictionary says 8 x 8, the code stream another size, which counts.
    let jpeg2000 = hostile(|file| {
        let mut data = vec![0xff, 0x4f, 0xff, 0x51, 0, 41, 0, 0];
        for number in [60_000_u32, 60_000, 0, 0, 60_000, 60_000, 0, 0] {
            data.extend(number.to_be_bytes());
        }
        data.extend([0, 1, 7, 1, 1, 0xff, 0x90]);
        let sizes = "/Width 8 /Height 8 /Filter /JPXDecode";
        let image = file.stream(&format!("{entries} {sizes}"), &data);
        file.picture_page(image);
    });
    assert_first_page_fails(&jpeg2000, &too_many(60_000, 60_000));
    // Where nothing draws it, it costs nothing.
    let unused = hostile(|file| {
        let image = file.stream(&format!("{entries} /Width 60000 /Height 60000"), &[0]);
        file.page(
            "",
            &format!("/MediaBox [0 0 9 9] /Resources << /XObject << /I {image} 0 R >> >>"),
        );
    });
    assert!(unused.page(1, None).is_ok());
    // In a pattern and in a soft mask, too.
    let pattern = hostile(|file| {
        let image = file.stream(&format!("{entries} /Width 60000 /Height 60000"), &[0]);
        let resources = format!("/Resources << /XObject << /I {image} 0 R >> >>");
        let tile = file.stream(
            &format!("/Type /Pattern /PatternType 1 /PaintType 1 /TilingType 1 /BBox [0 0 9 9] /XStep 9 /YStep 9 {resources}"),
            b"/I Do",
        );
        let entries = format!("/MediaBox [0 0 99 99] /Resources << /Pattern << /P {tile} 0 R >> >>");
        file.page("/Pattern cs /P scn 0 0 99 99 re f", &entries);
    });
    assert_first_page_fails(&pattern, &too_many(60_000, 60_000));
}

#[test]
fn pages_of_many_pictures_or_operations_are_refused() {
    let pictures = hostile(|file| {
        let image = file.stream(
            "/Type /XObject /Subtype /Image /BitsPerComponent 8 /ColorSpace /DeviceGray /Width 1 /Height 1",
            &[0],
        );
        let entries = format!("/MediaBox [0 0 200 200] /Resources << /XObject << /I {image} 0 R >> >>");
        file.page(&"/I Do ".repeat(201), &entries);
    });
    assert_first_page_fails(&pictures, &DocumentError::TooManyPictures { limit: 200 });
    let operations = hostile(|file| file.page(&"0 0 1 1 re f ".repeat(1_000_001), "/MediaBox [0 0 9 9]"));
    assert_first_page_fails(
        &operations,
        &DocumentError::TooManyOperations { limit: 1_000_000 },
    );
}

#[test]
fn a_form_that_draws_itself_ends() {
    let document = hostile(|file| {
        let number = file.add("");
        let body = b"/X Do 0 0 5 5 re f /X Do";
        let mut form = format!(
            "<< /Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /XObject << /X {number} 0 R >> >> /Length {} >>\nstream\n",
            body.len()
        )
        .into_bytes();
        form.extend(body);
        form.extend(b"\nendstream");
        file.set(number, form);
        let entries = format!("/MediaBox [0 0 9 9] /Resources << /XObject << /X {number} 0 R >> >>");
        file.page("/X Do", &entries);
    });
    // Each level draws itself twice: 2^50 operations, cut off by their number.
    let _ = document.page(1, None);
    assert!(document.page(2, None).is_ok());
}

#[test]
fn a_tree_of_pages_that_contains_itself_ends() {
    let mut file = PdfFile::new();
    file.page("", "/MediaBox [0 0 9 9]");
    let whole = file.finish();
    let kids = String::from_utf8_lossy(&whole).replace("/Kids [4 0 R ]", "/Kids [2 0 R ]");
    let opened = open(kids.into_bytes(), &with_worker());
    assert!(opened.is_err() || opened.is_ok_and(|document| document.pages() < 2));
}

#[test]
fn a_page_that_takes_too_much_memory_costs_only_itself() {
    // 4 GiB of content from 4 MiB; of a picture, whose size is within the limit.
    let content = hostile(|file| {
        let bomb = file.stream("/Filter /FlateDecode", &zeros(4096));
        file.raw_page(&format!("/Contents {bomb} 0 R /MediaBox [0 0 9 9]"));
    });
    assert_first_page_fails(&content, &DocumentError::TooLarge);
}

#[test]
fn a_page_that_takes_too_long_is_given_up() {
    // Nothing is drawn, so that no limit but time applies.
    let document = hostile(|file| {
        let bomb = "q Q ".repeat(30_000_000);
        file.page(&bomb, "/MediaBox [0 0 9 9]");
    });
    let start = Instant::now();
    let _ = document.page(1, None);
    println!("{:.1} s", start.elapsed().as_secs_f64());
    assert!(document.page(2, None).is_ok());
}

#[test]
fn a_worker_that_is_killed_is_replaced() {
    let options = with_worker();
    let document = open(bytes("text.pdf"), &options).expect("opens");
    let before = document.page(1, None).expect("a page");
    let pid = options.decoder.worker_id().expect("a worker");
    let pid = rustix::process::Pid::from_raw(pid as i32).expect("a process");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it runs");
    assert_eq!(document.page(1, None), Ok(before));
    assert_ne!(
        options.decoder.worker_id(),
        Some(pid.as_raw_nonzero().get() as u32)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn changed_bytes_never_panic(
        file in prop::sample::select(vec!["text.pdf", "form.pdf", "embedded.pdf", "scan-fax.pdf"]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
    ) {
        let mut bytes = bytes(file);
        for (index, byte) in changes {
            let at = index.index(bytes.len());
            bytes[at] = byte;
        }
        let options = OpenOptions { dpi: 36, ..OpenOptions::default() };
        if let Ok(document) = open(bytes, &options) {
            for number in 1..=document.pages().min(3) {
                let _ = document.page(number, None);
            }
        }
    }
}
