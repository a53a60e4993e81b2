//! Scores of many answers, in one set of figures.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::held_out::HeldOutQuestion;
use super::{Errors, ItemScore, Numbers, character_errors, repetition_rate, score_items, word_errors};
use crate::records::{percent, round_to};

/// One answer's scores.
#[derive(Debug, Clone)]
pub struct AnswerScore {
    task: String,
    look: String,
    clean: bool,
    characters: Errors,
    words: Errors,
    numbers: Numbers,
    repetition: f64,
    items: Option<ItemScore>,
}

impl AnswerScore {
    /// Of an answer to a held-out question.
    pub fn of(question: &HeldOutQuestion, answer: &str) -> Self {
        let (expected, page) = (&question.expected, &question.page);
        Self {
            task: question.task.clone(),
            look: question.look.clone(),
            clean: question.is_clean(),
            characters: character_errors(expected, answer),
            words: word_errors(expected, answer),
            numbers: Numbers::of(expected, answer, page),
            repetition: repetition_rate(answer),
            items: question
                .items
                .as_ref()
                .map(|items| score_items(items, answer, page)),
        }
    }

    /// Percent: F1 of its items, or the characters that are right.
    pub fn percent(&self) -> f64 {
        match &self.items {
            Some(items) => items.f1() * 100.0,
            None => (1.0 - self.characters.rate()).max(0.0) * 100.0,
        }
    }

    /// The whole of a clean page was asked for: what the base does well.
    pub(super) fn is_clean_reading(&self) -> bool {
        self.clean && self.items.is_none()
    }

    pub(super) fn characters(&self) -> Errors {
        self.characters
    }
}

/// Whole pages, read.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ReadingFigures {
    /// Pages.
    pub samples: u64,
    /// Edits of all characters there should be.
    pub character_error_rate_pct: f64,
    /// Edits of all words.
    pub word_error_rate_pct: f64,
    /// Numbers that were read exactly, of all there are; null where there is none.
    pub exact_number_recall_pct: Option<f64>,
    /// Numbers in the answers that stand nowhere on their pages.
    pub hallucinated_numbers: u64,
    /// Mean share of the answers' four-word sequences that had been said before.
    pub repetition_rate_pct: f64,
}

/// Questions about parts of pages, answered.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct InstructionFigures {
    /// Questions.
    pub samples: u64,
    /// Items there should be.
    pub items_expected: u64,
    /// Items there are.
    pub items_answered: u64,
    /// Of the answered items, exactly right.
    pub precision_pct: Option<f64>,
    /// Of the expected items, exactly answered.
    pub recall_pct: Option<f64>,
    /// Of both.
    pub f1_pct: Option<f64>,
    /// The same, with items whose numbers are right and one character in ten wrong at most.
    pub near_f1_pct: Option<f64>,
    /// Of the answered items, not on the page in any form.
    pub invented_items_pct: Option<f64>,
    /// Questions about what the page has nothing of.
    pub nothing_expected: u64,
    /// Of these, how many were answered with no item.
    pub nothing_answered: u64,
    /// Numbers in the answers that stand nowhere on their pages.
    pub hallucinated_numbers: u64,
    /// Mean share of the answers' four-word sequences that had been said before.
    pub repetition_rate_pct: f64,
}

/// All held-out answers of one model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct HeldOutFigures {
    /// Mean over all answers of F1 (instructions) and of the characters that are right (whole pages).
    pub mean_score_pct: f64,
    /// Whole pages of every look; null where none was asked for.
    pub reading: Option<ReadingFigures>,
    /// By the pages' look.
    pub reading_by_look: BTreeMap<String, ReadingFigures>,
    /// Questions about parts; null where there was none.
    pub instructions: Option<InstructionFigures>,
    /// By task.
    pub instructions_by_task: BTreeMap<String, InstructionFigures>,
}

impl HeldOutFigures {
    /// Over all answers.
    pub fn of(scores: &[AnswerScore]) -> Self {
        let (instructions, reading): (Vec<&AnswerScore>, Vec<&AnswerScore>) =
            scores.iter().partition(|score| score.items.is_some());
        let mean = scores.iter().map(AnswerScore::percent).sum::<f64>() / scores.len().max(1) as f64;
        Self {
            mean_score_pct: round_to(mean, 2),
            reading_by_look: grouped(&reading, |score| &score.look)
                .into_iter()
                .map(|(look, scores)| (look, reading_figures(&scores)))
                .collect(),
            instructions_by_task: grouped(&instructions, |score| &score.task)
                .into_iter()
                .map(|(task, scores)| (task, instruction_figures(&scores)))
                .collect(),
            reading: (!reading.is_empty()).then(|| reading_figures(&reading)),
            instructions: (!instructions.is_empty()).then(|| instruction_figures(&instructions)),
        }
    }
}

fn grouped<'a>(
    scores: &[&'a AnswerScore],
    key: impl Fn(&AnswerScore) -> &String,
) -> BTreeMap<String, Vec<&'a AnswerScore>> {
    let mut groups: BTreeMap<String, Vec<&AnswerScore>> = BTreeMap::new();
    for score in scores {
        groups.entry(key(score).clone()).or_default().push(score);
    }
    groups
}

fn repetition(scores: &[&AnswerScore]) -> f64 {
    let sum: f64 = scores.iter().map(|score| score.repetition).sum();
    round_to(sum / scores.len().max(1) as f64 * 100.0, 2)
}

fn reading_figures(scores: &[&AnswerScore]) -> ReadingFigures {
    let (mut characters, mut words, mut numbers) = (Errors::default(), Errors::default(), Numbers::default());
    for score in scores {
        characters += score.characters;
        words += score.words;
        numbers += score.numbers;
    }
    ReadingFigures {
        samples: scores.len() as u64,
        character_error_rate_pct: round_to(characters.rate() * 100.0, 2),
        word_error_rate_pct: round_to(words.rate() * 100.0, 2),
        exact_number_recall_pct: percent(numbers.found as f64, numbers.expected as f64),
        hallucinated_numbers: numbers.hallucinated,
        repetition_rate_pct: repetition(scores),
    }
}

fn instruction_figures(scores: &[&AnswerScore]) -> InstructionFigures {
    let mut sum = ItemScore::default();
    let mut figures = InstructionFigures {
        samples: scores.len() as u64,
        repetition_rate_pct: repetition(scores),
        ..InstructionFigures::default()
    };
    for score in scores {
        let items = score.items.unwrap_or_default();
        sum += items;
        figures.nothing_expected += u64::from(items.expected == 0);
        figures.nothing_answered += u64::from(items.expected == 0 && items.answered == 0);
        figures.hallucinated_numbers += score.numbers.hallucinated;
    }
    let share = |part: f64, whole: u64| (whole > 0).then(|| round_to(part * 100.0, 2));
    InstructionFigures {
        items_expected: sum.expected,
        items_answered: sum.answered,
        precision_pct: share(sum.precision(), sum.answered),
        recall_pct: share(sum.recall(), sum.expected),
        f1_pct: share(sum.f1(), sum.expected + sum.answered),
        near_f1_pct: share(sum.near_f1(), sum.expected + sum.answered),
        invented_items_pct: share(sum.invented_share(), sum.answered),
        ..figures
    }
}
