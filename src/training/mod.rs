//! Fine-tuning: LoRA on a base that stays as it is, in four bits or not.
//!
//! [`train`] does all of it: a prepared split ([`samples`]) in an order that seed and epoch give ([`batches`]), the model's
//! packed pass ([`crate::qwen2_5_vl::Packed`]), AdamW on one flat buffer ([`parameters`]), validations, checkpoints and
//! logs. Nothing depends on what was drawn before: a run that was killed goes on from its newest checkpoint to the same end.

mod batches;
mod checkpoints;
mod curve;
mod events;
mod feed;
mod log;
mod options;
mod parameters;
mod run;
mod samples;
mod schedule;
mod settings;
mod setup;
mod summary;
mod validation;

pub use self::batches::{Batching, ByPage, Shape, StepPlan};
pub use self::log::{Progress, StepReport, Validation};
pub use self::options::{BaseKind, Preset, ScheduleKind, TrainingOptions};
pub use self::parameters::{Parameters, State};
pub use self::run::{TrainingRun, train};
pub use self::samples::{Encoder, LeftOut, Sample, Samples};
pub use self::schedule::Schedule;
pub use self::settings::{Setting, SettingFlag, SettingKind};
pub use self::summary::summary;
