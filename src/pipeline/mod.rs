//! All phases in order, each by its own program: what is up to date is skipped, what was cut off goes on.
//!
//! A phase is a program of this installation, run as a user would run it. What a phase was made from and what it made is
//! kept as hashes in `benchmarks/.pipeline_state.json`, written after each phase: a run that is killed loses no more than
//! the phase in work, and most programs go on within theirs.

mod download;
mod phase;
mod run;
mod state;
mod work;

pub use self::phase::Phase;
pub use self::run::{Ended, Pipeline, PipelineArgs, ProgramOptions, Step};
