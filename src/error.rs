//! Every error the library returns, grouped by who can mend it.

use std::path::{Path, PathBuf};

use crate::hub::HubError;
use crate::processing::{ImageError, PromptError};
use crate::training::TrainingError;

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
    #[error("{}: {reason}", path.display())]
    Checkpoint {
        /// The file or folder at fault.
        path: PathBuf,
        /// What is wrong with it (key, tensor, shape) and what to do.
        reason: String,
    },
    /// A record of the pipeline is broken, lacks a key or is a newer program's.
    #[error("{}: {reason}", path.display())]
    Record {
        /// The file at fault.
        path: PathBuf,
        /// What is wrong with it (line, key) and what to do.
        reason: String,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file at fault.
        path: PathBuf,
        /// The operating system's word.
        source: std::io::Error,
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
    #[error("interrupted; what is finished is kept, and the next run goes on")]
    Interrupted,
    /// The model produced something that is not a number.
    #[error("numeric fault: {0}")]
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
