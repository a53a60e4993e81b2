//! How many patches and tokens pages have: products of their grids' sides, on the device that computes the model.
//!
//! The products go through [`blackwell_compat`](crate::blackwell_compat), since integer products are what some GPUs' software
//! cannot do.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tch::{Device, Kind, Tensor};

use crate::blackwell_compat::Reductions;
use crate::processing::Grid;
use crate::torch::upload;
use crate::{Error, Result};

/// Kinds of pages that are kept in mind.
const MOST_KEPT: usize = 1024;

/// A page in image tokens, each of which stands for `merge` x `merge` patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Frames; 1 for a still image.
    pub frames: usize,
    /// Rows of tokens.
    pub rows: usize,
    /// Tokens of a row.
    pub columns: usize,
    /// Tokens of a frame.
    pub frame_tokens: usize,
    /// Tokens of the page.
    pub tokens: usize,
    /// Patches of a frame.
    pub frame_patches: usize,
}

/// Multiplies grids up on one device, each kind of page once.
pub struct Extents {
    device: Device,
    reductions: Reductions,
    merge: usize,
    kept: Mutex<HashMap<[usize; 3], Extent>>,
}

impl Extents {
    /// For pages of which `merge` x `merge` patches make a token.
    pub fn new(device: Device, reductions: Reductions, merge: usize) -> Self {
        Self {
            device,
            reductions,
            merge: merge.max(1),
            kept: Mutex::default(),
        }
    }

    /// How products are made.
    pub fn reductions(&self) -> Reductions {
        self.reductions
    }

    /// The extents of `grids`, in their order.
    pub fn of(&self, grids: &[Grid]) -> Result<Vec<Extent>> {
        let key = |grid: &Grid| [grid.t, grid.h, grid.w];
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut new: Vec<Grid> = grids
            .iter()
            .filter(|grid| !kept.contains_key(&key(grid)))
            .copied()
            .collect();
        if !new.is_empty() {
            if kept.len() >= MOST_KEPT {
                kept.clear();
                new = grids.to_vec();
            }
            for (grid, extent) in new.iter().zip(self.multiply(&new)?) {
                kept.insert(key(grid), extent);
            }
        }
        let found = grids.iter().map(|grid| kept.get(&key(grid)).copied());
        let all: Option<Vec<Extent>> = found.collect();
        all.ok_or_else(|| Error::Numeric("a page's size was lost while it was counted".to_owned()))
    }

    /// The running products of columns, rows and frames, and the patches of a frame.
    fn multiply(&self, grids: &[Grid]) -> Result<Vec<Extent>> {
        let sides: Vec<i64> = grids
            .iter()
            .flat_map(|grid| [grid.w / self.merge, grid.h / self.merge, grid.t])
            .map(|side| side as i64)
            .collect();
        let patches: Vec<i64> = grids
            .iter()
            .flat_map(|grid| [grid.h as i64, grid.w as i64])
            .collect();
        let rows = grids.len() as i64;
        let sides = upload(&sides, self.device)?.f_view([rows, 3])?;
        let patches = upload(&patches, self.device)?.f_view([rows, 2])?;
        let running = numbers(&self.reductions.cumprod(&sides, 1)?)?;
        let patches = numbers(&self.reductions.prod(&patches, Some(1), false)?)?;
        let extents = grids.iter().zip(running.chunks_exact(3)).zip(patches);
        Ok(extents
            .map(|((grid, running), frame_patches)| Extent {
                frames: grid.t,
                rows: grid.h / self.merge,
                columns: running[0] as usize,
                frame_tokens: running[1] as usize,
                tokens: running[2] as usize,
                frame_patches: frame_patches as usize,
            })
            .collect())
    }
}

fn numbers(tensor: &Tensor) -> Result<Vec<i64>> {
    let tensor = tensor.f_to_device(Device::Cpu)?.f_to_kind(Kind::Int64)?;
    Ok(Vec::try_from(tensor.f_contiguous()?.f_view([-1])?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_counted_alike_on_both_ways() {
        let grids = [(1, 34, 46), (1, 2, 2), (3, 16, 20), (1, 34, 46)].map(|(t, h, w)| Grid { t, h, w });
        for capability in [None, Some((9, 0)), Some((12, 1))] {
            let extents = Extents::new(Device::Cpu, Reductions::with_capability(capability), 2);
            for _ in 0..2 {
                let found = extents.of(&grids).unwrap();
                for (grid, extent) in grids.iter().zip(&found) {
                    assert_eq!(extent.tokens, grid.tokens(2));
                    assert_eq!(extent.frame_patches * grid.t, grid.patches());
                    assert_eq!(
                        (extent.frames, extent.rows, extent.columns),
                        (grid.t, grid.h / 2, grid.w / 2)
                    );
                    assert_eq!(extent.frame_tokens, grid.h * grid.w / 4);
                }
            }
        }
    }

    #[test]
    fn any_number_of_kinds_is_counted() {
        let extents = Extents::new(Device::Cpu, Reductions::with_capability(None), 1);
        for h in 1..2 * MOST_KEPT {
            let grid = Grid { t: 1, h, w: 3 };
            assert_eq!(extents.of(&[grid, grid]).unwrap()[1].tokens, 3 * h);
        }
        assert_eq!(extents.of(&[]).unwrap(), []);
    }
}
