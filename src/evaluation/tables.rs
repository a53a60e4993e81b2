//! Tables that `evaluate_finetuned` prints.

use std::fmt::Write;

use serde::de::DeserializeOwned;

use super::metrics::{HeldOutMetrics, InstructionMetrics, ReadingMetrics};
use crate::lora::Recommendation;
use crate::records::{EvaluatedModel, EvaluationFinetuned};

const UNKNOWN: &str = "n/a";

/// Cases, their means, and held-out metrics, with columns base, fine-tuned, change.
pub fn evaluation_table(record: &EvaluationFinetuned) -> String {
    let tuned = record.finetuned_model.as_ref();
    let mut table = Table::new();
    table.section("terms and values read, %");
    for result in &record.base_model.eval_results {
        let accuracy = |model: &EvaluatedModel| {
            let same = model
                .eval_results
                .iter()
                .find(|other| other.test_id == result.test_id)?;
            Some(same.accuracy.as_ref()?.combined_accuracy)
        };
        table.row(
            &result.test_id,
            accuracy(&record.base_model),
            tuned.and_then(accuracy),
        );
    }
    let summary = |model: &EvaluatedModel, key: &str| {
        let summary = model.summary.as_ref()?;
        match key {
            "" => summary.avg_combined_accuracy_pct,
            key => summary.extra.get(key)?.as_f64(),
        }
    };
    for (name, key) in [
        ("all cases", ""),
        ("character errors, %", "avg_character_error_rate_pct"),
        ("numbers read exactly, %", "avg_exact_number_recall_pct"),
        ("hallucinated numbers", "hallucinated_numbers"),
    ] {
        let of = |model| summary(model, key);
        table.row(name, of(&record.base_model), tuned.and_then(of));
    }
    if let Some(before) = held_out(&record.base_model) {
        let after = tuned.and_then(held_out).unwrap_or_default();
        held_out_rows(&mut table, &before, &after, tuned.is_some());
    }
    table.text
}

fn held_out(model: &EvaluatedModel) -> Option<HeldOutMetrics> {
    from_extra(model.extra.get("held_out")?)
}

fn from_extra<T: DeserializeOwned>(value: &serde_json::Value) -> Option<T> {
    serde_json::from_value(value.clone()).ok()
}

fn held_out_rows(table: &mut Table, before: &HeldOutMetrics, after: &HeldOutMetrics, tuned: bool) {
    let shown = |figure: Option<f64>| figure.filter(|_| tuned);
    table.section("held-out pages, read whole: character errors, %");
    let errors = |figures: &ReadingMetrics| figures.character_error_rate_pct;
    for (style, figures) in &before.reading_by_look {
        let same = after.reading_by_look.get(style).map(errors);
        table.row(
            &format!("{style} ({})", figures.samples),
            Some(errors(figures)),
            shown(same),
        );
    }
    table.row(
        "all",
        before.reading.as_ref().map(errors),
        shown(after.reading.as_ref().map(errors)),
    );
    table.section("held-out questions: F1 of the items, %");
    let f1 = |figures: &InstructionMetrics| figures.f1_pct;
    for (task, figures) in &before.instructions_by_task {
        let same = after.instructions_by_task.get(task).and_then(f1);
        table.row(&format!("{task} ({})", figures.samples), f1(figures), shown(same));
    }
    type Figure = fn(&InstructionMetrics) -> Option<f64>;
    let all: [(&str, Figure); 5] = [
        ("all", |figures| figures.f1_pct),
        ("precision", |figures| figures.precision_pct),
        ("recall", |figures| figures.recall_pct),
        ("F1, one letter in ten forgiven", |figures| figures.near_f1_pct),
        ("hallucinated items, %", |figures| figures.invented_items_pct),
    ];
    for (name, figure) in all {
        let of = |figures: &HeldOutMetrics| figures.instructions.as_ref().and_then(figure);
        table.row(name, of(before), shown(of(after)));
    }
}

struct Table {
    text: String,
}

impl Table {
    fn new() -> Self {
        let text = format!("{:46} {:>10} {:>10} {:>10}\n", "", "base", "fine-tuned", "change");
        Self { text }
    }

    fn section(&mut self, name: &str) {
        let _ = writeln!(self.text, "{name}");
    }

    fn row(&mut self, name: &str, before: Option<f64>, after: Option<f64>) {
        let figure =
            |value: Option<f64>| value.map_or_else(|| UNKNOWN.to_owned(), |value| format!("{value:.2}"));
        let change = before.zip(after).map(|(before, after)| after - before);
        let change = change.map_or_else(|| UNKNOWN.to_owned(), |change| format!("{change:+.2}"));
        let _ = writeln!(
            self.text,
            "  {name:44} {:>10} {:>10} {change:>10}",
            figure(before),
            figure(after)
        );
    }
}

/// The recommendation in one line; in red if it is negative and `coloured` is set.
pub fn recommendation_line(recommendation: &Recommendation, coloured: bool) -> String {
    let (red, plain) = if coloured {
        ("\u{1b}[31m", "\u{1b}[0m")
    } else {
        ("", "")
    };
    match recommendation.recommended {
        true => format!("recommended: {}\n", recommendation.reason),
        false => format!(
            "{red}NOT recommended: {}; extract and server leave it out unless --adapter names it{plain}\n",
            recommendation.reason
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_negative_recommendation_is_red() {
        let recommendation = |recommended| Recommendation {
            recommended,
            reason: "why".to_owned(),
        };
        assert!(
            recommendation_line(&recommendation(false), true).starts_with("\u{1b}[31mNOT recommended: why")
        );
        assert!(!recommendation_line(&recommendation(false), false).contains('\u{1b}'));
        assert_eq!(
            recommendation_line(&recommendation(true), true),
            "recommended: why\n"
        );
    }
}
