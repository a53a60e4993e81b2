//! Embedded fonts, with glyphs as 8-bit coverage masks.

use std::sync::{LazyLock, OnceLock};

use skrifa::instance::{LocationRef, Size};
use skrifa::outline::{DrawSettings, Engine, HintingInstance, HintingOptions, OutlinePen, SmoothMode};
use skrifa::{FontRef, GlyphId, MetadataProvider};
use zeno::{Command, Mask, Vector};

const REGULAR: &[u8] = include_bytes!("../../assets/fonts/DejaVuSansMono.ttf");
const BOLD: &[u8] = include_bytes!("../../assets/fonts/DejaVuSansMono-Bold.ttf");

/// Body text of plain text pages: 12 px.
pub(super) static TEXT: LazyLock<Face> = LazyLock::new(|| Face::shipped(REGULAR, 12));
/// Body text of documents: 13 px.
pub(super) static BODY: LazyLock<Face> = LazyLock::new(|| Face::shipped(REGULAR, 13));
/// Titles of documents: bold, 16 px.
pub(super) static HEADING: LazyLock<Face> = LazyLock::new(|| Face::shipped(BOLD, 16));

/// A font at one size. Glyphs are rasterized on first use and cached.
pub(crate) struct Face {
    font: FontRef<'static>,
    size: Size,
    /// `None`: unhinted, as in PDF viewers.
    hinting: Option<HintingInstance>,
    /// Glyph ids of Latin-1, which covers nearly all text.
    latin: Vec<GlyphId>,
    /// Rasterized glyphs, by glyph id.
    glyphs: Vec<OnceLock<Glyph>>,
    /// From the top of a line to its baseline, pixels.
    pub(super) ascent: i32,
    /// Fallback for characters without a glyph in this font.
    substitute: Option<&'static Face>,
}

/// Coverage mask of a glyph.
#[derive(Debug, Default)]
pub(crate) struct Glyph {
    /// Columns from the pen position to the mask.
    pub(crate) left: i32,
    /// Rows from the baseline down to the mask; negative above it.
    pub(crate) top: i32,
    /// Width of the mask.
    pub(crate) width: usize,
    /// Advance width, 1/64 pixel.
    pub(crate) advance: i32,
    /// Coverage, 0 to 255, row by row.
    pub(crate) coverage: Vec<u8>,
}

impl Face {
    pub(crate) fn shipped(data: &'static [u8], pixels: u16) -> Self {
        Self::open(data, pixels).expect("the shipped fonts are read by the tests")
    }

    /// The same without hinting.
    pub(crate) fn unhinted(mut self) -> Self {
        self.hinting = None;
        self
    }

    /// The same with a fallback font.
    pub(crate) fn with_substitute(mut self, substitute: &'static Face) -> Self {
        self.substitute = Some(substitute);
        self
    }

    /// Width of a line, pixels.
    pub(crate) fn width(&self, line: &str) -> u32 {
        let advances = line.chars().map(|character| self.glyph(character).advance);
        u32::try_from((advances.sum::<i32>() + 32) >> 6).unwrap_or(0)
    }

    fn open(data: &'static [u8], pixels: u16) -> Option<Self> {
        let font = FontRef::new(data).ok()?;
        let size = Size::new(f32::from(pixels));
        let outlines = font.outline_glyphs();
        // Like FT_LOAD_DEFAULT.
        let options = HintingOptions {
            engine: Engine::Interpreter,
            target: SmoothMode::Normal.into(),
        };
        let hinting = HintingInstance::new(&outlines, size, LocationRef::default(), options).ok()?;
        let charmap = font.charmap();
        let latin = (0..=255u8)
            .map(|code| charmap.map(char::from(code)).unwrap_or_default())
            .collect();
        let metrics = font.metrics(size, LocationRef::default());
        Some(Self {
            size,
            hinting: Some(hinting),
            latin,
            glyphs: (0..metrics.glyph_count).map(|_| OnceLock::new()).collect(),
            ascent: metrics.ascent.ceil() as i32,
            substitute: None,
            font,
        })
    }

    /// The glyph of a character, or the font's .notdef box.
    pub(crate) fn glyph(&self, character: char) -> &Glyph {
        static NOTHING: Glyph = Glyph {
            left: 0,
            top: 0,
            width: 0,
            advance: 0,
            coverage: Vec::new(),
        };
        let id = match self.latin.get(character as usize) {
            Some(id) => *id,
            None => self.font.charmap().map(character).unwrap_or_default(),
        };
        if id == GlyphId::NOTDEF
            && let Some(substitute) = self.substitute
        {
            return substitute.glyph(character);
        }
        match self.glyphs.get(id.to_u32() as usize) {
            Some(cell) => cell.get_or_init(|| self.draw(id).unwrap_or_default()),
            None => &NOTHING,
        }
    }

    fn draw(&self, id: GlyphId) -> Option<Glyph> {
        let outline = self.font.outline_glyphs().get(id)?;
        let mut path = Path::default();
        let hinted = self.hinting.as_ref().is_some_and(|hinting| {
            let settings = DrawSettings::hinted(hinting, false);
            outline.draw(settings, &mut path).is_ok()
        });
        if !hinted {
            path = Path::default();
            let unhinted = DrawSettings::unhinted(self.size, LocationRef::default());
            outline.draw(unhinted, &mut path).ok()?;
        }
        let (coverage, place) = Mask::new(path.0.as_slice()).render();
        let metrics = self.font.glyph_metrics(self.size, LocationRef::default());
        Some(Glyph {
            advance: (metrics.advance_width(id)? * 64.0).round() as i32,
            left: place.left,
            top: place.top,
            width: place.width as usize,
            coverage,
        })
    }
}

/// An outline with the y axis pointing down.
#[derive(Default)]
struct Path(Vec<Command>);

fn point(x: f32, y: f32) -> Vector {
    Vector::new(x, -y)
}

impl OutlinePen for Path {
    fn move_to(&mut self, x: f32, y: f32) {
        self.0.push(Command::MoveTo(point(x, y)));
    }

    fn line_to(&mut self, x: f32, y: f32) {
        self.0.push(Command::LineTo(point(x, y)));
    }

    fn quad_to(&mut self, control_x: f32, control_y: f32, x: f32, y: f32) {
        self.0
            .push(Command::QuadTo(point(control_x, control_y), point(x, y)));
    }

    fn curve_to(&mut self, first_x: f32, first_y: f32, second_x: f32, second_y: f32, x: f32, y: f32) {
        let controls = (point(first_x, first_y), point(second_x, second_y));
        self.0.push(Command::CurveTo(controls.0, controls.1, point(x, y)));
    }

    fn close(&mut self) {
        self.0.push(Command::Close);
    }
}
