//! Documents in messages.

use medical_vision::server::ServerOptions;
use serde_json::{Value, json};

use super::stub::{
    assert_refused, completion, data_uri, page_uri, picture, post, refusal, start, understood, with_parts,
};
use crate::suite::documents::bytes;

const PLACE: &str = "messages[0].content[0].file.file_data";

fn file(bytes: &[u8]) -> Value {
    json!({"type": "file", "file": {"file_data": data_uri("application/pdf", bytes), "filename": "report.docx"}})
}

#[test]
fn each_page_of_a_file_is_a_picture() {
    let server = start(ServerOptions::default());
    let parts = json!([picture(&page_uri()), file(&bytes("text.pdf")), {"type": "text", "text": "Compare."}]);
    let answer = completion(&server, &with_parts(parts));
    let images = answer["medvision"]["images"].as_array().expect("images");
    let widths: Vec<_> = images.iter().map(|image| image["width"].as_u64()).collect();
    assert_eq!(widths, [Some(56), Some(800), Some(556), Some(1000)]);
}

#[test]
fn a_report_is_text() {
    let server = start(ServerOptions::default());
    let report = std::fs::read("tests/fixtures/dicom/reportsi.dcm").expect("a fixture");
    let asked = understood(&server, &with_parts(json!([file(&report)]))).to_string();
    assert!(
        asked.contains("Document Title") && !asked.contains("image"),
        "{asked}"
    );
}

#[test]
fn pages_count_as_pictures() {
    let options = ServerOptions {
        max_pictures: 3,
        ..ServerOptions::default()
    };
    let server = start(options);
    completion(&server, &with_parts(json!([file(&bytes("text.pdf"))])));
    let one_more = json!([picture(&page_uri()), file(&bytes("text.pdf"))]);
    let error = assert_refused(post(&server, &with_parts(one_more)), 413);
    assert_eq!(error["code"], "too_many_pages");
    assert!(
        error["message"]
            .as_str()
            .is_some_and(|message| message.contains("3 pages")),
        "{error}"
    );
}

#[test]
fn files_that_cannot_be_read_are_refused_by_place() {
    let server = start(ServerOptions::default());
    for (bytes, code, part) in [
        (b"%PDF-1.7 nothing".to_vec(), "invalid_file", "damaged"),
        (bytes("aes.pdf"), "invalid_file", "encrypted"),
        (b"a letter".to_vec(), "invalid_file", "not a supported file"),
        (b"\x89PNG\r\n\x1a\n".to_vec(), "invalid_image", "damaged"),
    ] {
        let message = refusal(&server, &with_parts(json!([file(&bytes)])), code, PLACE);
        assert!(message.contains(part), "{message}");
    }
}
