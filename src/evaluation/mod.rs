//! What a model is measured on: documents whose content is known, and how an answer about one is scored.

mod args;
mod bootstrap;
mod finetuned;
mod guard;
mod held_out;
mod items;
mod scoring;
mod tables;
mod tally;
mod text;

pub use self::args::EvaluationArgs;
pub use self::bootstrap::{Difference, paired_difference};
pub use self::finetuned::{Evaluation, FinetunedRun, evaluate};
pub use self::guard::{Scores, judge};
pub use self::held_out::{HeldOut, HeldOutQuestion, HeldOutSplit};
pub use self::items::{ItemScore, answered_items, score_items};
pub use self::scoring::score;
pub use self::tables::{evaluation_table, verdict_line};
pub use self::tally::{AnswerScore, HeldOutFigures, InstructionFigures, ReadingFigures};
pub use self::text::{Errors, Numbers, character_errors, numbers, repetition_rate, word_errors};
