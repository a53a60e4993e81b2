//! A page of a document.

use serde::{Deserialize, Serialize};

use crate::processing::{DecodedPage, PageWarning, RgbPage};

/// Maximum bytes of a page's text layer; what is beyond is left out.
pub(super) const MAX_TEXT_BYTES: usize = 8 << 20;

/// A page: its picture, and what the file says about it.
#[derive(Debug, Clone, PartialEq)]
pub struct DocumentPage {
    /// Number in its document, from 1.
    pub number: u32,
    /// The picture. Its [`RgbPage::original_size`] is the size as stored; of a PDF page the size at the resolution asked for.
    pub page: RgbPage,
    /// Warnings about the file.
    pub warnings: Vec<PageWarning>,
    /// The text that the file holds for this page; `None` for pictures and for pages without text.
    pub text: Option<TextLayer>,
}

impl From<DecodedPage> for DocumentPage {
    /// The first page of a document, without a text layer.
    fn from(DecodedPage { page, warnings }: DecodedPage) -> Self {
        Self {
            number: 1,
            page,
            warnings,
            text: None,
        }
    }
}

/// Text that a file holds beside, or instead of, its pixels.
#[derive(Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct TextLayer {
    /// Words in the order of the file, which need not be that of reading.
    pub words: Vec<Word>,
}

impl std::fmt::Debug for TextLayer {
    /// Without the text: it is the document.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TextLayer({} words)", self.words.len())
    }
}

/// A word of a [`TextLayer`].
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Word {
    /// Its characters; no white space.
    pub text: String,
    /// Left, top, right and bottom in pixels of the page's original size, y downwards.
    pub bounds: [f32; 4],
    /// Drawn invisibly, as programs that recognise text add it to scans: no evidence of what is printed.
    pub hidden: bool,
}

impl std::fmt::Debug for Word {
    /// Without the text: it is the document.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Word({:?})", self.bounds)
    }
}
