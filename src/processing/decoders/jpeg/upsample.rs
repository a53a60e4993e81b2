//! Upsampling to the size of the image (libjpeg-turbo: jdsample.c).
//!
//! Factors of two are interpolated with weights 3/4 and 1/4, other factors are replicated.

use super::frame::{Component, Frame};

/// Upsampling method of a component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    /// The component has the size of the image.
    Full,
    /// Interpolated in rows.
    H2V1,
    /// Interpolated in columns.
    H1V2,
    /// Interpolated in both.
    H2V2,
    /// Samples and rows are replicated so many times.
    Replicate(usize),
}

impl Method {
    /// Chooses the method as libjpeg does.
    pub(super) fn of(component: &Component, frame: &Frame) -> Self {
        match (frame.max_h / component.h, frame.max_v / component.v) {
            (1, 1) => Self::Full,
            (1, 2) => Self::H1V2,
            (2, 1) if component.width > 2 => Self::H2V1,
            (2, 2) if component.width > 2 => Self::H2V2,
            (h, _) => Self::Replicate(h),
        }
    }

    /// Whether the rows above and below are needed.
    pub(super) fn needs_context(self) -> bool {
        matches!(self, Self::H1V2 | Self::H2V2)
    }

    /// Computes a row of the image. `far` is the row on the other side of `near`, for an `upper` row the one above.
    /// Inputs have the component's width, `out` at least the picture's. `sums`: scratch buffer of a row.
    pub(super) fn row(self, near: &[u8], far: &[u8], upper: bool, sums: &mut [u16], out: &mut [u8]) {
        match self {
            Self::Full => out[..near.len()].copy_from_slice(near),
            Self::H2V1 => double(near, out),
            Self::H1V2 => {
                let bias = if upper { 1 } else { 2 };
                for ((out, &near), &far) in out.iter_mut().zip(near).zip(far) {
                    *out = ((u16::from(near) * 3 + u16::from(far) + bias) >> 2) as u8;
                }
            }
            Self::H2V2 => {
                for ((sum, &near), &far) in sums.iter_mut().zip(near).zip(far) {
                    *sum = u16::from(near) * 3 + u16::from(far);
                }
                double_sums(&sums[..near.len()], out);
            }
            Self::Replicate(h) => {
                for (out, &sample) in out.chunks_mut(h).zip(near) {
                    out.fill(sample);
                }
            }
        }
    }
}

/// Twice as many samples, at 1/4 and 3/4 between their centres. Halves are rounded down and up in turn.
fn double(samples: &[u8], out: &mut [u8]) {
    let last = samples.len() - 1;
    let [first, inner @ ..] = &mut out[..2 * samples.len()] else {
        return;
    };
    *first = samples[0];
    for (pair, two) in inner.as_chunks_mut::<2>().0.iter_mut().zip(samples.windows(2)) {
        let (left, right) = (u16::from(two[0]), u16::from(two[1]));
        *pair = [
            ((left * 3 + right + 2) >> 2) as u8,
            ((right * 3 + left + 1) >> 2) as u8,
        ];
    }
    inner[2 * last] = samples[last];
}

/// As `double`, from sums of two rows with weights 3 and 1.
fn double_sums(sums: &[u16], out: &mut [u8]) {
    let last = sums.len() - 1;
    let [first, inner @ ..] = &mut out[..2 * sums.len()] else {
        return;
    };
    *first = ((sums[0] * 4 + 8) >> 4) as u8;
    for (pair, two) in inner.as_chunks_mut::<2>().0.iter_mut().zip(sums.windows(2)) {
        let (left, right) = (two[0], two[1]);
        let later = left.wrapping_mul(3).wrapping_add(right).wrapping_add(7) >> 4;
        let earlier = right.wrapping_mul(3).wrapping_add(left).wrapping_add(8) >> 4;
        *pair = [later as u8, earlier as u8];
    }
    inner[2 * last] = ((sums[last] * 4 + 7) >> 4) as u8;
}
