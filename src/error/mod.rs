//! Every error the library returns, grouped by who can mend it.

mod hub;
mod input;
mod training;

use std::fmt;
use std::path::{Path, PathBuf};

pub use self::hub::HubError;
pub use self::input::{ImageError, PromptError};
pub use self::training::TrainingError;

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, grouped by who can mend it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The picture is at fault; its text is from a fixed table and safe to show to a client.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The prompt or an option of the request is at fault; safe to show to a client.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// A file of the model folder is missing, broken or does not fit the others.
    #[error("{}: {}", Shown(path), Bounded(reason))]
    Checkpoint {
        /// The file or folder at fault.
        path: PathBuf,
        /// What is wrong with it (key, tensor, shape) and what to do.
        reason: String,
    },
    /// A record of the pipeline is broken, lacks a key or is a newer program's.
    #[error("{}: {}", Shown(path), Bounded(reason))]
    Record {
        /// The file at fault.
        path: PathBuf,
        /// What is wrong with it (line, key) and what to do.
        reason: String,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", Shown(path))]
    Io {
        /// The file at fault.
        path: PathBuf,
        /// The operating system's word.
        source: std::io::Error,
    },
    /// Another process holds the lock on a folder.
    #[error(
        "{}: another {work}{} is in progress; wait for it to finish",
        Shown(path),
        in_brackets(holder)
    )]
    Locked {
        /// The folder.
        path: PathBuf,
        /// What runs there, as in "download".
        work: &'static str,
        /// The process that holds the lock, as in "process 42, download_model", where the system shows it.
        holder: Option<String>,
    },
    /// A prompt's image tokens and its images' features differ in number.
    #[error("the prompt has {tokens} image tokens, but its images have {features}")]
    ImageTokens {
        /// Image tokens in the prompt.
        tokens: usize,
        /// Merged tokens of the images.
        features: usize,
    },
    /// Something could not be had from the hub.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// A training could not begin or go on.
    #[error(transparent)]
    Training(#[from] TrainingError),
    /// The requested device cannot be used.
    #[error("{0}")]
    Device(String),
    /// The caller wanted to stop.
    #[error("interrupted; finished work is kept, run the same command to continue")]
    Interrupted,
    /// The model produced something that is not a number.
    #[error("numerical error: {0}")]
    Numeric(String),
    /// Processes that train together do not find each other, or lost one.
    #[error("{0}")]
    Distributed(String),
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

impl Error {
    /// An error about one file of a model folder.
    pub fn checkpoint(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Checkpoint {
            path: path.as_ref().to_owned(),
            reason: reason.into(),
        }
    }

    /// An error about one record.
    pub fn record(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Record {
            path: path.as_ref().to_owned(),
            reason: reason.into(),
        }
    }

    /// An operating-system error about one file.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io {
            path: path.as_ref().to_owned(),
            source,
        }
    }
}

fn in_brackets(holder: &Option<String>) -> String {
    holder
        .as_ref()
        .map_or_else(String::new, |holder| format!(" ({holder})"))
}

/// Most characters of a text from a file that an error repeats.
const MAX_EXCERPT: usize = 200;
/// Most characters of an error's reason.
const MAX_REASON: usize = 4_000;

/// `text` for an error or a line of the log: the beginning of a long one, control characters and line ends escaped.
pub(crate) fn excerpt(text: &str) -> String {
    let mut shown: String = escaped(text.chars().take(MAX_EXCERPT)).collect();
    if text.chars().nth(MAX_EXCERPT).is_some() {
        shown.push('…');
    }
    shown
}

/// Characters with those that end a line or command a terminal written out.
fn escaped(text: impl Iterator<Item = char>) -> impl Iterator<Item = char> {
    text.flat_map(|character| {
        let harmful = character.is_control() || matches!(character, '\u{2028}' | '\u{2029}');
        let written = harmful.then(|| character.escape_default());
        let plain = (!harmful).then_some(character);
        written.into_iter().flatten().chain(plain)
    })
}

/// A path on one line.
struct Shown<'a>(&'a Path);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.0.to_string_lossy();
        f.write_str(&escaped(path.chars()).collect::<String>())
    }
}

/// A reason on one line, what it quotes of a file cut to [`MAX_EXCERPT`] characters.
struct Bounded<'a>(&'a str);

impl fmt::Display for Bounded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = String::new();
        // Between quotation marks is what a file holds; where they do not pair up the whole is bounded all the same.
        for (i, part) in self.0.split_inclusive('"').enumerate() {
            let length = part.chars().count();
            match i % 2 == 1 && length > MAX_EXCERPT {
                true => {
                    shown.extend(escaped(part.chars().take(MAX_EXCERPT)));
                    shown.push_str("…\"");
                }
                false => shown.extend(escaped(part.chars())),
            }
        }
        match shown.char_indices().nth(MAX_REASON) {
            Some((end, _)) => write!(f, "{}…", &shown[..end]),
            None => f.write_str(&shown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_of_bounded_length() {
        let long = "x".repeat(100_000);
        let error = Error::checkpoint(
            "a\nb/config.json",
            format!("\"model_type\" is \"{long}\", not \"y\""),
        );
        let text = error.to_string();
        let cut = "x".repeat(MAX_EXCERPT);
        assert_eq!(
            text,
            format!("a\\nb/config.json: \"model_type\" is \"{cut}…\", not \"y\"")
        );
        let unquoted = Error::checkpoint("c", long).to_string();
        assert!(unquoted.chars().count() < MAX_REASON + 10);
        let lines = Error::record("c", "one\ntwo\u{1b}[31m").to_string();
        assert_eq!(lines, "c: one\\ntwo\\u{1b}[31m");
    }
}
