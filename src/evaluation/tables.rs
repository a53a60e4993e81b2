//! What `evaluate_finetuned` prints.

use std::fmt::Write;

use serde::de::DeserializeOwned;

use super::tally::{HeldOutFigures, InstructionFigures, ReadingFigures};
use crate::lora::Verdict;
use crate::records::{EvaluatedModel, EvaluationFinetuned};

const NOT_KNOWN: &str = "n/a";

/// The cases line by line, their means, and the held-out answers: base, fine-tuned, change.
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
        ("numbers made up", "hallucinated_numbers"),
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

fn held_out(model: &EvaluatedModel) -> Option<HeldOutFigures> {
    from_extra(model.extra.get("held_out")?)
}

fn from_extra<T: DeserializeOwned>(value: &serde_json::Value) -> Option<T> {
    serde_json::from_value(value.clone()).ok()
}

fn held_out_rows(table: &mut Table, before: &HeldOutFigures, after: &HeldOutFigures, tuned: bool) {
    let shown = |figure: Option<f64>| figure.filter(|_| tuned);
    table.section("held-out pages, read whole: character errors, %");
    let errors = |figures: &ReadingFigures| figures.character_error_rate_pct;
    for (look, figures) in &before.reading_by_look {
        let same = after.reading_by_look.get(look).map(errors);
        table.row(
            &format!("{look} ({})", figures.samples),
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
    let f1 = |figures: &InstructionFigures| figures.f1_pct;
    for (task, figures) in &before.instructions_by_task {
        let same = after.instructions_by_task.get(task).and_then(f1);
        table.row(&format!("{task} ({})", figures.samples), f1(figures), shown(same));
    }
    type Figure = fn(&InstructionFigures) -> Option<f64>;
    let all: [(&str, Figure); 5] = [
        ("all", |figures| figures.f1_pct),
        ("precision", |figures| figures.precision_pct),
        ("recall", |figures| figures.recall_pct),
        ("F1, one letter in ten forgiven", |figures| figures.near_f1_pct),
        ("invented items, %", |figures| figures.invented_items_pct),
    ];
    for (name, figure) in all {
        let of = |figures: &HeldOutFigures| figures.instructions.as_ref().and_then(figure);
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
            |value: Option<f64>| value.map_or_else(|| NOT_KNOWN.to_owned(), |value| format!("{value:.2}"));
        let change = before.zip(after).map(|(before, after)| after - before);
        let change = change.map_or_else(|| NOT_KNOWN.to_owned(), |change| format!("{change:+.2}"));
        let _ = writeln!(
            self.text,
            "  {name:44} {:>10} {:>10} {change:>10}",
            figure(before),
            figure(after)
        );
    }
}

/// The verdict in one line, in red where it is against the adapter and `coloured`.
pub fn verdict_line(verdict: &Verdict, coloured: bool) -> String {
    let (red, plain) = if coloured {
        ("\u{1b}[31m", "\u{1b}[0m")
    } else {
        ("", "")
    };
    match verdict.recommended {
        true => format!("recommended: {}\n", verdict.reason),
        false => format!(
            "{red}NOT recommended: {}; extract and server leave it out unless --adapter names it{plain}\n",
            verdict.reason
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_verdict_against_the_adapter_is_red() {
        let verdict = |recommended| Verdict {
            recommended,
            reason: "why".to_owned(),
        };
        assert!(verdict_line(&verdict(false), true).starts_with("\u{1b}[31mNOT recommended: why"));
        assert!(!verdict_line(&verdict(false), false).contains('\u{1b}'));
        assert_eq!(verdict_line(&verdict(true), true), "recommended: why\n");
    }
}
