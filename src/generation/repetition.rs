//! The guard against endless repetition.

use super::RepetitionDetection;

/// Most columns of a line of text: a run of tokens shorter than this can be one ruled or dotted line.
const PAGE_COLUMNS: usize = 160;
/// Most lines of a page: a line that follows itself less often than this can be a table.
const PAGE_LINES: usize = 72;

/// Watches an answer's tokens for a pattern that follows itself again and again.
///
/// With `min_span` 0 the rule is vLLM's: some pattern of `min_pattern_size..=max_pattern_size` tokens stands at the
/// answer's end `min_count` times in a row. That rule cuts tables whose rows rightly repeat, so `min_span` asks for
/// more: the repeated stretch must be longer than a page can hold, which is either `min_span` tokens, or (short
/// patterns) as many copies as a page has lines and as many tokens as a line has columns.
///
/// A token costs one comparison for each pattern size.
pub struct RepetitionGuard {
    options: RepetitionDetection,
    tokens: Vec<i64>,
    /// At `p - min_pattern_size`: how many of the last tokens equal the one `p` before them.
    runs: Vec<usize>,
}

impl RepetitionGuard {
    /// A guard for one answer.
    pub fn new(options: RepetitionDetection) -> Self {
        let min_pattern_size = options.min_pattern_size.max(1);
        Self {
            options: RepetitionDetection {
                min_pattern_size,
                ..options
            },
            tokens: Vec::new(),
            runs: Vec::new(),
        }
    }

    /// Takes the next token; `Some(n)` says that the answer runs in circles and that its last `n` tokens repeat what stands before them.
    pub fn push(&mut self, token: i64) -> Option<usize> {
        let before = self.tokens.len();
        self.tokens.push(token);
        let RepetitionDetection {
            min_pattern_size: min,
            max_pattern_size: max,
            min_count,
            ..
        } = self.options;
        if min_count < 2 || before < min || max < min {
            return None;
        }
        let largest = max.min(before);
        self.runs.resize(self.runs.len().max(largest + 1 - min), 0);
        let earlier = self.tokens[..=before - min].iter().rev();
        let mut found = None;
        for ((size, run), &other) in (min..=largest).zip(&mut self.runs).zip(earlier) {
            *run = if other == token { *run + 1 } else { 0 };
            if found.is_none() && *run > 0 && *run + size >= enough(&self.options, size) {
                found = Some(*run);
            }
        }
        found
    }
}

/// How many tokens, the first copy among them, a pattern of `size` tokens must cover to count as endless.
fn enough(options: &RepetitionDetection, size: usize) -> usize {
    let page = PAGE_COLUMNS.max(PAGE_LINES.saturating_mul(size));
    options
        .min_count
        .saturating_mul(size)
        .max(options.min_span.min(page))
}
