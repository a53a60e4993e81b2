//! DICOM files: frames are pages. Attributes of patients are never read.

mod colour;
mod frame;
mod report;

use std::borrow::Cow;
use std::io::{Cursor, Read};
use std::sync::Arc;

use dicom_object::file::ReadPreamble;
use dicom_object::{DefaultDicomObject, OpenFileOptions, Tag};
use serde::{Deserialize, Serialize};

use super::pdf::{PdfFile, RenderOptions};
use super::{DocumentPage, FileBytes};
use crate::console::panics::catch_silently;
use crate::error::DocumentError;

const SOP_CLASS: Tag = Tag(0x0008, 0x0016);
const MODALITY: Tag = Tag(0x0008, 0x0060);
const NUMBER_OF_FRAMES: Tag = Tag(0x0028, 0x0008);
const BURNED_IN_ANNOTATION: Tag = Tag(0x0028, 0x0301);
const CONTENT_SEQUENCE: Tag = Tag(0x0040, 0xa730);
const ENCAPSULATED_DOCUMENT: Tag = Tag(0x0042, 0x0011);
const PIXEL_DATA: Tag = Tag(0x7fe0, 0x0010);

/// Maximum characters of an attribute that is passed on: a UID has 64.
const MAX_ATTRIBUTE: usize = 64;
/// Maximum number of frames.
const MAX_FRAMES: u32 = 100_000;

/// What a DICOM file says about itself, and nothing about the patient.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "pipeline", derive(utoipa::ToSchema))]
pub struct DicomFacts {
    /// SOP class UID.
    pub sop_class: Option<String>,
    /// Modality, such as `CT` or `SR`.
    pub modality: Option<String>,
    /// Whether text, such as names, is burned into the pixels: `YES` or `NO`, where the file tells.
    pub burned_in_annotation: Option<String>,
    /// Number of frames, of pages of an encapsulated PDF; 1 for a report.
    pub frames: u32,
}

/// An opened file.
pub(super) struct DicomFile {
    facts: DicomFacts,
    content: Content,
}

enum Content {
    Pixels(Box<DefaultDicomObject>),
    Pdf(PdfFile),
    Report(String),
}

impl DicomFile {
    pub(super) fn open(bytes: FileBytes) -> Result<Self, DocumentError> {
        let damaged = || DocumentError::Damaged(Cow::Borrowed("DICOM file"));
        let content = (*bytes).as_ref();
        // The parser needs the mark, which files without preamble may lack.
        let mark: &[u8] = match content {
            [2, 0, ..] => b"DICM",
            _ => b"",
        };
        let read = catch_silently(|| {
            let options = OpenFileOptions::new().read_preamble(ReadPreamble::Auto);
            options.from_reader(Cursor::new(mark).chain(Cursor::new(content)))
        });
        let object = read.map_err(|_| damaged())?.map_err(|error| unread(&error))?;
        let text = |tag| text(&object, tag);
        let mut facts = DicomFacts {
            sop_class: text(SOP_CLASS),
            modality: text(MODALITY),
            burned_in_annotation: text(BURNED_IN_ANNOTATION).filter(|value| value == "YES" || value == "NO"),
            frames: 1,
        };
        let content = if has(&object, PIXEL_DATA) {
            facts.frames = frames(&object)?;
            Content::Pixels(Box::new(object))
        } else if let Some(pdf) = encapsulated(&object) {
            let pdf = PdfFile::open(Arc::new(pdf), None)?;
            facts.frames = pdf.pages();
            Content::Pdf(pdf)
        } else if has(&object, CONTENT_SEQUENCE) {
            Content::Report(report::text(&object))
        } else {
            return Err(DocumentError::Unsupported(Cow::Borrowed(
                "a DICOM file without pixels",
            )));
        };
        Ok(Self { facts, content })
    }

    pub(super) fn facts(&self) -> &DicomFacts {
        &self.facts
    }

    /// The text of a structured report.
    pub(super) fn report(&self) -> Option<&str> {
        match &self.content {
            Content::Report(text) => Some(text),
            Content::Pixels(_) | Content::Pdf(_) => None,
        }
    }

    /// Decodes the frame, or page, with this index.
    pub(super) fn page(
        &self,
        index: u32,
        options: &RenderOptions<'_>,
    ) -> Result<DocumentPage, DocumentError> {
        match &self.content {
            Content::Pixels(object) => frame::page(object, index, options),
            Content::Pdf(pdf) => pdf.page(index, options),
            Content::Report(_) => Err(DocumentError::Unsupported(Cow::Borrowed(
                "a picture of a DICOM report",
            ))),
        }
    }
}

/// The library's errors have texts of their own, which can hold what the file says.
fn unread(error: &impl std::fmt::Display) -> DocumentError {
    if error.to_string().contains("ransfer syntax") {
        return DocumentError::Unsupported(Cow::Borrowed("the transfer syntax of this DICOM file"));
    }
    DocumentError::Damaged(Cow::Borrowed("DICOM file"))
}

fn has(object: &DefaultDicomObject, tag: Tag) -> bool {
    object.element_opt(tag).is_ok_and(|element| element.is_some())
}

/// A short attribute.
fn text(object: &DefaultDicomObject, tag: Tag) -> Option<String> {
    let value = object.element_opt(tag).ok()??.to_str().ok()?;
    let value = value.trim_matches(|character: char| character.is_whitespace() || character == '\0');
    let is_plain = value.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    (!value.is_empty() && value.len() <= MAX_ATTRIBUTE && is_plain).then(|| value.to_owned())
}

fn frames(object: &DefaultDicomObject) -> Result<u32, DocumentError> {
    match object.element_opt(NUMBER_OF_FRAMES) {
        Ok(Some(element)) => {
            let frames = element.to_int::<u32>().ok();
            frames
                .filter(|frames| (1..=MAX_FRAMES).contains(frames))
                .ok_or(DocumentError::Damaged(Cow::Borrowed("DICOM file")))
        }
        _ => Ok(1),
    }
}

/// The PDF in a file, if it has one.
fn encapsulated(object: &DefaultDicomObject) -> Option<Vec<u8>> {
    let document = object.element_opt(ENCAPSULATED_DOCUMENT).ok()??.to_bytes().ok()?;
    let is_pdf = super::Kind::of(&document) == Some(super::Kind::Pdf);
    is_pdf.then(|| document.into_owned())
}
