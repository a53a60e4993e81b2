//! Documents that users send: any file with pages → its pages as pictures, with their text layer where they have one.
//!
//! [`open`] tells the kind by content, never by name. PNG, JPEG, WebP, TIFF, BMP and GIF are decoded by
//! [`processing`](crate::processing), whose memory is bounded. Decoders of PDF and DICOM are not: they run in a [`Decoder::worker`],
//! a process with limits of its own, so that a file that exhausts them costs one page.

mod ahead;
mod dicom;
mod kind;
mod page;
mod pdf;
mod selection;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

pub use self::ahead::PagesAhead;
pub use self::dicom::DicomFacts;
pub use self::kind::{DOCUMENT_KINDS, Kind, START_BYTES};
pub use self::page::{DocumentPage, TextLayer, Word};
pub use self::pdf::PdfLimits;
pub use self::selection::PageSelection;
use self::worker::Sent;
pub use self::worker::{Decoder, WORKER_ARGUMENT, run_worker};
use crate::error::{DocumentError, ImageError};
use crate::processing::{
    DecodeLimits, PixelBounds, decode_page, decode_page_at, decoder_memory, picture_pages,
};

/// A file's bytes, shared by whoever still decodes pages of it.
pub type FileBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Dots per inch at which a PDF page is rendered, unless the model's bounds ask for another size.
pub const DEFAULT_DPI: u32 = 200;
/// Lowest resolution that can be asked for.
pub const MIN_DPI: i64 = 36;
/// Highest resolution that can be asked for.
pub const MAX_DPI: i64 = 1200;

/// How a document is opened, and how its pages are decoded.
#[derive(Clone)]
pub struct OpenOptions {
    /// Maximum pixels of a picture as stored, also of one in a PDF.
    pub limits: DecodeLimits,
    /// Resolution of pages that are not stored as pixels.
    pub dpi: u32,
    /// Password of an encrypted PDF, as the user typed it.
    pub password: Option<String>,
    /// Where PDF and DICOM are decoded.
    pub decoder: Decoder,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            limits: DecodeLimits::default(),
            dpi: DEFAULT_DPI,
            password: None,
            decoder: Decoder::in_process(),
        }
    }
}

impl std::fmt::Debug for OpenOptions {
    /// Without the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OpenOptions({:?}, {} dpi)", self.limits, self.dpi)
    }
}

/// What opening a file tells.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Opened {
    pages: u32,
    dicom: Option<DicomFacts>,
    report: Option<String>,
}

/// A file whose pages can be decoded, in any order and on any thread. Cheap to clone.
#[derive(Clone)]
pub struct Document(Arc<Inner>);

struct Inner {
    kind: Kind,
    pages: u32,
    /// What a DICOM file says about itself.
    dicom: Option<DicomFacts>,
    /// Text of a DICOM report.
    report: Option<String>,
    bytes: FileBytes,
    options: OpenOptions,
    /// Tells documents apart in a worker, which holds one at a time.
    id: u64,
}

impl std::fmt::Debug for Document {
    /// Kind and number of pages only: the rest is the document.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Document({}, {} pages)", self.0.kind.name(), self.0.pages)
    }
}

/// Opens a file: finds out what it is and counts its pages, without decoding one.
///
/// # Errors
/// [`DocumentError`]: no supported file, damaged beyond use, encrypted with another password, without pages, or beyond the limits.
pub fn open(bytes: FileBytes, options: &OpenOptions) -> Result<Document, DocumentError> {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let content = (*bytes).as_ref();
    if content.is_empty() {
        return Err(ImageError::Empty.into());
    }
    let kind = Kind::of(content).ok_or(DocumentError::UnsupportedFormat)?;
    let id = NEXT.fetch_add(1, Ordering::Relaxed);
    let Opened { pages, dicom, report } = match kind {
        Kind::Picture(_) => Opened {
            pages: picture_pages(content),
            ..Opened::default()
        },
        Kind::Pdf | Kind::Dicom => options.decoder.open(&Sent {
            id,
            kind,
            bytes: &bytes,
            options,
        })?,
    };
    if pages == 0 {
        return Err(DocumentError::NoPages);
    }
    Ok(Document(Arc::new(Inner {
        kind,
        pages,
        dicom,
        report,
        bytes,
        options: options.clone(),
        id,
    })))
}

impl Document {
    /// What kind of file it is.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// Number of pages, at least 1: of a PDF's, of a TIFF's directories that are no thumbnails, of a DICOM file's frames.
    pub fn pages(&self) -> u32 {
        self.0.pages
    }

    /// What a DICOM file says about itself; `None` for other kinds.
    pub fn dicom(&self) -> Option<&DicomFacts> {
        self.0.dicom.as_ref()
    }

    /// The text of a DICOM structured report, which has no pixels and needs no reading.
    pub fn report(&self) -> Option<&str> {
        self.0.report.as_deref()
    }

    /// Decodes the page `number`, from 1. With `bounds` it has the size that the model reads it at: a PDF page is rendered at that size,
    /// a picture is scaled while it is decoded. Blocks until it is done, up to 20 s.
    ///
    /// # Errors
    /// [`DocumentError`]. Other pages can still be decoded.
    pub fn page(&self, number: u32, bounds: Option<&PixelBounds>) -> Result<DocumentPage, DocumentError> {
        let Inner {
            kind,
            pages,
            bytes,
            options,
            id,
            ..
        } = &*self.0;
        let index = number.checked_sub(1).filter(|index| index < pages);
        let index = index.ok_or(DocumentError::NoSuchPage {
            number,
            pages: *pages,
        })?;
        let decoded = match kind {
            // A GIF's later frames are named in a warning.
            Kind::Picture(_) if *pages == 1 => {
                decode_page((**bytes).as_ref(), &options.limits, bounds)?.into()
            }
            Kind::Picture(_) => decode_page_at((**bytes).as_ref(), index, &options.limits, bounds)?.into(),
            Kind::Pdf | Kind::Dicom => {
                let document = Sent {
                    id: *id,
                    kind: *kind,
                    bytes,
                    options,
                };
                options.decoder.page(&document, index, bounds)?
            }
        };
        Ok(DocumentPage { number, ..decoded })
    }

    /// Decodes these pages one after the other on a thread of its own, at most two ahead of their use.
    pub fn pages_ahead(&self, numbers: Vec<u32>, bounds: Option<PixelBounds>) -> PagesAhead {
        PagesAhead::start(self.clone(), numbers, bounds)
    }

    /// Maximum bytes that this process allocates to decode a page, besides the file.
    ///
    /// # Errors
    /// [`DocumentError::Image`] for a picture with damaged headers or beyond the limits.
    pub fn page_memory(&self, bounds: Option<&PixelBounds>) -> Result<u64, DocumentError> {
        let limits = &self.0.options.limits;
        match self.0.kind {
            Kind::Picture(_) => Ok(decoder_memory((*self.0.bytes).as_ref(), limits, bounds)?),
            Kind::Pdf | Kind::Dicom => {
                let most = bounds.map_or(limits.max_pixels, |bounds| bounds.max_pixels);
                Ok(most.saturating_mul(3) + page::MAX_TEXT_BYTES as u64)
            }
        }
    }
}
