//! Stop strings in streamed text.

/// Detects stop strings in streamed text, also if they are split over pieces.
///
/// The stop string that is complete first wins, the longest of several that are complete at once, so that the result does not
/// depend on how the text is split.
pub struct StopStrings {
    patterns: Vec<Pattern>,
    /// Text held back: its end may be the start of a stop string.
    held: String,
    stopped: bool,
}

/// Result of [`StopStrings::push`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Released {
    /// Text that cannot be part of a stop string.
    pub text: String,
    /// A stop string was found; nothing follows.
    pub stopped: bool,
}

impl StopStrings {
    /// Detects any of `stop`; empty strings are ignored.
    pub fn new(stop: &[String]) -> Self {
        Self {
            patterns: stop
                .iter()
                .filter(|s| !s.is_empty())
                .map(|s| Pattern::new(s))
                .collect(),
            held: String::new(),
            stopped: false,
        }
    }

    /// Adds the next piece; returns the text that can be released.
    pub fn push(&mut self, piece: &str) -> Released {
        if self.stopped {
            return self.release(0);
        }
        let before = self.held.len();
        self.held.push_str(piece);
        for (index, &byte) in piece.as_bytes().iter().enumerate() {
            let mut complete = 0;
            for pattern in &mut self.patterns {
                if pattern.advance(byte) {
                    complete = complete.max(pattern.bytes.len());
                }
            }
            if complete > 0 {
                self.stopped = true;
                return self.release(before + index + 1 - complete);
            }
        }
        let begun = self
            .patterns
            .iter()
            .map(|pattern| pattern.matched)
            .max()
            .unwrap_or(0);
        self.release(self.held.len() - begun)
    }

    /// Returns the text held back, at the end of the output.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Releases the first `length` bytes held back; the rest stays unless a stop string was found.
    fn release(&mut self, length: usize) -> Released {
        let rest = self.held.split_off(length);
        let text = std::mem::replace(&mut self.held, rest);
        if self.stopped {
            self.held.clear();
        }
        Released {
            text,
            stopped: self.stopped,
        }
    }
}

/// One stop string and the length of its prefix at the end of the text (Knuth-Morris-Pratt).
struct Pattern {
    bytes: Vec<u8>,
    /// `fallback[n]`: length of the longest proper prefix of `bytes[..=n]` that is also its suffix.
    fallback: Vec<usize>,
    matched: usize,
}

impl Pattern {
    fn new(text: &str) -> Self {
        let bytes = text.as_bytes().to_vec();
        let mut fallback = vec![0];
        let mut length = 0;
        for &byte in &bytes[1..] {
            while length > 0 && bytes[length] != byte {
                length = fallback[length - 1];
            }
            length += usize::from(bytes[length] == byte);
            fallback.push(length);
        }
        Self {
            bytes,
            fallback,
            matched: 0,
        }
    }

    /// Adds the next byte; returns whether the stop string is complete.
    fn advance(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = self.fallback[self.matched - 1];
        }
        self.matched += usize::from(self.bytes[self.matched] == byte);
        self.matched == self.bytes.len()
    }
}
