//! Text → page images, in the typeface that comes with the program: no system font is needed.
//!
//! Pages are drawn as Pillow draws them with FreeType: outlines hinted by the font's own programs in 8-bit grey, fractional
//! advances, each glyph set on whole pixels. What a model learned to read on Pillow's pages it reads on these.

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

/// Changes whenever a page's pixels would: what was drawn before is then drawn anew.
pub const RENDERING_VERSION: u32 = 1;
