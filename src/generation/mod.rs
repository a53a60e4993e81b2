//! From logits to an answer: options, sampling, stop rules, the guard against endless repetition.

mod options;
mod repetition;
mod sampling;
mod stop;

pub use self::options::{FinishReason, GenerationOptions, GenerationOverrides, RepetitionDetection};
pub use self::repetition::RepetitionGuard;
pub use self::sampling::Sampler;
pub use self::stop::{Released, StopStrings};
