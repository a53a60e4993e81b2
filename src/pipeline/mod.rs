//! All phases in order, each run as a program: up-to-date phases are skipped, interrupted ones resume.
//!
//! `benchmarks/.pipeline_state.json` holds hashes of the inputs and outputs of each finished phase and is written after every
//! phase. A run that is killed loses at most the current phase, and most programs resume within theirs.

mod download;
mod phase;
mod plan;
mod run;
mod state;

pub use self::phase::Phase;
pub use self::run::{Pipeline, PipelineOptions, Step, StepStatus};
