//! Stop strings in streamed text.

/// Watches streamed text for stop strings that may be split over pieces.
pub struct StopStrings {
    _stop: Vec<String>,
}

/// What may be shown after one more piece of text.
pub struct Released {
    /// Text that no stop string can begin in any more.
    pub text: String,
    /// A stop string was found; nothing follows.
    pub stopped: bool,
}

impl StopStrings {
    /// Watches for any of `stop` (empty strings are ignored).
    pub fn new(stop: &[String]) -> Self {
        Self { _stop: stop.to_vec() }
    }

    /// Takes the next piece; gives what can be shown.
    pub fn push(&mut self, piece: &str) -> Released {
        Released {
            text: piece.to_owned(),
            stopped: false,
        }
    }

    /// Text held back at the end of the answer.
    pub fn finish(&mut self) -> String {
        String::new()
    }
}
