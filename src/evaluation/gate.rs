//! Regression gate: an adapter is recommended, and attached by default, only if it reads no worse than its base model.

use super::{Difference, ErrorRate, metrics::AnswerScore, paired_difference};
use crate::lora::Recommendation;

/// Tolerated loss, percentage points.
const TOLERANCE: f64 = 0.5;
/// Tolerated loss of value accuracy on the evaluation cases, percentage points.
const VALUE_TOLERANCE: f64 = 2.0;
/// Minimum number of answers for which the lower bound of the confidence interval counts, too.
const MIN_SAMPLES_FOR_INTERVAL: u64 = 20;

/// Scores of one model; those of two models are compared pairwise.
#[derive(Debug, Clone, Copy)]
pub struct Scores<'a> {
    /// Combined accuracy of the evaluation cases, percent.
    pub cases: &'a [f64],
    /// Value accuracy of the evaluation cases, percent.
    pub values: &'a [f64],
    /// Scores of the held-out answers.
    pub held_out: &'a [AnswerScore],
}

/// Compares the scores without (`before`) and with the adapter (`after`).
pub fn regression_gate(before: Scores<'_>, after: Scores<'_>) -> Recommendation {
    let mut regressions = Vec::new();
    let mut passed = Vec::new();
    if let Some(cases) = paired_difference(before.cases, after.cases) {
        let text = format!(
            "accuracy on {} evaluation cases {}",
            cases.samples,
            change(mean(before.cases), mean(after.cases))
        );
        let values = paired_difference(before.values, after.values).map_or(0.0, |values| values.mean);
        if cases.mean < -TOLERANCE {
            regressions.push(text);
        } else if values < -VALUE_TOLERANCE {
            regressions.push(format!(
                "their values {}",
                change(mean(before.values), mean(after.values))
            ));
        } else {
            passed.push(text);
        }
    }
    let clean = [before, after].map(|scores| clean_error_rate(scores.held_out));
    if let [Some(before), Some(after)] = clean
        && after - before > TOLERANCE
    {
        regressions.push(format!(
            "character errors on clean pages {}",
            change(before, after)
        ));
    }
    let percents = [before, after].map(|scores| {
        scores
            .held_out
            .iter()
            .map(AnswerScore::percent)
            .collect::<Vec<_>>()
    });
    if let Some(difference) = paired_difference(&percents[0], &percents[1]) {
        let text = format!(
            "score of {} held-out answers {} ({:+.2} to {:+.2} points at 95 %)",
            difference.samples,
            change(mean(&percents[0]), mean(&percents[1])),
            difference.low,
            difference.high
        );
        if is_regression(&difference) {
            regressions.push(text)
        } else {
            passed.push(text)
        }
    }
    let recommended = regressions.is_empty();
    let reasons = if recommended { passed } else { regressions };
    Recommendation {
        recommended,
        reason: reasons.join("; "),
    }
}

fn is_regression(difference: &Difference) -> bool {
    difference.mean < -TOLERANCE
        || difference.samples >= MIN_SAMPLES_FOR_INTERVAL && difference.low < -TOLERANCE
}

fn clean_error_rate(scores: &[AnswerScore]) -> Option<f64> {
    let mut errors = ErrorRate::default();
    let mut any = false;
    for score in scores.iter().filter(|score| score.is_clean_reading()) {
        errors += score.characters();
        any = true;
    }
    any.then(|| errors.rate() * 100.0)
}

fn mean(figures: &[f64]) -> f64 {
    figures.iter().sum::<f64>() / figures.len().max(1) as f64
}

fn change(before: f64, after: f64) -> String {
    format!("{before:.2} -> {after:.2} %")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cases<'a>(cases: &'a [f64], values: &'a [f64]) -> Scores<'a> {
        Scores {
            cases,
            values,
            held_out: &[],
        }
    }

    #[test]
    fn gains_are_recommended_and_losses_are_not() {
        let before = [99.0, 98.0, 100.0];
        assert!(regression_gate(cases(&before, &before), cases(&before, &before)).recommended);
        let gained = regression_gate(cases(&before, &before), cases(&[99.5, 99.0, 100.0], &before));
        assert!(
            gained.recommended && gained.reason.contains("99.00 -> 99.50 %"),
            "{}",
            gained.reason
        );
        let lost = regression_gate(cases(&before, &before), cases(&[99.0, 90.0, 100.0], &before));
        assert!(
            !lost.recommended && lost.reason.contains("99.00 -> 96.33 %"),
            "{}",
            lost.reason
        );
        let values = regression_gate(cases(&before, &before), cases(&before, &[99.0, 90.0, 100.0]));
        assert!(
            !values.recommended && values.reason.contains("their values"),
            "{}",
            values.reason
        );
    }

    #[test]
    fn a_loss_of_less_than_half_a_point_is_tolerated() {
        let before = [99.0; 5];
        assert!(regression_gate(cases(&before, &before), cases(&[98.6; 5], &before)).recommended);
        assert!(!regression_gate(cases(&before, &before), cases(&[98.4; 5], &before)).recommended);
    }
}
