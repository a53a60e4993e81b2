//! Rotary positions of text and images, and the order of the vision tower's windows.

use super::extents::Extent;
use crate::error::PromptError;
use crate::{Error, Result};

/// Positions of a prompt on the axes time, height and width.
pub struct Positions {
    /// Three rows, one entry a token.
    pub ids: [Vec<i64>; 3],
    /// The position that follows the prompt, on all three axes.
    pub next: i64,
}

/// mrope positions of `input_ids`, whose `image_token_id`s stand for `pages` in order.
///
/// Text counts on all three axes; an image keeps time and spreads height and width over its merged grid; the text after
/// it goes on from the largest position plus one. Errors where pads and pages do not match.
pub fn rope_positions(input_ids: &[i64], image_token_id: i64, pages: &[Extent]) -> Result<Positions> {
    let mismatch = || {
        Error::from(PromptError::ImageCount {
            places: input_ids.iter().filter(|&&id| id == image_token_id).count(),
            images: pages.iter().map(|page| page.tokens).sum(),
        })
    };
    let mut ids: [Vec<i64>; 3] = Default::default();
    let (mut next, mut at, mut pages) = (0i64, 0, pages.iter());
    while at < input_ids.len() {
        if input_ids[at] != image_token_id {
            ids.iter_mut().for_each(|axis| axis.push(next));
            next += 1;
            at += 1;
            continue;
        }
        let page = pages.next().ok_or_else(mismatch)?;
        let (rows, columns, tokens) = (page.rows, page.columns, page.tokens);
        let run = input_ids[at..]
            .iter()
            .take(tokens)
            .filter(|&&id| id == image_token_id)
            .count();
        if run != tokens {
            return Err(mismatch());
        }
        for i in 0..tokens {
            ids[0].push(next + (i / page.frame_tokens) as i64);
            ids[1].push(next + (i / columns % rows) as i64);
            ids[2].push(next + (i % columns) as i64);
        }
        next += page.frames.max(rows).max(columns) as i64;
        at += tokens;
    }
    if pages.next().is_some() {
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
    /// Windows of `side` x `side` merged tokens over `pages`; ragged at the right and bottom edges.
    pub fn new(pages: &[Extent], side: usize) -> Self {
        let (mut order, mut lengths, mut base) = (Vec::new(), Vec::new(), 0);
        for page in pages {
            let (h, w) = (page.rows, page.columns);
            for t in 0..page.frames {
                for top in (0..h).step_by(side) {
                    for left in (0..w).step_by(side) {
                        let before = order.len();
                        for y in top..(top + side).min(h) {
                            for x in left..(left + side).min(w) {
                                order.push((base + t * page.frame_tokens + y * w + x) as i64);
                            }
                        }
                        lengths.push(order.len() - before);
                    }
                }
            }
            base += page.tokens;
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
