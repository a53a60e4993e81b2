//! Messages between a process and its worker: a JSON header with its length before it, then bytes whose number the header tells.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

use crate::documents::{DocumentPage, Kind, OpenOptions, Opened, TextLayer};
use crate::error::DocumentError;
use crate::processing::{DecodeLimits, PageWarning, PixelBounds, RgbPage};

/// Maximum bytes of a header: a text layer.
const MAX_HEADER: usize = 64 << 20;
/// Maximum bytes of a page.
const MAX_PAGE: u64 = 1 << 30;

/// What is asked of a worker.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// The file's bytes follow. The document before it is dropped.
    Open(OpenRequest),
    /// What opening the document told.
    Describe,
    Page(PageRequest),
}

#[derive(Serialize, Deserialize)]
pub(super) struct OpenRequest {
    pub kind: WireKind,
    pub length: usize,
    pub password: Option<String>,
}

impl std::fmt::Debug for OpenRequest {
    /// Without the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OpenRequest({:?}, {} bytes)", self.kind, self.length)
    }
}

/// The kinds that a worker decodes.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) enum WireKind {
    Pdf,
    Dicom,
}

impl From<Kind> for WireKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Dicom => Self::Dicom,
            Kind::Pdf | Kind::Picture(_) => Self::Pdf,
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct PageRequest {
    pub index: u32,
    pub max_pixels: u64,
    pub dpi: u32,
    pub bounds: Option<WireBounds>,
}

/// [`PixelBounds`].
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct WireBounds {
    factor: u32,
    min_pixels: u64,
    max_pixels: u64,
    max_enlargement: Option<f64>,
}

impl PageRequest {
    pub(super) fn new(index: u32, options: &OpenOptions, bounds: Option<&PixelBounds>) -> Self {
        Self {
            index,
            max_pixels: options.limits.max_pixels,
            dpi: options.dpi,
            bounds: bounds.map(|bounds| WireBounds {
                factor: bounds.factor,
                min_pixels: bounds.min_pixels,
                max_pixels: bounds.max_pixels,
                max_enlargement: bounds.max_enlargement,
            }),
        }
    }

    pub(super) fn limits(&self) -> DecodeLimits {
        DecodeLimits {
            max_pixels: self.max_pixels,
        }
    }

    pub(super) fn bounds(&self) -> Option<PixelBounds> {
        self.bounds.map(|bounds| PixelBounds {
            factor: bounds.factor,
            min_pixels: bounds.min_pixels,
            max_pixels: bounds.max_pixels,
            max_enlargement: bounds.max_enlargement,
        })
    }
}

/// What a worker answers.
pub(super) enum Reply {
    Opened(Opened),
    Page(Box<DocumentPage>),
    Failed {
        error: DocumentError,
        /// Source file and line, if a decoder panicked.
        place: Option<String>,
    },
}

#[derive(Serialize, Deserialize)]
enum ReplyHeader {
    Opened(Opened),
    /// The pixels follow.
    Page(PageHeader),
    Failed {
        error: DocumentError,
        place: Option<String>,
    },
}

#[derive(Serialize, Deserialize)]
struct PageHeader {
    number: u32,
    width: u32,
    height: u32,
    scaled_from: Option<(u32, u32)>,
    truncated: bool,
    missing_picture: bool,
    missing_font: bool,
    text: Option<TextLayer>,
}

impl PageHeader {
    fn of(page: &DocumentPage) -> Self {
        let has = |warning| page.warnings.contains(&warning);
        Self {
            number: page.number,
            width: page.page.width,
            height: page.page.height,
            scaled_from: page.page.scaled_from,
            truncated: has(PageWarning::Truncated),
            missing_picture: has(PageWarning::MissingPicture),
            missing_font: has(PageWarning::MissingFont),
            text: page.text.clone(),
        }
    }

    fn with(self, pixels: Vec<u8>) -> DocumentPage {
        let warnings = [
            (self.truncated, PageWarning::Truncated),
            (self.missing_picture, PageWarning::MissingPicture),
            (self.missing_font, PageWarning::MissingFont),
        ];
        DocumentPage {
            number: self.number,
            page: RgbPage {
                width: self.width,
                height: self.height,
                pixels,
                scaled_from: self.scaled_from,
            },
            warnings: warnings
                .into_iter()
                .filter_map(|(set, warning)| set.then_some(warning))
                .collect(),
            text: self.text,
        }
    }
}

pub(super) fn write_request(to: &mut impl Write, request: &Request) -> io::Result<()> {
    write_header(to, request)
}

/// The next request; `None` at the end of the input.
pub(super) fn read_request(from: &mut impl Read) -> io::Result<Option<Request>> {
    match read_header(from) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        request => request.map(Some),
    }
}

pub(super) fn write_reply(to: &mut impl Write, reply: &Reply) -> io::Result<()> {
    match reply {
        Reply::Opened(opened) => write_header(to, &ReplyHeader::Opened(opened.clone()))?,
        Reply::Page(page) => {
            write_header(to, &ReplyHeader::Page(PageHeader::of(page)))?;
            to.write_all(&page.page.pixels)?;
        }
        Reply::Failed { error, place } => {
            let (error, place) = (error.clone(), place.clone());
            write_header(to, &ReplyHeader::Failed { error, place })?;
        }
    }
    to.flush()
}

pub(super) fn read_reply(from: &mut impl Read) -> io::Result<Reply> {
    Ok(match read_header(from)? {
        ReplyHeader::Opened(opened) => Reply::Opened(opened),
        ReplyHeader::Failed { error, place } => Reply::Failed { error, place },
        ReplyHeader::Page(header) => {
            let length = (u64::from(header.width) * u64::from(header.height)).saturating_mul(3);
            if length > MAX_PAGE {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let mut pixels = vec![0; length as usize];
            from.read_exact(&mut pixels)?;
            Reply::Page(Box::new(header.with(pixels)))
        }
    })
}

fn write_header(to: &mut impl Write, header: &impl Serialize) -> io::Result<()> {
    let json = serde_json::to_vec(header)?;
    let length = u32::try_from(json.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(&json)?;
    to.flush()
}

fn read_header<T: for<'d> Deserialize<'d>>(from: &mut impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_HEADER {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut json = vec![0; length];
    from.read_exact(&mut json)?;
    Ok(serde_json::from_slice(&json)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::documents::Word;

    #[test]
    fn a_page_arrives_as_it_was_sent() {
        let page = DocumentPage {
            number: 3,
            page: RgbPage {
                width: 2,
                height: 1,
                pixels: vec![1, 2, 3, 4, 5, 6],
                scaled_from: Some((10, 20)),
            },
            warnings: vec![PageWarning::MissingPicture],
            text: Some(TextLayer {
                words: vec![Word {
                    text: "Hgb".to_owned(),
                    bounds: [0.1, 0.2, 0.3, 0.4],
                    hidden: true,
                }],
            }),
        };
        let mut pipe = Vec::new();
        write_reply(&mut pipe, &Reply::Page(Box::new(page.clone()))).unwrap();
        let Ok(Reply::Page(arrived)) = read_reply(&mut pipe.as_slice()) else {
            panic!("no page")
        };
        assert_eq!(*arrived, page);
        for cut in 0..pipe.len() {
            assert!(read_reply(&mut &pipe[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn lengths_are_bounded_before_memory_is_taken() {
        assert!(read_reply(&mut [0xff; 100].as_slice()).is_err());
        let header = br#"{"Page":{"number":1,"width":4294967295,"height":4294967295,"scaled_from":null,"truncated":false,"missing_picture":false,"missing_font":false,"text":null}}"#;
        let mut pipe = (header.len() as u32).to_le_bytes().to_vec();
        pipe.extend(header);
        let error = read_reply(&mut pipe.as_slice()).err().map(|error| error.kind());
        assert_eq!(error, Some(io::ErrorKind::InvalidData));
    }
}
