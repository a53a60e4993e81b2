//! Errors of the library, typed by cause.
//!
//! A variant of [`Error`] says what happened, not where it was noticed: a missing `--root` and a missing shard are both
//! [`Error::NotFound`]. The text is one line and ends with what to do next, where something can be done.
//!
//! | variants | who can fix it | program exits with | server answers |
//! | --- | --- | --- | --- |
//! | [`Image`](Error::Image), [`Document`](Error::Document) | the user, with another file or password, or fewer pages | 1 | 400, 413, 422 |
//! | [`Option`](Error::Option), [`Prompt`](Error::Prompt) with [`PromptError::TooLong`] | the user, with another value | 2 | 422 |
//! | [`Prompt`](Error::Prompt), otherwise | the user, with a smaller request | 1 | 422 |
//! | [`NotFound`](Error::NotFound), [`InvalidFile`](Error::InvalidFile), [`Tensor`](Error::Tensor), [`Unsuitable`](Error::Unsuitable), [`Locked`](Error::Locked), [`Io`](Error::Io), [`System`](Error::System) | the user, on this machine | 1 | 500 |
//! | [`Hub`](Error::Hub), [`Training`](Error::Training), [`Device`](Error::Device), [`Distributed`](Error::Distributed) | the user, in the set-up that the text names | 1 | 500 |
//! | [`NonFinite`](Error::NonFinite) | the model's author, or another precision | 1 | 500 |
//! | [`Torch`](Error::Torch), [`Internal`](Error::Internal), [`ImageTokens`](Error::ImageTokens) | nobody: a bug, or too little GPU memory (libtorch) | 1 | 500 |
//! | [`Interrupted`](Error::Interrupted) | nobody: the user asked for it | 130 | - |
//! | [`Cancelled`](Error::Cancelled) | nobody: the caller asked for it, and handles it | - | - |
//!
//! The server's other answers are in `server/errors.rs`; exit codes are assigned by `fail` in `cli/mod.rs`. The server logs
//! the cause of a 500 and does not send it.

mod hub;
mod input;
mod training;

use std::fmt;
use std::path::{Path, PathBuf};

pub use self::hub::HubError;
pub use self::input::{DocumentError, ImageError, PromptError};
pub use self::training::TrainingError;

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What happened; the [module](self) lists who can fix it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An image cannot be used. The text is from a fixed table and safe to show to a client.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A document or a page of it cannot be used. The text is from a fixed table and safe to show to a client.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// A prompt does not fit. Safe to show to a client.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// An option is outside its range. Safe to show to a client.
    #[error("{option}: {reason}")]
    Option {
        /// Name of the option, setting or flag.
        option: &'static str,
        /// The allowed values.
        reason: String,
    },
    /// A file or folder that is needed does not exist.
    #[error("{}: {}", Shown(path), Bounded(reason))]
    NotFound {
        /// Where it was expected.
        path: PathBuf,
        /// How to get it.
        reason: String,
    },
    /// A file's content is damaged, malformed, too large or contradicts another file.
    #[error("{}: {}", Shown(path), Bounded(reason))]
    InvalidFile {
        /// The file, or the folder of several.
        path: PathBuf,
        /// What is wrong (line, key, value) and what to do.
        reason: String,
    },
    /// A tensor of a weight file is missing, or its dtype, shape or values are not those required.
    #[error("{}: {}", Shown(path), Bounded(&format!("tensor \"{tensor}\" {reason}")))]
    Tensor {
        /// The file, or the folder of several.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What is wrong, and what was required.
        reason: String,
    },
    /// A file or folder is intact, but not of the kind needed here, or must not be replaced.
    #[error("{}: {}", Shown(path), Bounded(reason))]
    Unsuitable {
        /// The file or folder.
        path: PathBuf,
        /// What it is, and what to use instead.
        reason: String,
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
    /// A file could not be read or written.
    #[error("{}: {source}", Shown(path))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Underlying I/O error.
        source: std::io::Error,
    },
    /// The operating system refused something other than a file: threads, signal handlers.
    #[error("{what}: {source}")]
    System {
        /// What was asked for, as in "the signal handler".
        what: &'static str,
        /// Underlying I/O error.
        source: std::io::Error,
    },
    /// A transfer from the hub failed.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// A training cannot start or continue.
    #[error(transparent)]
    Training(#[from] TrainingError),
    /// The requested device cannot be used.
    #[error("{0}")]
    Device(String),
    /// The processes of a distributed training cannot find or have lost each other.
    #[error("{0}")]
    Distributed(String),
    /// The model computed NaN or Inf.
    #[error("numerical error: {0}")]
    NonFinite(String),
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
    /// A prompt's image tokens and its images' features differ in number.
    #[error("the prompt has {tokens} image tokens, but its images have {features}")]
    ImageTokens {
        /// Image tokens in the prompt.
        tokens: usize,
        /// Merged tokens of the images.
        features: usize,
    },
    /// A condition that the program itself must ensure does not hold.
    #[error("internal error: {0}; please report it")]
    Internal(String),
    /// The user stopped the program.
    #[error("interrupted; finished work is kept, run the same command to continue")]
    Interrupted,
    /// The caller cancelled the operation.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// An option outside its range.
    pub fn option(option: &'static str, reason: impl Into<String>) -> Self {
        Self::Option {
            option,
            reason: reason.into(),
        }
    }

    /// A missing file or folder.
    pub fn not_found(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::NotFound {
            path: path.as_ref().to_owned(),
            reason: reason.into(),
        }
    }

    /// A file with invalid content.
    pub fn invalid_file(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::InvalidFile {
            path: path.as_ref().to_owned(),
            reason: reason.into(),
        }
    }

    /// A tensor in `path` that is missing or not as required.
    pub fn tensor(path: impl AsRef<Path>, tensor: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Tensor {
            path: path.as_ref().to_owned(),
            tensor: tensor.into(),
            reason: reason.into(),
        }
    }

    /// A file or folder of the wrong kind.
    pub fn unsuitable(path: impl AsRef<Path>, reason: impl Into<String>) -> Self {
        Self::Unsuitable {
            path: path.as_ref().to_owned(),
            reason: reason.into(),
        }
    }

    /// A file or folder that could not be read or written.
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
        let error = Error::invalid_file(
            "a\nb/config.json",
            format!("\"model_type\" is \"{long}\", not \"y\""),
        );
        let text = error.to_string();
        let cut = "x".repeat(MAX_EXCERPT);
        assert_eq!(
            text,
            format!("a\\nb/config.json: \"model_type\" is \"{cut}…\", not \"y\"")
        );
        let unquoted = Error::invalid_file("c", long).to_string();
        assert!(unquoted.chars().count() < MAX_REASON + 10);
        let lines = Error::not_found("c", "one\ntwo\u{1b}[31m").to_string();
        assert_eq!(lines, "c: one\\ntwo\\u{1b}[31m");
    }
}
