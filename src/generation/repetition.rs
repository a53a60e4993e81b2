//! Repetition guard.

use super::RepetitionDetection;

/// Maximum columns of a line of text: a shorter run of tokens can be one ruled or dotted line.
const PAGE_COLUMNS: usize = 160;
/// Maximum lines of a page: fewer repetitions of a line can be a table.
const PAGE_LINES: usize = 72;

/// Detects a token pattern at the end of the output that repeats endlessly.
///
/// With `min_span` 0 the rule is vLLM's: a pattern of `min_pattern_size..=max_pattern_size` tokens occurs `min_count` times in a
/// row at the end. That rule stops tables with repeated rows, so `min_span` requires more: the repetitions must be longer than a
/// page can be, which is `min_span` tokens or, for short patterns, as many copies as a page has lines and as many tokens as a
/// line has columns.
///
/// A token costs one comparison for each pattern size.
pub struct RepetitionGuard {
    options: RepetitionDetection,
    tokens: Vec<i64>,
    /// At `p - min_pattern_size`: number of last tokens that equal the token `p` positions earlier.
    runs: Vec<usize>,
}

impl RepetitionGuard {
    /// A guard for one generation.
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

    /// Adds the next token; `Some(n)` if the output repeats endlessly: its last `n` tokens are repetitions.
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

/// Number of tokens, including the first copy, from which repetitions of a pattern of `size` tokens count as endless.
fn enough(options: &RepetitionDetection, size: usize) -> usize {
    let page = PAGE_COLUMNS.max(PAGE_LINES.saturating_mul(size));
    options
        .min_count
        .saturating_mul(size)
        .max(options.min_span.min(page))
}
