//! PDF pages: pixels, text layer, passwords, damage.

use medical_vision::documents::{DocumentPage, OpenOptions};
use medical_vision::error::DocumentError;
use medical_vision::processing::{DecodeLimits, PixelBounds, decode};

use super::pdf_file::PdfFile;
use super::{ExpectedDocument, bytes, expected, open, with_worker};

/// Every page of a document, in grey values, with PDFium's.
fn compared(document: &ExpectedDocument) -> Vec<(DocumentPage, Vec<f64>, Vec<f64>)> {
    let options = OpenOptions {
        dpi: document.pages.first().map_or(200, |page| page.dpi),
        password: document.password.clone(),
        ..OpenOptions::default()
    };
    let opened = open(bytes(&document.file), &options).expect(&document.file);
    assert_eq!(opened.pages() as usize, document.pages.len(), "{}", document.file);
    let pages = document.pages.iter().zip(1..).map(|(expected, number)| {
        let page = opened.page(number, None).expect(&expected.png);
        let golden = decode(&bytes(&expected.png), &DecodeLimits::default()).expect(&expected.png);
        let size = (golden.width, golden.height);
        assert!(
            page.page.width.abs_diff(size.0) <= 1 && page.page.height.abs_diff(size.1) <= 1,
            "{}: {:?}, PDFium {size:?}",
            expected.png,
            page.page
        );
        let (width, height) = (page.page.width.min(size.0), page.page.height.min(size.1));
        let grey = |pixels: &[u8], row: u32| -> Vec<f64> {
            let places = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
            let grey = |pixel: &[u8]| {
                0.299 * f64::from(pixel[0]) + 0.587 * f64::from(pixel[1]) + 0.114 * f64::from(pixel[2])
            };
            places
                .map(|(x, y)| grey(&pixels[((y * row + x) * 3) as usize..][..3]))
                .collect()
        };
        let ours = grey(&page.page.pixels, page.page.width);
        let theirs = grey(&golden.pixels, golden.width);
        (page, ours, theirs)
    });
    pages.collect()
}

/// Pearson's correlation.
fn correlation(one: &[f64], other: &[f64]) -> f64 {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (mean_one, mean_other) = (mean(one), mean(other));
    let (mut both, mut first, mut second) = (0.0, 0.0, 0.0);
    for (a, b) in one.iter().zip(other) {
        let (a, b) = (a - mean_one, b - mean_other);
        both += a * b;
        first += a * a;
        second += b * b;
    }
    both / (first * second).sqrt()
}

#[test]
fn pages_look_as_pdfium_renders_them() {
    for document in expected()
        .into_iter()
        .filter(|document| !document.pages.is_empty())
    {
        for (index, (page, ours, theirs)) in compared(&document).iter().enumerate() {
            let least = if document.file.contains("fax") { 0.90 } else { 0.95 };
            let found = correlation(ours, theirs);
            println!("{} page {}: {found:.4}", document.file, index + 1);
            assert!(found >= least, "{} page {}: {found}", document.file, index + 1);
            assert_eq!(page.warnings, [], "{}", document.file);
        }
    }
}

#[test]
fn the_text_layer_has_pdfiums_words_in_their_places() {
    for document in expected()
        .into_iter()
        .filter(|document| !document.pages.is_empty())
    {
        for ((page, ..), expected) in compared(&document).iter().zip(&document.pages) {
            let layer = page.text.as_ref().expect(&expected.png);
            let words: Vec<&str> = layer.words.iter().map(|word| word.text.as_str()).collect();
            let theirs: Vec<&str> = expected.text.split_whitespace().collect();
            if let Some(boxes) = &expected.words {
                // PDFium leaves out what is in form fields and notes.
                let (page, beyond) = words.split_at(theirs.len().min(words.len()));
                assert_eq!(page, theirs, "{}", expected.png);
                assert_eq!(!beyond.is_empty(), document.file == "form.pdf", "{beyond:?}");
                for (word, (text, left, top, right, bottom)) in layer.words.iter().zip(boxes) {
                    // PDFium takes the height of a line from the font, which for a substitute is another one.
                    let near = |one: f32, other: f32, most: f32| (one - other).abs() <= most;
                    let [x0, y0, x1, y1] = word.bounds;
                    let (middle, their_middle) = ((y0 + y1) / 2.0, (top + bottom) / 2.0);
                    assert!(
                        near(x0, *left, 3.0) && near(x1, *right, 3.0) && near(middle, their_middle, 6.0),
                        "{} {text}: {:?}, PDFium {:?}",
                        expected.png,
                        word.bounds,
                        (left, top, right, bottom)
                    );
                }
            } else {
                // Turned or cropped: PDFium also reads what is cut off.
                assert!(
                    !words.is_empty() && words.iter().all(|word| theirs.contains(word)),
                    "{}",
                    expected.png
                );
            }
            let is_scan = document.file.starts_with("scan");
            assert!(
                layer.words.iter().all(|word| word.hidden == is_scan),
                "{}",
                document.file
            );
        }
    }
}

#[test]
fn a_page_is_rendered_once_at_the_size_that_the_model_reads() {
    let document = open(bytes("text.pdf"), &OpenOptions::default()).expect("opens");
    for (max_pixels, larger) in [(100_000, false), (4_000_000, true)] {
        let bounds = PixelBounds {
            factor: 28,
            min_pixels: if larger { 1_000_000 } else { 3136 },
            max_pixels,
            max_enlargement: None,
        };
        let page = document.page(1, Some(&bounds)).expect("a page").page;
        assert_eq!(page.scaled_from, Some((556, 800)), "at 200 dpi");
        let scaled = bounds.scaled(556, 800).expect("a size");
        assert_eq!((page.height, page.width), scaled);
        assert_eq!(page.pixels.len(), (page.height * page.width * 3) as usize);
        assert_eq!(page.width > 800, larger);
    }
}

#[test]
fn encrypted_files_open_with_their_password() {
    for file in ["rc4.pdf", "aes.pdf", "owner.pdf"] {
        let documents = expected();
        let password = documents
            .iter()
            .find(|document| document.file == file)
            .expect(file)
            .password
            .clone();
        let with = |password: Option<&str>| {
            let options = OpenOptions {
                password: password.map(str::to_owned),
                ..OpenOptions::default()
            };
            open(bytes(file), &options)
        };
        let opened = with(password.as_deref()).expect(file);
        let page = opened.page(1, None).expect(file);
        let words = page.text.expect(file).words;
        assert_eq!(words[0].text, "Lab", "{file}");
        if password.is_some() {
            assert_eq!(with(None).err(), Some(DocumentError::PasswordMissing), "{file}");
            assert_eq!(
                with(Some("other")).err(),
                Some(DocumentError::PasswordWrong),
                "{file}"
            );
        }
    }
}

#[test]
fn the_worker_answers_as_this_process_does() {
    let (worker, here) = (with_worker(), OpenOptions::default());
    let files = ["text.pdf", "scan-jpeg2000.pdf"];
    let opened = |options| files.map(|file| open(bytes(file), options).expect(file));
    // In turn, so that each is sent again.
    for (away, here) in opened(&worker).iter().zip(opened(&here)) {
        assert_eq!(away.pages(), here.pages());
    }
    let (away, here) = (opened(&worker), opened(&here));
    for number in [1, 1] {
        for (away, here) in away.iter().zip(&here) {
            assert_eq!(away.page(number, None), here.page(number, None));
        }
    }
    let broken = open(b"%PDF-1.7".to_vec(), &worker).err();
    assert_eq!(broken, Some(DocumentError::Damaged("PDF".into())));
    assert!(away[0].page(3, None).is_ok(), "the worker goes on");
    assert_eq!(
        away[0].page(4, None),
        Err(DocumentError::NoSuchPage { number: 4, pages: 3 })
    );
}

#[test]
fn a_broken_table_or_a_cut_file_is_read_as_far_as_it_goes() {
    let whole = bytes("text.pdf");
    let at = whole
        .windows(9)
        .rposition(|bytes| bytes == b"startxref")
        .expect("a table");
    let mut broken = whole[..at].to_vec();
    broken.extend(b"startxref\n99999999\n%%EOF\n");
    let table = whole
        .windows(5)
        .position(|bytes| bytes == b"xref\n")
        .expect("a table");
    let intact = open(whole.clone(), &OpenOptions::default()).expect("opens");
    let intact = intact.page(1, None).expect("a page").text.expect("text").words;
    for (what, file) in [
        ("broken table", broken),
        ("without a table", whole[..table].to_vec()),
    ] {
        let document = open(file, &OpenOptions::default()).expect(what);
        assert_eq!(document.pages(), 3, "{what}");
        let words = document.page(1, None).expect(what).text.expect(what).words;
        assert_eq!(words, intact, "{what}");
    }
    // Whatever the length: an error or pages, and pages that are errors or pictures.
    let options = OpenOptions::default();
    for length in (0..whole.len()).step_by(97) {
        if let Ok(document) = open(whole[..length].to_vec(), &options) {
            for number in 1..=document.pages() {
                let _ = document.page(number, None);
            }
        }
    }
}

#[test]
fn five_thousand_pages_are_counted_without_decoding_one() {
    let mut file = PdfFile::new();
    for _ in 0..5000 {
        file.page("0 0 10 10 re f", "/MediaBox [0 0 100 100]");
    }
    let document = open(file.finish(), &with_worker()).expect("opens");
    assert_eq!(document.pages(), 5000);
    let last = document.page(5000, None).expect("a page");
    assert_eq!((last.number, last.page.width), (5000, 278));
}

#[test]
#[ignore = "prints times"]
fn times_of_pages() {
    for file in [
        "text.pdf",
        "embedded.pdf",
        "scan-jpeg.pdf",
        "scan-jpeg2000.pdf",
        "scan-fax.pdf",
        "form.pdf",
    ] {
        let document = open(bytes(file), &with_worker()).expect(file);
        document.page(1, None).expect(file);
        let start = std::time::Instant::now();
        for _ in 0..20 {
            document.page(1, None).expect(file);
        }
        println!("{file}: {:.1} ms", start.elapsed().as_secs_f64() * 50.0);
    }
}
