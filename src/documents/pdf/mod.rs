//! PDF pages, by hayro.
//!
//! Each page is interpreted twice. A dry run draws nothing: it collects the text, and refuses pictures and pages that would take too
//! much before anything is decoded. Then the page is rendered once, at the size at which the model reads it.

mod announced;
mod dry_run;
mod text;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hayro::hayro_interpret::{InterpreterSettings, InterpreterWarning};
use hayro::hayro_syntax::page::Page;
use hayro::hayro_syntax::{DecryptionError, LoadPdfError, Pdf};
use hayro::kurbo::Affine;
use hayro::vello_cpu::color::palette::css::WHITE;
use hayro::vello_cpu::{
    Pixmap, RasterizerSettings, RenderContext, RenderSettings as Threads, Resources, TargetInit,
};
use hayro::{RenderCache, RenderSettings, render_into};

use super::{DocumentPage, FileBytes};
use crate::console::panics::catch_silently;
use crate::error::{DocumentError, ImageError};
use crate::processing::{DecodeLimits, PageWarning, PixelBounds, RgbPage};

/// Limits of one page, checked before anything on it is decoded.
#[derive(Debug, Clone, Copy)]
pub struct PdfLimits {
    /// Maximum pictures.
    pub pictures: usize,
    /// Maximum drawing operations, glyphs counted one by one.
    pub operations: usize,
}

impl Default for PdfLimits {
    fn default() -> Self {
        Self {
            pictures: 200,
            operations: 1_000_000,
        }
    }
}

/// What a page is rendered with.
pub(super) struct RenderOptions<'a> {
    /// Of each picture on it.
    pub limits: DecodeLimits,
    pub dpi: u32,
    pub bounds: Option<&'a PixelBounds>,
}

/// An opened PDF.
pub(super) struct PdfFile(Pdf);

/// Bytes as hayro takes them.
struct Shared(FileBytes);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

impl PdfFile {
    /// Reads the cross-reference table, or searches for objects where it is broken, and the tree of pages.
    pub(super) fn open(bytes: FileBytes, password: Option<&str>) -> Result<Self, DocumentError> {
        let given = password.unwrap_or_default();
        let pdf = catch_silently(|| Pdf::new_with_password(Arc::new(Shared(bytes)), given));
        match pdf.unwrap_or(Err(LoadPdfError::Invalid)) {
            Ok(pdf) => Ok(Self(pdf)),
            Err(LoadPdfError::Invalid) => Err(DocumentError::Damaged(Cow::Borrowed("PDF"))),
            Err(LoadPdfError::Decryption(DecryptionError::PasswordProtected)) => Err(match given {
                "" => DocumentError::PasswordMissing,
                _ => DocumentError::PasswordWrong,
            }),
            Err(LoadPdfError::Decryption(_)) => Err(DocumentError::UnsupportedEncryption),
        }
    }

    /// Number of pages.
    pub(super) fn pages(&self) -> u32 {
        u32::try_from(self.0.pages().len()).unwrap_or(u32::MAX)
    }

    /// Renders the page with this index.
    pub(super) fn page(
        &self,
        index: u32,
        options: &RenderOptions<'_>,
    ) -> Result<DocumentPage, DocumentError> {
        let number = index + 1;
        let pages = self.0.pages();
        let page = pages.get(index as usize).ok_or(DocumentError::NoSuchPage {
            number,
            pages: self.pages(),
        })?;
        let sizes = Sizes::new(page, options)?;
        let (settings, warned) = settings();
        let text = dry_run::inspect(page, &settings, sizes.stored, &options.limits)?;
        let rendered = catch_silently(|| render(page, &settings, sizes.rendered));
        let pixels = rendered.map_err(|_| DocumentError::DecoderFailed)?;
        let (width, height) = sizes.rendered;
        let (stored_width, stored_height) = sizes.stored;
        Ok(DocumentPage {
            number,
            page: RgbPage {
                width: width.into(),
                height: height.into(),
                pixels,
                scaled_from: Some((stored_height, stored_width)),
            },
            warnings: warned.warnings(),
            text,
        })
    }
}

/// Width and height of a page in pixels.
struct Sizes {
    /// At the resolution asked for.
    stored: (u32, u32),
    rendered: (u16, u16),
}

impl Sizes {
    fn new(page: &Page<'_>, options: &RenderOptions<'_>) -> Result<Self, DocumentError> {
        let (width, height) = page.render_dimensions();
        let unit = page
            .raw()
            .get::<f32>("UserUnit")
            .filter(|unit| unit.is_finite() && *unit > 0.0);
        let scale = options.dpi as f32 / 72.0 * unit.unwrap_or(1.0);
        // Saturates; NaN becomes 0.
        let pixels = |points: f32| ((points * scale).round() as u32).max(1);
        let stored = (pixels(width), pixels(height));
        let (width, height) = match options.bounds {
            Some(bounds) => {
                let (height, width) = bounds.scaled(stored.1, stored.0)?;
                (width, height)
            }
            None => within(stored, options.limits.max_pixels),
        };
        let too_many = |_| ImageError::TooManyPixels {
            width,
            height,
            limit: options.limits.max_pixels,
        };
        let rendered = (
            u16::try_from(width).map_err(too_many)?,
            u16::try_from(height).map_err(too_many)?,
        );
        Ok(Self { stored, rendered })
    }
}

/// The size, or the largest one of the same shape with at most `most` pixels.
fn within((width, height): (u32, u32), most: u64) -> (u32, u32) {
    let area = f64::from(width) * f64::from(height);
    if area <= most as f64 {
        return (width, height);
    }
    let scale = (most as f64 / area).sqrt();
    let side = |pixels: u32| ((f64::from(pixels) * scale) as u32).max(1);
    (side(width), side(height))
}

/// Warnings of the interpreter.
#[derive(Default)]
struct Warned {
    picture: AtomicBool,
    font: AtomicBool,
}

impl Warned {
    fn warnings(&self) -> Vec<PageWarning> {
        let picture = self
            .picture
            .load(Ordering::Relaxed)
            .then_some(PageWarning::MissingPicture);
        let font = self
            .font
            .load(Ordering::Relaxed)
            .then_some(PageWarning::MissingFont);
        picture.into_iter().chain(font).collect()
    }
}

fn settings() -> (InterpreterSettings, Arc<Warned>) {
    let warned = Arc::new(Warned::default());
    let settings = InterpreterSettings {
        warning_sink: {
            let warned = Arc::clone(&warned);
            Arc::new(move |warning| match warning {
                InterpreterWarning::ImageDecodeFailure => warned.picture.store(true, Ordering::Relaxed),
                InterpreterWarning::UnsupportedFont => warned.font.store(true, Ordering::Relaxed),
                _ => {}
            })
        },
        ..InterpreterSettings::default()
    };
    (settings, warned)
}

/// From a page's points to pixels, y downwards.
fn transform(page: &Page<'_>, width: f64, height: f64) -> Affine {
    let (points_x, points_y) = page.render_dimensions();
    let scale = Affine::scale_non_uniform(width / f64::from(points_x), height / f64::from(points_y));
    scale * Affine::new(page.initial_transform(true).as_coeffs())
}

/// RGB of a page on white, `height * width * 3` bytes.
fn render(page: &Page<'_>, settings: &InterpreterSettings, (width, height): (u16, u16)) -> Vec<u8> {
    let threads = Threads {
        num_threads: 0,
        ..Threads::default()
    };
    let mut context = RenderContext::new_with(width, height, threads);
    // One cache for each page: it is never emptied, and documents can have thousands.
    let cache = RenderCache::new();
    let transform = transform(page, width.into(), height.into());
    render_into(
        page,
        &cache,
        settings,
        &RenderSettings::default(),
        &mut context,
        transform,
    );
    context.flush();
    let mut pixmap = Pixmap::new(width, height);
    let white = RasterizerSettings {
        target_init: TargetInit::Clear(WHITE),
        ..RasterizerSettings::default()
    };
    context.render_with(&mut pixmap, &mut Resources::default(), white);
    // Opaque, as its background is: premultiplied or not is the same.
    let pixels = pixmap.data().iter();
    pixels.flat_map(|pixel| [pixel.r, pixel.g, pixel.b]).collect()
}
