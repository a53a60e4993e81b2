//! Numbers of patches and merged tokens of pages: integer products of their grids' sides, on the model's device.
//!
//! The products go through [`blackwell_compat`](crate::blackwell_compat), because some GPU software lacks integer products.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tch::{Device, Kind, Tensor};

use crate::blackwell_compat::Reductions;
use crate::processing::Grid;
use crate::torch::upload;
use crate::{Error, Result};

/// Maximum number of cached grids.
const MAX_CACHED: usize = 1024;

/// A page's grid in merged tokens; each merged token covers `merge` x `merge` patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenGrid {
    /// Frames; 1 for a still image.
    pub frames: usize,
    /// Rows of tokens.
    pub rows: usize,
    /// Tokens per row.
    pub columns: usize,
    /// Tokens per frame.
    pub frame_tokens: usize,
    /// Tokens of the page.
    pub tokens: usize,
    /// Patches per frame.
    pub frame_patches: usize,
}

/// Computes [`TokenGrid`]s on one device and caches them by patch grid.
pub struct TokenGrids {
    device: Device,
    reductions: Reductions,
    merge: usize,
    cache: Mutex<HashMap<[usize; 3], TokenGrid>>,
}

impl TokenGrids {
    /// For a vision tower that merges `merge` x `merge` patches into one token.
    pub fn new(device: Device, reductions: Reductions, merge: usize) -> Self {
        Self {
            device,
            reductions,
            merge: merge.max(1),
            cache: Mutex::default(),
        }
    }

    /// How integer products are computed.
    pub fn reductions(&self) -> Reductions {
        self.reductions
    }

    /// Token grids of the patch grids `grids`, in the same order.
    pub fn of(&self, grids: &[Grid]) -> Result<Vec<TokenGrid>> {
        let key = |grid: &Grid| [grid.t, grid.h, grid.w];
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        let mut new: Vec<Grid> = grids
            .iter()
            .filter(|grid| !cache.contains_key(&key(grid)))
            .copied()
            .collect();
        if !new.is_empty() {
            if cache.len() >= MAX_CACHED {
                cache.clear();
                new = grids.to_vec();
            }
            for (grid, token_grid) in new.iter().zip(self.multiply(&new)?) {
                cache.insert(key(grid), token_grid);
            }
        }
        let found = grids.iter().map(|grid| cache.get(&key(grid)).copied());
        let all: Option<Vec<TokenGrid>> = found.collect();
        all.ok_or_else(|| Error::Internal("a page's token grid was not computed".to_owned()))
    }

    /// Cumulative products of columns, rows and frames, and the patches per frame.
    fn multiply(&self, grids: &[Grid]) -> Result<Vec<TokenGrid>> {
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
        let running = to_vec(&self.reductions.cumprod(&sides, 1)?)?;
        let patches = to_vec(&self.reductions.prod(&patches, Some(1), false)?)?;
        let products = grids.iter().zip(running.chunks_exact(3)).zip(patches);
        Ok(products
            .map(|((grid, running), frame_patches)| TokenGrid {
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

fn to_vec(tensor: &Tensor) -> Result<Vec<i64>> {
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
            let token_grids = TokenGrids::new(Device::Cpu, Reductions::with_capability(capability), 2);
            for _ in 0..2 {
                let found = token_grids.of(&grids).unwrap();
                for (grid, tokens) in grids.iter().zip(&found) {
                    assert_eq!(tokens.tokens, grid.tokens(2));
                    assert_eq!(tokens.frame_patches * grid.t, grid.patches());
                    assert_eq!(
                        (tokens.frames, tokens.rows, tokens.columns),
                        (grid.t, grid.h / 2, grid.w / 2)
                    );
                    assert_eq!(tokens.frame_tokens, grid.h * grid.w / 4);
                }
            }
        }
    }

    #[test]
    fn any_number_of_kinds_is_counted() {
        let token_grids = TokenGrids::new(Device::Cpu, Reductions::with_capability(None), 1);
        for h in 1..2 * MAX_CACHED {
            let grid = Grid { t: 1, h, w: 3 };
            assert_eq!(token_grids.of(&[grid, grid]).unwrap()[1].tokens, 3 * h);
        }
        assert_eq!(token_grids.of(&[]).unwrap(), []);
    }
}
