//! Collation: samples and the patches of their pages become one packed batch.

use tch::Tensor;

use super::samples::{Sample, Samples};
use crate::Result;
use crate::qwen2_5_vl::{Config, Packed, Sequence};

/// The inputs and labels of one forward pass.
pub(super) struct Batch {
    /// Token ids of all samples, without padding.
    pub(super) packed: Packed,
    /// Patches of all pages, f32 on the device.
    pub(super) pixels: Tensor,
    /// Rows of the packed batch that predict a label.
    pub(super) rows: Vec<i64>,
    /// The token that each of them predicts.
    pub(super) labels: Vec<i64>,
}

impl Batch {
    /// Packs the samples numbered `batch`; `pixels` are the patches of their pages, each page once.
    pub(super) fn collate(
        config: &Config,
        samples: &Samples,
        batch: &[usize],
        pixels: Tensor,
    ) -> Result<Self> {
        let (mut grids, mut pages) = (Vec::new(), Vec::new());
        for group in samples.groups(batch) {
            pages.extend(std::iter::repeat_n(grids.len(), group.len()));
            grids.push(samples.samples[group[0]].grid);
        }
        let samples: Vec<&Sample> = batch.iter().map(|&i| &samples.samples[i]).collect();
        let sequences: Vec<Sequence<'_>> = samples
            .iter()
            .zip(&pages)
            .map(|(sample, page)| Sequence {
                ids: &sample.ids,
                pages: std::slice::from_ref(page),
            })
            .collect();
        let packed = Packed::new(config, &grids, &sequences)?;
        let (mut rows, mut labels) = (Vec::new(), Vec::new());
        for (i, sample) in samples.iter().enumerate() {
            rows.extend((sample.answer - 1..sample.ids.len() - 1).map(|token| packed.row(i, token)));
            labels.extend(&sample.ids[sample.answer..]);
        }
        Ok(Self {
            packed,
            pixels,
            rows,
            labels,
        })
    }
}
