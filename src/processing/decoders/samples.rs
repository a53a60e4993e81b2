//! Rows of decoded samples → rows of R G B.

use super::Alpha;

/// Channels of a pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Channels {
    /// Luminance.
    Grey,
    /// Luminance and alpha.
    GreyAlpha,
    /// R G B.
    Rgb,
    /// R G B and alpha.
    Rgba,
}

impl Channels {
    /// Samples per pixel.
    pub(super) fn count(self) -> usize {
        match self {
            Self::Grey => 1,
            Self::GreyAlpha => 2,
            Self::Rgb => 3,
            Self::Rgba => 4,
        }
    }
}

/// Converts rows to R G B, and tracks whether any pixel is visible.
pub(super) struct ToRgb {
    channels: Channels,
    alpha: Alpha,
    /// Whether a pixel's alpha was above 0, or there is no alpha.
    pub(super) visible: bool,
}

impl ToRgb {
    /// For rows of `channels`.
    pub(super) fn new(channels: Channels, alpha: Alpha) -> Self {
        let opaque = matches!(channels, Channels::Grey | Channels::Rgb) || alpha == Alpha::Ignored;
        Self {
            channels,
            alpha,
            visible: opaque,
        }
    }

    /// Converts a row of 8-bit samples to `rgb`, three bytes per pixel.
    pub(super) fn row(&mut self, samples: &[u8], rgb: &mut [u8]) {
        let pixels = rgb.as_chunks_mut::<3>().0.iter_mut();
        match self.channels {
            Channels::Grey => pixels.zip(samples).for_each(|(pixel, grey)| *pixel = [*grey; 3]),
            Channels::Rgb => pixels
                .zip(samples.as_chunks().0)
                .for_each(|(pixel, colour)| *pixel = *colour),
            Channels::GreyAlpha => {
                for (pixel, [grey, alpha]) in pixels.zip(samples.as_chunks().0) {
                    *pixel = self.composited([*grey; 3], *alpha);
                }
            }
            Channels::Rgba => {
                for (pixel, [r, g, b, alpha]) in pixels.zip(samples.as_chunks().0) {
                    *pixel = self.composited([*r, *g, *b], *alpha);
                }
            }
        }
    }

    fn composited(&mut self, colour: [u8; 3], alpha: u8) -> [u8; 3] {
        self.visible |= alpha > 0;
        match self.alpha {
            Alpha::OnWhite => colour.map(|sample| on_white(sample, alpha)),
            Alpha::Ignored => colour,
        }
    }
}

/// One sample composited on white, rounded.
pub(super) fn on_white(sample: u8, alpha: u8) -> u8 {
    let (sample, alpha) = (u32::from(sample), u32::from(alpha));
    ((sample * alpha + 255 * (255 - alpha) + 127) / 255) as u8
}

/// Converts 16 bits to 8.
pub(super) fn narrowed(sample: u16) -> u8 {
    ((u32::from(sample) + 128) / 257) as u8
}
