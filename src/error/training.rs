//! What ends a training.

use std::path::PathBuf;

/// What ends a training before its time.
#[derive(Debug, thiserror::Error)]
pub enum TrainingError {
    /// There is nothing to train on.
    #[error("{}: {reason}; create it with prepare_training_data", path.display())]
    NoSamples {
        /// The split.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Too many pages are missing or broken to be an accident.
    #[error(
        "{}: {broken} of {samples} samples have no readable page (the first: {}: {reason}); nothing was trained. \
         run prepare_training_data to recreate the pages", path.display(), first.display()
    )]
    BrokenPages {
        /// The split.
        path: PathBuf,
        /// How many.
        broken: usize,
        /// Of how many.
        samples: usize,
        /// The first broken page.
        first: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The adapter to begin from is not one by the settings.
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
    /// Gradients were no numbers too often.
    #[error(
        "the gradients of {skipped} of {steps} steps were not finite ({in_a_row} in a row): the training ends; try a \
         lower --learning-rate. The last good checkpoint stays ({})", folder.display()
    )]
    Diverged {
        /// Steps without effect.
        skipped: u64,
        /// Steps so far.
        steps: u64,
        /// The last ones without a good one between them.
        in_a_row: u64,
        /// Where checkpoints are.
        folder: PathBuf,
    },
    /// `--resume` finds nothing to go on from.
    #[error("{}: {reason}; run without --resume to start over", folder.display())]
    NothingToResume {
        /// Where checkpoints would be.
        folder: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The checkpoint is of another training.
    #[error(
        "{}: the checkpoint has {field} {theirs}, this run {ours}: use the same settings, or run without --resume \
         to start over", folder.display()
    )]
    OtherTraining {
        /// The checkpoint.
        folder: PathBuf,
        /// What differs.
        field: String,
        /// The checkpoint's.
        theirs: String,
        /// This run's.
        ours: String,
    },
}
