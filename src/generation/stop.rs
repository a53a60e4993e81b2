//! Stop strings in streamed text.

/// Watches streamed text for stop strings that may be split over pieces.
///
/// The stop string that is complete first wins, the longest where several are complete at once; so the outcome does
/// not depend on how the text is cut into pieces.
pub struct StopStrings {
    patterns: Vec<Pattern>,
    /// Text not released yet: at its end a stop string may have begun.
    held: String,
    stopped: bool,
}

/// What may be shown after one more piece of text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Released {
    /// Text that no stop string can begin in any more.
    pub text: String,
    /// A stop string was found; nothing follows.
    pub stopped: bool,
}

impl StopStrings {
    /// Watches for any of `stop` (empty strings are ignored).
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

    /// Takes the next piece; gives what can be shown.
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

    /// Text held back at the end of the answer.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The first `length` bytes of what is held; the rest stays, unless a stop string was found.
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

/// One stop string and how much of it stands at the end of the text (Knuth, Morris and Pratt).
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

    /// Takes the text's next byte; whether the stop string is complete.
    fn advance(&mut self, byte: u8) -> bool {
        while self.matched > 0 && self.bytes[self.matched] != byte {
            self.matched = self.fallback[self.matched - 1];
        }
        self.matched += usize::from(self.bytes[self.matched] == byte);
        self.matched == self.bytes.len()
    }
}
