//! Interprets a page without drawing: limits, and the text layer.

use std::collections::HashSet;
use std::panic::resume_unwind;

use hayro::hayro_interpret::font::{Glyph, GlyphRun};
use hayro::hayro_interpret::hayro_syntax::page::Page;
use hayro::hayro_interpret::pattern::Pattern;
use hayro::hayro_interpret::{
    BlendMode, CacheKey, ClipPath, Context, Device, DrawMode, DrawProps, Image, ImageDrawProps,
    InterpreterCache, InterpreterSettings, Paint, SoftMask, interpret_page,
};
use hayro::kurbo::{Affine, BezPath, Rect};

use super::text::TextCollector;
use super::{PdfLimits, announced, transform};
use crate::console::panics::catch_silently;
use crate::documents::TextLayer;
use crate::error::DocumentError;
use crate::processing::DecodeLimits;

/// The text of a page whose size is `stored`, in its pixels.
///
/// # Errors
/// For a page beyond [`PdfLimits`], or with a picture beyond `limits`.
pub(super) fn inspect(
    page: &Page<'_>,
    settings: &InterpreterSettings,
    (width, height): (u32, u32),
    limits: &DecodeLimits,
) -> Result<Option<TextLayer>, DocumentError> {
    let target = Rect::new(0.0, 0.0, width.into(), height.into());
    let mut device = DryRun {
        limits: PdfLimits::default(),
        picture_limits: *limits,
        operations: 0,
        pictures: 0,
        seen: HashSet::new(),
        within: 0,
        text: TextCollector::new(target),
        refused: None,
    };
    let interpreted = catch_silently(|| {
        let cache = InterpreterCache::new();
        let transform = transform(page, width.into(), height.into());
        let mut context = Context::new(transform, target, &cache, page.xref(), settings.clone());
        interpret_page(page, &mut context, &mut device);
    });
    match (device.refused, interpreted) {
        (Some(error), _) => Err(error),
        (None, Err(_)) => Err(DocumentError::DecoderFailed),
        (None, Ok(())) => Ok(device.text.finish()),
    }
}

struct DryRun {
    limits: PdfLimits,
    picture_limits: DecodeLimits,
    operations: usize,
    pictures: usize,
    /// Masks, patterns and glyph programs that were interpreted.
    seen: HashSet<u128>,
    /// Depth of masks, patterns and glyph programs, whose text is not the page's.
    within: usize,
    text: TextCollector,
    refused: Option<DocumentError>,
}

impl DryRun {
    /// Ends the interpretation, which has no other way out. This kind of panic is not reported.
    fn refuse(&mut self, error: DocumentError) -> ! {
        self.refused = Some(error);
        resume_unwind(Box::new(()))
    }

    fn count(&mut self, operations: usize) {
        self.operations += operations;
        if self.operations > self.limits.operations {
            let limit = self.limits.operations;
            self.refuse(DocumentError::TooManyOperations { limit });
        }
    }

    fn once(&mut self, key: u128, interpret: impl FnOnce(&mut Self)) {
        if self.seen.insert(key) {
            self.within += 1;
            interpret(self);
            self.within -= 1;
        }
    }

    fn mask(&mut self, mask: Option<&SoftMask<'_>>) {
        if let Some(mask) = mask {
            self.once(mask.cache_key(), |device| mask.interpret(device));
        }
    }

    fn props(&mut self, props: &DrawProps<'_>, is_stroke: bool) {
        self.mask(props.soft_mask.as_ref());
        if let Paint::Pattern(pattern) = &props.paint
            && let Pattern::Tiling(tile) = &**pattern
        {
            self.once(pattern.cache_key(), |device| {
                tile.interpret(device, Affine::IDENTITY, is_stroke);
            });
        }
    }
}

impl<'a> Device<'a> for DryRun {
    fn draw_path(&mut self, _: &BezPath, props: DrawProps<'a>, mode: &DrawMode) {
        self.count(1);
        self.props(&props, matches!(mode, DrawMode::Stroke(_)));
    }

    fn push_clip_path(&mut self, _: &ClipPath) {
        self.count(1);
    }

    fn push_clip_rect(&mut self, _: &Rect) {
        self.count(1);
    }

    fn push_transparency_group(&mut self, _: f32, mask: Option<SoftMask<'a>>, _: BlendMode) {
        self.count(1);
        self.mask(mask.as_ref());
    }

    fn draw_glyph_run(&mut self, run: &GlyphRun<'_, 'a>, props: DrawProps<'a>, mode: &DrawMode) {
        self.count(run.glyphs().len());
        self.props(&props, matches!(mode, DrawMode::Stroke(_)));
        let hidden = matches!(mode, DrawMode::Invisible);
        for glyph in run.glyphs() {
            if let Glyph::Type3(program) = &**glyph {
                self.once(program.cache_key(), |device| {
                    program.interpret(device, props.transform, glyph.transform(), &props.paint);
                });
            }
            if self.within == 0 {
                let advance = match &**glyph {
                    Glyph::Outline(outline) => outline.advance_width(),
                    Glyph::Type3(program) => program.advance_width(),
                };
                let place = props.transform * glyph.transform();
                self.text.glyph(glyph.as_unicode(), place, advance, hidden);
            }
        }
    }

    fn draw_image(&mut self, image: Image<'a, '_>, props: ImageDrawProps<'a>) {
        self.count(1);
        self.pictures += 1;
        if self.pictures > self.limits.pictures {
            let limit = self.limits.pictures;
            self.refuse(DocumentError::TooManyPictures { limit });
        }
        self.mask(props.soft_mask.as_ref());
        let checked = match &image {
            Image::Stencil(stencil) => announced::check(stencil.stream(), &self.picture_limits),
            Image::Raster(raster) => announced::check(raster.stream(), &self.picture_limits),
        };
        if let Err(error) = checked {
            self.refuse(error.into());
        }
    }

    fn pop_clip(&mut self) {}

    fn pop_transparency_group(&mut self) {}

    fn draw_rect(&mut self, _: &Rect, props: DrawProps<'a>, mode: &DrawMode) {
        self.count(1);
        self.props(&props, matches!(mode, DrawMode::Stroke(_)));
    }
}
