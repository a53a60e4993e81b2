//! Renders text as page images with the embedded fonts; no system font is needed.
//!
//! Rendering matches Pillow with FreeType: outlines hinted by the font's own programs, 8-bit grey, fractional advances, glyphs at
//! whole pixels. A model trained on Pillow's pages reads these equally well.

mod canvas;
mod pages;
mod png;
mod typeface;
mod wrap;

pub(crate) use self::canvas::Canvas;
pub use self::pages::{
    EVALUATION_PAGE, GreyPage, MAX_TEXT_LINES, PageSize, TEST_PAGE, TEXT_COLUMNS, document_page, text_lines,
    text_page,
};
pub use self::png::{encode_grey, encode_rgb};
pub(crate) use self::typeface::Face;
pub(crate) use self::wrap::collapse_whitespace;
pub use self::wrap::wrap;

/// Version of the renderer: incremented when pixels change, so that cached pages are rendered again.
pub const RENDERING_VERSION: u32 = 1;
