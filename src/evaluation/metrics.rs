//! Metrics aggregated over answers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::held_out::HeldOutQuestion;
use super::{ErrorRate, ItemScore, Numbers, character_errors, repetition_rate, score_items, word_errors};
use crate::records::{percent, round_to};

/// Scores of one answer.
#[derive(Debug, Clone)]
pub struct AnswerScore {
    task: String,
    style: String,
    clean: bool,
    characters: ErrorRate,
    words: ErrorRate,
    numbers: Numbers,
    repetition: f64,
    items: Option<ItemScore>,
}

impl AnswerScore {
    /// Scores `answer`.
    pub fn of(question: &HeldOutQuestion, answer: &str) -> Self {
        let (expected, page) = (&question.expected, &question.page);
        Self {
            task: question.task.clone(),
            style: question.style.clone(),
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

    /// F1 of its items, or for a transcription 1 - character error rate, at least 0; percent.
    pub fn percent(&self) -> f64 {
        match &self.items {
            Some(items) => items.f1() * 100.0,
            None => (1.0 - self.characters.rate()).max(0.0) * 100.0,
        }
    }

    /// Whether it is a transcription of a clean page, which the base model does well.
    pub(super) fn is_clean_reading(&self) -> bool {
        self.clean && self.items.is_none()
    }

    pub(super) fn characters(&self) -> ErrorRate {
        self.characters
    }
}

/// Metrics of transcriptions.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ReadingMetrics {
    /// Number of pages.
    pub samples: u64,
    /// Character error rate over all pages, percent.
    pub character_error_rate_pct: f64,
    /// Word error rate over all pages, percent.
    pub word_error_rate_pct: f64,
    /// Recall of the pages' numbers, percent; null if there are none.
    pub exact_number_recall_pct: Option<f64>,
    /// Numbers in the answers that are not on their pages.
    pub hallucinated_numbers: u64,
    /// Mean fraction of repeated 4-grams, percent.
    pub repetition_rate_pct: f64,
}

/// Metrics of questions about parts of pages.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct InstructionMetrics {
    /// Number of questions.
    pub samples: u64,
    /// Number of expected items.
    pub items_expected: u64,
    /// Number of answered items.
    pub items_answered: u64,
    /// Precision, exact matches.
    pub precision_pct: Option<f64>,
    /// Recall, exact matches.
    pub recall_pct: Option<f64>,
    /// F1, exact matches.
    pub f1_pct: Option<f64>,
    /// F1 with near matches: all numbers and nine of ten characters correct.
    pub near_f1_pct: Option<f64>,
    /// Hallucinated items: not on the page in any form, percent of answered items.
    pub invented_items_pct: Option<f64>,
    /// Questions whose expected answer has no items.
    pub nothing_expected: u64,
    /// How many of these were answered with no items.
    pub nothing_answered: u64,
    /// Numbers in the answers that are not on their pages.
    pub hallucinated_numbers: u64,
    /// Mean fraction of repeated 4-grams, percent.
    pub repetition_rate_pct: f64,
}

/// Metrics of one model on the held-out questions.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct HeldOutMetrics {
    /// Mean of [`AnswerScore::percent`].
    pub mean_score_pct: f64,
    /// Transcriptions of all styles; null if there are none.
    pub reading: Option<ReadingMetrics>,
    /// By page style.
    pub reading_by_look: BTreeMap<String, ReadingMetrics>,
    /// Questions about parts of pages; null if there are none.
    pub instructions: Option<InstructionMetrics>,
    /// By task.
    pub instructions_by_task: BTreeMap<String, InstructionMetrics>,
}

impl HeldOutMetrics {
    /// Aggregates the scores of all answers.
    pub fn of(scores: &[AnswerScore]) -> Self {
        let (instructions, reading): (Vec<&AnswerScore>, Vec<&AnswerScore>) =
            scores.iter().partition(|score| score.items.is_some());
        let mean = scores.iter().map(AnswerScore::percent).sum::<f64>() / scores.len().max(1) as f64;
        Self {
            mean_score_pct: round_to(mean, 2),
            reading_by_look: grouped(&reading, |score| &score.style)
                .into_iter()
                .map(|(style, scores)| (style, reading_metrics(&scores)))
                .collect(),
            instructions_by_task: grouped(&instructions, |score| &score.task)
                .into_iter()
                .map(|(task, scores)| (task, instruction_metrics(&scores)))
                .collect(),
            reading: (!reading.is_empty()).then(|| reading_metrics(&reading)),
            instructions: (!instructions.is_empty()).then(|| instruction_metrics(&instructions)),
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

fn reading_metrics(scores: &[&AnswerScore]) -> ReadingMetrics {
    let (mut characters, mut words, mut numbers) =
        (ErrorRate::default(), ErrorRate::default(), Numbers::default());
    for score in scores {
        characters += score.characters;
        words += score.words;
        numbers += score.numbers;
    }
    ReadingMetrics {
        samples: scores.len() as u64,
        character_error_rate_pct: round_to(characters.rate() * 100.0, 2),
        word_error_rate_pct: round_to(words.rate() * 100.0, 2),
        exact_number_recall_pct: percent(numbers.found as f64, numbers.expected as f64),
        hallucinated_numbers: numbers.hallucinated,
        repetition_rate_pct: repetition(scores),
    }
}

fn instruction_metrics(scores: &[&AnswerScore]) -> InstructionMetrics {
    let mut sum = ItemScore::default();
    let mut figures = InstructionMetrics {
        samples: scores.len() as u64,
        repetition_rate_pct: repetition(scores),
        ..InstructionMetrics::default()
    };
    for score in scores {
        let items = score.items.unwrap_or_default();
        sum += items;
        figures.nothing_expected += u64::from(items.expected == 0);
        figures.nothing_answered += u64::from(items.expected == 0 && items.answered == 0);
        figures.hallucinated_numbers += score.numbers.hallucinated;
    }
    let share = |part: f64, whole: u64| (whole > 0).then(|| round_to(part * 100.0, 2));
    InstructionMetrics {
        items_expected: sum.expected,
        items_answered: sum.answered,
        precision_pct: share(sum.precision(), sum.answered),
        recall_pct: share(sum.recall(), sum.expected),
        f1_pct: share(sum.f1(), sum.expected + sum.answered),
        near_f1_pct: share(sum.near_f1(), sum.expected + sum.answered),
        invented_items_pct: share(sum.hallucination_rate(), sum.answered),
        ..figures
    }
}
