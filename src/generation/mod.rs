//! From logits to an answer: options, sampling, token masks, log-probabilities, stop rules, the guard against endless repetition.

mod choice;
mod device_greedy;
mod logprobs;
mod mask;
mod options;
mod repetition;
mod sampling;
mod stop;

pub use self::choice::{ChoiceExtras, TokenChooser};
pub use self::logprobs::{best, log_sum_exp};
pub use self::mask::{MaskSource, MaskWorker, TokenMask};
pub use self::options::{FinishReason, GenerationOptions, GenerationOverrides, RepetitionDetection};
pub use self::repetition::RepetitionGuard;
pub use self::sampling::Sampler;
pub use self::stop::{Released, StopStrings};
