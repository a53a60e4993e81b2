//! Errors of a training.

use std::path::PathBuf;

/// Why a training cannot start or continue.
#[derive(Debug, thiserror::Error)]
pub enum TrainingError {
    /// A split has no samples.
    #[error("{}: {reason}; create it with prepare_training_data", path.display())]
    NoSamples {
        /// File of the split.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// More pages than tolerated are missing or broken.
    #[error(
        "{}: {broken} of {samples} samples have no readable page (the first: {}: {reason}); nothing was trained. \
         run prepare_training_data to recreate the pages", path.display(), first.display()
    )]
    BrokenPages {
        /// File of the split.
        path: PathBuf,
        /// Number of broken samples.
        broken: usize,
        /// Number of samples.
        samples: usize,
        /// The first broken page.
        first: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The adapter of `--init-adapter` does not fit the settings.
    #[error(
        "{}: cannot initialize from this adapter: {reason}; use the settings it was trained with, or omit --init-adapter",
        path.display()
    )]
    OtherAdapter {
        /// The adapter.
        path: PathBuf,
        /// What differs, and where.
        reason: String,
    },
    /// Too many steps had non-finite gradients.
    #[error(
        "the gradients of {skipped} of {steps} steps were not finite ({in_a_row} in a row): the training ends; try a \
         lower --learning-rate. The last good checkpoint stays ({})", folder.display()
    )]
    Diverged {
        /// Skipped steps.
        skipped: u64,
        /// Steps so far.
        steps: u64,
        /// Skipped steps in a row at the end.
        in_a_row: u64,
        /// Folder of the checkpoints.
        folder: PathBuf,
    },
    /// `--resume` finds no usable checkpoint.
    #[error("{}: {reason}; run without --resume to start over", folder.display())]
    NothingToResume {
        /// Folder of the checkpoints.
        folder: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The checkpoint was made with other settings.
    #[error(
        "{}: the checkpoint has {field} {theirs}, this run {ours}: use the same settings, or run without --resume \
         to start over", folder.display()
    )]
    OtherTraining {
        /// The checkpoint.
        folder: PathBuf,
        /// What differs.
        field: String,
        /// Value in the checkpoint.
        theirs: String,
        /// Value of this run.
        ours: String,
    },
}
