//! Assembles the rows of the image from the samples of its components.

use super::{
    colour::Conversion,
    frame::{BLOCK, Frame},
    idct::dequantize_and_idct,
    markers::QuantTable,
    scan::Block,
    upsample::Method,
};
use crate::error::ImageError;

/// Receives finished rows.
pub(super) type RowFn<'r> = &'r mut dyn FnMut(&[u8]) -> Result<(), ImageError>;

/// Samples of a component for one row of MCUs, after the last rows of the previous one if upsampling needs them.
struct Plane {
    samples: Vec<u8>,
    stride: usize,
    /// Number of rows of the previous row of MCUs.
    kept: usize,
    method: Method,
    /// An upsampled row.
    line: Vec<u8>,
    sums: Vec<u16>,
}

/// Collects blocks by rows of MCUs and emits the rows of the image from the top.
pub(super) struct Picture<'f> {
    frame: &'f Frame,
    conversion: Conversion,
    planes: Vec<Plane>,
    /// Rows that need the next row of MCUs.
    held: usize,
    next_row: usize,
    mcu_row: usize,
    row: Vec<u8>,
}

impl<'f> Picture<'f> {
    /// Room for one row of MCUs.
    pub(super) fn new(frame: &'f Frame, conversion: Conversion) -> Self {
        let methods: Vec<Method> = frame
            .components
            .iter()
            .map(|component| Method::of(component, frame))
            .collect();
        let context = methods.iter().any(|method| method.needs_context());
        let planes = frame.components.iter().zip(methods).map(|(component, method)| {
            let stride = component.padded_blocks * BLOCK;
            let kept = if context { 2 * component.v } else { 0 };
            let expanded = if method == Method::Full {
                0
            } else {
                component.width * frame.max_h / component.h
            };
            Plane {
                samples: vec![0; stride * (kept + component.v * BLOCK)],
                stride,
                kept,
                method,
                line: vec![0; expanded],
                sums: vec![
                    0;
                    if method == Method::H2V2 {
                        component.width
                    } else {
                        0
                    }
                ],
            }
        });
        Self {
            planes: planes.collect(),
            held: if context { frame.max_v } else { 0 },
            next_row: 0,
            mcu_row: 0,
            row: vec![0; frame.width * conversion.channels(frame.components.len())],
            frame,
            conversion,
        }
    }

    /// Fills the row of MCUs with grey, the value of missing blocks.
    pub(super) fn clear(&mut self) {
        for plane in &mut self.planes {
            plane.samples[plane.stride * plane.kept..].fill(128);
        }
    }

    /// Stores a block at its row, from the top of the image, and column.
    #[inline]
    pub(super) fn put(
        &mut self,
        (component, row, column): (usize, usize, usize),
        block: &Block,
        last: usize,
        quant: &QuantTable,
    ) {
        let plane = &mut self.planes[component];
        let row = row - self.mcu_row * self.frame.components[component].v;
        let start = (plane.kept + row * BLOCK) * plane.stride + column * BLOCK;
        dequantize_and_idct(block, quant, last, &mut plane.samples[start..], plane.stride);
    }

    /// Emits the rows that are complete with this row of MCUs, and moves to the next.
    pub(super) fn finish_mcu_row(&mut self, row: RowFn<'_>) -> Result<(), ImageError> {
        let frame = self.frame;
        self.mcu_row += 1;
        let mut end = frame.height;
        if self.mcu_row < frame.mcu_rows {
            end = end.min(self.mcu_row * frame.max_v * BLOCK - self.held);
        }
        while self.next_row < end {
            self.make_row();
            row(&self.row)?;
            self.next_row += 1;
        }
        for plane in &mut self.planes {
            let kept = plane.kept * plane.stride;
            let length = plane.samples.len();
            plane.samples.copy_within(length - kept.., 0);
        }
        Ok(())
    }

    fn make_row(&mut self) {
        let (frame, y) = (self.frame, self.next_row);
        let mut lines: [&[u8]; 4] = [&[]; 4];
        for ((line, plane), component) in lines.iter_mut().zip(&mut self.planes).zip(&frame.components) {
            let near = y * component.v / frame.max_v;
            let first = (self.mcu_row - 1) * component.v * BLOCK;
            let stride = plane.stride;
            let samples = &plane.samples;
            let kept = plane.kept;
            let stored = |row: usize| {
                let start = (row.min(component.height - 1) + kept - first) * stride;
                &samples[start..start + component.width]
            };
            if plane.method == Method::Full {
                *line = &stored(near)[..frame.width];
                continue;
            }
            // The upper of the two upsampled rows uses the row above.
            let upper = y % 2 == 0;
            let far = if !plane.method.needs_context() {
                near
            } else if upper {
                near.saturating_sub(1)
            } else {
                near + 1
            };
            plane
                .method
                .row(stored(near), stored(far), upper, &mut plane.sums, &mut plane.line);
            *line = &plane.line[..frame.width];
        }
        self.conversion.row(lines, &mut self.row);
    }
}
