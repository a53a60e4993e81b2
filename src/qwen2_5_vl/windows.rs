//! Attention windows of the vision tower.

use super::token_grid::TokenGrid;

/// Permutation of merged tokens into window order, and the window lengths.
pub struct WindowPlan {
    /// Merged token at each position of window order.
    pub order: Vec<i64>,
    /// Inverse permutation: position in window order of each merged token.
    pub reverse: Vec<i64>,
    /// Merged tokens per window, in order.
    pub lengths: Vec<usize>,
}

impl WindowPlan {
    /// Windows of `side` x `side` merged tokens over `pages`; smaller at the right and bottom edges.
    ///
    /// Reference: [`get_vision_window_index`](https://github.com/huggingface/transformers/blob/v5.17.0/src/transformers/vision_utils.py#L130-L188).
    pub fn new(pages: &[TokenGrid], side: usize) -> Self {
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
