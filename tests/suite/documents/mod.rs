//! Documents that users send, against PDFium.

mod dicom;
mod fuzz;
mod hostile;
mod pdf;
pub mod pdf_file;
mod program;
mod tiff;
pub mod tiff_file;

use std::path::PathBuf;
use std::sync::Arc;

use medical_vision::documents::{self, Decoder, Document, OpenOptions};
use medical_vision::error::DocumentError;
use serde::Deserialize;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/documents")
        .join(name)
}

pub fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(fixture(name)).expect(name)
}

/// Options whose decoder is the shipped program's worker.
fn with_worker() -> OpenOptions {
    OpenOptions {
        decoder: Decoder::worker(env!("CARGO_BIN_EXE_medvision")),
        ..OpenOptions::default()
    }
}

fn open(bytes: Vec<u8>, options: &OpenOptions) -> Result<Document, DocumentError> {
    documents::open(Arc::new(bytes), options)
}

/// `expected.json`.
#[derive(Deserialize)]
struct Expected {
    documents: Vec<ExpectedDocument>,
}

#[derive(Deserialize)]
struct ExpectedDocument {
    file: String,
    password: Option<String>,
    pages: Vec<ExpectedPage>,
}

/// Text, left, top, right, bottom.
type WordBox = (String, f32, f32, f32, f32);

#[derive(Deserialize)]
struct ExpectedPage {
    png: String,
    dpi: u32,
    text: String,
    words: Option<Vec<WordBox>>,
}

fn expected() -> Vec<ExpectedDocument> {
    let expected: Expected = serde_json::from_slice(&bytes("expected.json")).expect("JSON");
    expected.documents
}
