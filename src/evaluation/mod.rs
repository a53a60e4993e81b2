//! Evaluation: scoring of answers, held-out questions, metrics, and the regression gate for adapters.

mod bootstrap;
mod finetuned;
mod gate;
mod held_out;
mod items;
mod metrics;
mod scoring;
mod tables;
mod text;

pub use self::bootstrap::{Difference, paired_difference};
pub use self::finetuned::{Evaluation, FinetunedRun, evaluate, evaluation_cases};
pub use self::gate::{Scores, regression_gate};
pub use self::held_out::{HeldOut, HeldOutQuestion, HeldOutSplit};
pub use self::items::{ItemScore, answered_items, score_items};
pub use self::metrics::{AnswerScore, HeldOutMetrics, InstructionMetrics, ReadingMetrics};
pub use self::scoring::score;
pub use self::tables::{evaluation_table, recommendation_line};
pub use self::text::{ErrorRate, Numbers, character_errors, numbers, repetition_rate, word_errors};
