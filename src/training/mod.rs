//! QLoRA fine-tuning: LoRA on a frozen base, quantized to four bits or not.
//!
//! [`train`] runs it: the samples of a prepared split ([`samples`]), shuffled and batched by seed and epoch ([`batches`]),
//! collated ([`collate`]) into the model's packed forward pass ([`crate::qwen2_5_vl::Packed`]), AdamW on flat buffers
//! ([`parameters`]), validation, checkpoints and logs. All randomness is a function of seed and step: a resumed run ends with
//! the same bytes as an uninterrupted one.

mod base;
mod batches;
mod checkpoints;
mod collate;
mod curve;
mod data;
mod events;
mod init;
mod loader;
mod log;
mod options;
mod parameters;
mod plan;
mod progress;
mod resume;
mod run;
mod samples;
mod schedule;
mod settings;
mod summary;
mod trainer;
mod validation;

pub use self::batches::{Batching, PageGroups, SampleInfo, StepPlan};
pub use self::options::{BaseKind, Preset, ScheduleKind, TrainingOptions};
pub use self::parameters::{Parameters, State};
pub use self::progress::{Progress, StepReport, Validation};
pub use self::run::{TrainingRun, train};
pub use self::samples::{Encoder, Sample, Samples, SkippedSamples};
pub use self::schedule::Schedule;
pub use self::settings::{Setting, SettingFlag, SettingKind};
pub use self::summary::summary;
