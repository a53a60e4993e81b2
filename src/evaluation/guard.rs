//! Whether an adapter may be used without being asked for: it must read held-out pages no worse than its base.

use super::{Difference, Errors, paired_difference, tally::AnswerScore};
use crate::lora::Verdict;

/// Points of a percentage that an adapter may lose by chance.
const TOLERANCE: f64 = 0.5;
/// Points that the values of the evaluation cases may lose.
const VALUE_TOLERANCE: f64 = 2.0;
/// From so many answers on the lower end of the confidence interval counts, not the mean alone.
const ENOUGH: u64 = 20;

/// Both models' scores, pair by pair.
#[derive(Debug, Clone, Copy)]
pub struct Scores<'a> {
    /// Combined accuracy of the evaluation cases, percent.
    pub cases: &'a [f64],
    /// Their values' accuracy.
    pub values: &'a [f64],
    /// Held-out answers.
    pub held_out: &'a [AnswerScore],
}

/// The verdict on the adapter that made `after` of `before`.
pub fn judge(before: Scores<'_>, after: Scores<'_>) -> Verdict {
    let mut faults = Vec::new();
    let mut gains = Vec::new();
    if let Some(cases) = paired_difference(before.cases, after.cases) {
        let said = format!(
            "accuracy on {} evaluation cases {}",
            cases.samples,
            change(mean(before.cases), mean(after.cases))
        );
        let values = paired_difference(before.values, after.values).map_or(0.0, |values| values.mean);
        if cases.mean < -TOLERANCE {
            faults.push(said);
        } else if values < -VALUE_TOLERANCE {
            faults.push(format!(
                "their values {}",
                change(mean(before.values), mean(after.values))
            ));
        } else {
            gains.push(said);
        }
    }
    let clean = [before, after].map(|scores| clean_error_rate(scores.held_out));
    if let [Some(before), Some(after)] = clean
        && after - before > TOLERANCE
    {
        faults.push(format!(
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
        let said = format!(
            "score of {} held-out answers {} ({:+.2} to {:+.2} points at 95 %)",
            difference.samples,
            change(mean(&percents[0]), mean(&percents[1])),
            difference.low,
            difference.high
        );
        if is_worse(&difference) {
            faults.push(said)
        } else {
            gains.push(said)
        }
    }
    let recommended = faults.is_empty();
    let reasons = if recommended { gains } else { faults };
    Verdict {
        recommended,
        reason: reasons.join("; "),
    }
}

fn is_worse(difference: &Difference) -> bool {
    difference.mean < -TOLERANCE || difference.samples >= ENOUGH && difference.low < -TOLERANCE
}

fn clean_error_rate(scores: &[AnswerScore]) -> Option<f64> {
    let mut errors = Errors::default();
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
    fn no_change_and_a_gain_are_recommended_and_a_loss_is_not() {
        let before = [99.0, 98.0, 100.0];
        assert!(judge(cases(&before, &before), cases(&before, &before)).recommended);
        let gained = judge(cases(&before, &before), cases(&[99.5, 99.0, 100.0], &before));
        assert!(
            gained.recommended && gained.reason.contains("99.00 -> 99.50 %"),
            "{}",
            gained.reason
        );
        let lost = judge(cases(&before, &before), cases(&[99.0, 90.0, 100.0], &before));
        assert!(
            !lost.recommended && lost.reason.contains("99.00 -> 96.33 %"),
            "{}",
            lost.reason
        );
        let values = judge(cases(&before, &before), cases(&before, &[99.0, 90.0, 100.0]));
        assert!(
            !values.recommended && values.reason.contains("their values"),
            "{}",
            values.reason
        );
    }

    #[test]
    fn a_loss_of_less_than_half_a_point_is_chance() {
        let before = [99.0; 5];
        assert!(judge(cases(&before, &before), cases(&[98.6; 5], &before)).recommended);
        assert!(!judge(cases(&before, &before), cases(&[98.4; 5], &before)).recommended);
    }
}
