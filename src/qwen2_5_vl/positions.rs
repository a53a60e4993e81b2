//! Rotary positions of text and images, and the order of the vision tower's windows.

use crate::processing::{Grid, PromptError};
use crate::{Error, Result};

/// Positions of a prompt on the axes time, height and width.
pub struct Positions {
    /// Three rows, one entry a token.
    pub ids: [Vec<i64>; 3],
    /// The position that follows the prompt, on all three axes.
    pub next: i64,
}

/// mrope positions of `input_ids`, whose `image_token_id`s stand for `grids` in order.
///
/// Text counts on all three axes; an image keeps time and spreads height and width over its merged grid; the text after
/// it goes on from the largest position plus one. Errors where pads and grids do not match.
pub fn rope_positions(
    input_ids: &[i64],
    image_token_id: i64,
    grids: &[Grid],
    merge: usize,
) -> Result<Positions> {
    let mismatch = || {
        Error::from(PromptError::ImageCount {
            places: input_ids.iter().filter(|&&id| id == image_token_id).count(),
            images: grids.iter().map(|g| g.tokens(merge)).sum(),
        })
    };
    let mut ids: [Vec<i64>; 3] = Default::default();
    let (mut next, mut at, mut grids) = (0i64, 0, grids.iter());
    while at < input_ids.len() {
        if input_ids[at] != image_token_id {
            ids.iter_mut().for_each(|axis| axis.push(next));
            next += 1;
            at += 1;
            continue;
        }
        let grid = grids.next().ok_or_else(mismatch)?;
        let (t, h, w) = (grid.t, grid.h / merge, grid.w / merge);
        let tokens = t * h * w;
        let run = input_ids[at..]
            .iter()
            .take(tokens)
            .filter(|&&id| id == image_token_id)
            .count();
        if run != tokens {
            return Err(mismatch());
        }
        for i in 0..tokens {
            ids[0].push(next + (i / (h * w)) as i64);
            ids[1].push(next + (i / w % h) as i64);
            ids[2].push(next + (i % w) as i64);
        }
        next += t.max(h).max(w) as i64;
        at += tokens;
    }
    if grids.next().is_some() {
        return Err(mismatch());
    }
    Ok(Positions { ids, next })
}

/// Order and lengths of the vision tower's attention windows.
pub struct WindowPlan {
    /// For each place in window order, the merged token that stands there.
    pub order: Vec<i64>,
    /// For each merged token, its place in window order.
    pub reverse: Vec<i64>,
    /// Merged tokens of each window, in order.
    pub lengths: Vec<usize>,
}

impl WindowPlan {
    /// Windows of `side` x `side` merged tokens over `grids`; ragged at the right and bottom edges.
    pub fn new(grids: &[Grid], merge: usize, side: usize) -> Self {
        let (mut order, mut lengths, mut base) = (Vec::new(), Vec::new(), 0);
        for grid in grids {
            let (h, w) = (grid.h / merge, grid.w / merge);
            for t in 0..grid.t {
                for top in (0..h).step_by(side) {
                    for left in (0..w).step_by(side) {
                        let before = order.len();
                        for y in top..(top + side).min(h) {
                            for x in left..(left + side).min(w) {
                                order.push((base + (t * h + y) * w + x) as i64);
                            }
                        }
                        lengths.push(order.len() - before);
                    }
                }
            }
            base += grid.t * h * w;
        }
        let mut reverse = vec![0; order.len()];
        for (place, &token) in order.iter().enumerate() {
            reverse[token as usize] = place as i64;
        }
        Self {
            order,
            reverse,
            lengths,
        }
    }
}
