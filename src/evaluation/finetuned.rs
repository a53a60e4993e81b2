//! Evaluates a base model and its adapter on the same pages.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde_json::{Value, json};

use super::{
    Numbers, character_errors,
    gate::{Scores, regression_gate},
    held_out::HeldOut,
    metrics::{AnswerScore, HeldOutMetrics},
    paired_difference, repetition_rate, score, word_errors,
};
use crate::device::{Precision, Selected};
use crate::engine::{LoadOptions, ReadRequest, Reader, Reading};
use crate::generation::FinishReason;
use crate::lora::Recommendation;
use crate::processing::RgbPage;
use crate::project::Project;
use crate::records::{
    Accuracy, AccuracyDelta, EvaluatedModel, EvaluationFinetuned, EvaluationResult, EvaluationSummary, Extra,
    GpuMemory, MemoryFigure, percent, round_to, seconds,
};
use crate::rendering::EVALUATION_PAGE;
use crate::test_documents::{DocumentSet, TestDocument};
use crate::torch::reset_allocator_peak;
use crate::{Error, Result};

/// Maximum number of new tokens per answer: about a case, as in the original project, and about a held-out page, the embedded
/// model's limit.
const CASE_TOKENS: usize = 512;
const HELD_OUT_TOKENS: usize = 640;

/// What to evaluate.
pub struct FinetunedRun<'a> {
    /// Folder of the quantized base model.
    pub base: &'a Path,
    /// Folder of the adapter; `None` evaluates the base alone.
    pub adapter: Option<PathBuf>,
    /// Device.
    pub selected: &'a Selected,
    /// Compute dtype.
    pub precision: Precision,
    /// The evaluation cases.
    pub cases: &'a [TestDocument],
    /// Held-out questions.
    pub held_out: Option<&'a HeldOut>,
    /// Maximum number of new tokens per answer; `None`: 512, for held-out pages 640, which dense ones need.
    pub max_new_tokens: Option<usize>,
    /// Called with the number of answers so far and in total.
    pub progress: &'a dyn Fn(usize, usize),
    /// Cancels after the next token; no record is made.
    pub stop: &'a AtomicBool,
}

impl FinetunedRun<'_> {
    /// Maximum number of new tokens per answer about a case or a test document.
    pub fn case_tokens(&self) -> usize {
        self.max_new_tokens.unwrap_or(CASE_TOKENS)
    }
}

/// Loads the evaluation cases from the JSON file `documents`, or the five built-in ones, and writes their pages to
/// `datasets/eval_images`.
///
/// # Errors
/// [`Error::InvalidFile`] for a file that is not a set of documents, [`Error::Io`] if a page cannot be written.
pub fn evaluation_cases(project: &Project, documents: Option<&Path>) -> Result<Vec<TestDocument>> {
    let cases = match documents {
        Some(path) => DocumentSet::load(path)?,
        None => DocumentSet::evaluation(),
    };
    cases.write_pages(&project.file("datasets/eval_images"), EVALUATION_PAGE)?;
    Ok(cases.documents)
}

/// Result of an evaluation.
pub struct Evaluation {
    /// `benchmarks/evaluation_finetuned.json`.
    pub record: EvaluationFinetuned,
    /// Whether to use the adapter; `None` without one.
    pub recommendation: Option<Recommendation>,
}

/// Scored answers of one model.
struct ModelAnswers {
    model: EvaluatedModel,
    held_out: Vec<AnswerScore>,
}

impl ModelAnswers {
    fn accuracies(&self, figure: fn(&Accuracy) -> f64) -> Vec<f64> {
        let accuracies = self
            .model
            .eval_results
            .iter()
            .filter_map(|result| result.accuracy.as_ref());
        accuracies.map(figure).collect()
    }
}

/// Reads every case and every held-out page with the base model, then with the adapter attached.
pub fn evaluate(run: &FinetunedRun<'_>) -> Result<Evaluation> {
    let questions = run.held_out.map_or(0, |held_out| held_out.questions.len());
    let all = (run.cases.len() + questions) * if run.adapter.is_some() { 2 } else { 1 };
    let done = std::cell::Cell::new(0);
    let step = || {
        done.set(done.get() + 1);
        (run.progress)(done.get(), all);
    };
    (run.progress)(0, all);
    let base = examine(run, None, &step)?;
    let tuned = match &run.adapter {
        Some(adapter) => Some(examine(run, Some(adapter), &step)?),
        None => None,
    };
    let recommendation = tuned.as_ref().map(|tuned| recommendation(&base, tuned));
    let extra = extra(run, &base, tuned.as_ref(), recommendation.as_ref());
    Ok(Evaluation {
        record: EvaluationFinetuned {
            phase: Some("evaluate_finetuned".to_owned()),
            eval_test_cases: Some(run.cases.len() as u64),
            accuracy_delta: tuned.as_ref().map(|tuned| delta(&base.model, &tuned.model)),
            base_model: base.model,
            finetuned_model: tuned.map(|tuned| tuned.model),
            extra,
        },
        recommendation,
    })
}

fn examine(run: &FinetunedRun<'_>, adapter: Option<&Path>, step: &dyn Fn()) -> Result<ModelAnswers> {
    let device = run.selected.device;
    reset_allocator_peak(device);
    let start = Instant::now();
    let options = LoadOptions {
        device,
        precision: run.precision,
        adapter: adapter.map(Path::to_owned),
        ..LoadOptions::default()
    };
    let reader = Reader::load(run.base, &options)?;
    let load_time = start.elapsed().as_secs_f64();
    let memory = || GpuMemory::of(device);
    let post_load = memory();
    let kind = post_load
        .as_ref()
        .and_then(|memory| memory.memory_kind())
        .map(str::to_owned);
    let mut eval_results = Vec::new();
    for case in run.cases {
        let page = case.page(EVALUATION_PAGE);
        let reading = ask(&reader, &case.prompt, page, run.case_tokens(), run.stop)?;
        let allocated = memory().map(|memory| MemoryFigure::Megabytes(memory.allocated_mb));
        eval_results.push(case_result(case, reading, allocated));
        step();
    }
    let mut held_out = Vec::new();
    for question in run
        .held_out
        .map(|held_out| held_out.questions.as_slice())
        .unwrap_or_default()
    {
        let limit = run.max_new_tokens.unwrap_or(HELD_OUT_TOKENS);
        let reading = ask(&reader, &question.prompt, question.image()?, limit, run.stop)?;
        held_out.push(AnswerScore::of(question, &reading.text));
        step();
    }
    let mut extra = Extra::new();
    if let Some(kind) = kind {
        // The memory figures are plain numbers; this key says that they are not GPU memory.
        extra.insert("memory_kind".to_owned(), json!(kind));
    }
    if run.held_out.is_some() {
        extra.insert("held_out".to_owned(), json!(HeldOutMetrics::of(&held_out)));
    }
    Ok(ModelAnswers {
        model: EvaluatedModel {
            label: match adapter {
                None => format!("Base {}", reader.info().precision),
                Some(_) => format!("Fine-tuned {} + LoRA", reader.info().precision),
            },
            adapter_path: adapter.map(|adapter| adapter.display().to_string()),
            load_time_seconds: Some(seconds(load_time)),
            vram_post_load_mb: post_load.map(|memory| MemoryFigure::Megabytes(memory.allocated_mb)),
            vram_peak_mb: memory().map(|memory| MemoryFigure::Megabytes(memory.max_allocated_mb)),
            summary: Some(summary(&eval_results)),
            eval_results,
            extra,
        },
        held_out,
    })
}

/// Answers one prompt greedily, so that runs are reproducible.
fn ask(reader: &Reader, prompt: &str, page: RgbPage, limit: usize, stop: &AtomicBool) -> Result<Reading> {
    let mut request = ReadRequest::page(prompt, page);
    request.overrides.max_new_tokens = Some(limit);
    request.overrides.temperature = Some(0.0);
    let reading = reader.read(&request, &mut |_| match stop.load(Ordering::Relaxed) {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    })?;
    match reading.finish_reason {
        FinishReason::Cancelled => Err(Error::Interrupted),
        _ => Ok(reading),
    }
}

fn case_result(
    case: &TestDocument,
    reading: Reading,
    gpu_memory_mb: Option<MemoryFigure>,
) -> EvaluationResult {
    let page = format!("{}\n{}", case.title, case.content.join("\n"));
    let answer = &reading.text;
    let numbers = Numbers::of(&page, answer, &page);
    let rate = |rate: f64| round_to(rate * 100.0, 2);
    let figures = json!({
        "character_error_rate_pct": rate(character_errors(&page, answer).rate()),
        "word_error_rate_pct": rate(word_errors(&page, answer).rate()),
        "exact_number_recall_pct": percent(numbers.found as f64, numbers.expected as f64),
        "hallucinated_numbers": numbers.hallucinated,
        "repetition_rate_pct": rate(repetition_rate(answer)),
        "finish_reason": reading.finish_reason,
    });
    EvaluationResult {
        test_id: case.id.clone(),
        image: case.filename.clone(),
        prompt: case.prompt.clone(),
        latency_seconds: seconds(reading.latency_seconds),
        accuracy: Some(score(answer, &case.expected_terms, &case.expected_values)),
        gpu_memory_mb,
        extra: match figures {
            Value::Object(figures) => figures,
            _ => Extra::new(),
        },
        response: reading.text,
    }
}

fn summary(results: &[EvaluationResult]) -> EvaluationSummary {
    let latencies = || results.iter().map(|result| result.latency_seconds);
    let mean = |figures: Vec<f64>| {
        let sum: f64 = figures.iter().sum();
        (!figures.is_empty()).then(|| sum / figures.len() as f64)
    };
    let accuracy = |figure: fn(&Accuracy) -> f64| {
        let figures = results
            .iter()
            .filter_map(|result| result.accuracy.as_ref())
            .map(figure);
        mean(figures.collect()).map(|mean| round_to(mean, 2))
    };
    let figure = |key: &str| {
        let figures = results
            .iter()
            .filter_map(|result| result.extra.get(key)?.as_f64());
        mean(figures.collect()).map(|mean| round_to(mean, 2))
    };
    let mut extra = Extra::new();
    for key in [
        "character_error_rate_pct",
        "word_error_rate_pct",
        "exact_number_recall_pct",
        "repetition_rate_pct",
    ] {
        extra.insert(format!("avg_{key}"), json!(figure(key)));
    }
    let hallucinated: u64 = results
        .iter()
        .filter_map(|result| result.extra.get("hallucinated_numbers")?.as_u64())
        .sum();
    extra.insert("hallucinated_numbers".to_owned(), hallucinated.into());
    EvaluationSummary {
        avg_latency_seconds: mean(latencies().collect()).map(seconds),
        min_latency_seconds: latencies().min_by(f64::total_cmp),
        max_latency_seconds: latencies().max_by(f64::total_cmp),
        avg_term_accuracy_pct: accuracy(|accuracy| accuracy.term_accuracy),
        avg_value_accuracy_pct: accuracy(|accuracy| accuracy.value_accuracy),
        avg_combined_accuracy_pct: accuracy(|accuracy| accuracy.combined_accuracy),
        extra,
    }
}

fn delta(base: &EvaluatedModel, tuned: &EvaluatedModel) -> AccuracyDelta {
    let of = |figure: fn(&EvaluationSummary) -> Option<f64>| {
        let (base, tuned) = (figure(base.summary.as_ref()?)?, figure(tuned.summary.as_ref()?)?);
        Some(round_to(tuned - base, 2))
    };
    AccuracyDelta {
        term_accuracy_delta_pct: of(|summary| summary.avg_term_accuracy_pct),
        value_accuracy_delta_pct: of(|summary| summary.avg_value_accuracy_pct),
        combined_accuracy_delta_pct: of(|summary| summary.avg_combined_accuracy_pct),
        extra: Extra::new(),
    }
}

fn recommendation(base: &ModelAnswers, tuned: &ModelAnswers) -> Recommendation {
    let figures = [base, tuned].map(|examined| {
        (
            examined.accuracies(|accuracy| accuracy.combined_accuracy),
            examined.accuracies(|accuracy| accuracy.value_accuracy),
        )
    });
    let [before, after] =
        [(base, &figures[0]), (tuned, &figures[1])].map(|(examined, (cases, values))| Scores {
            cases,
            values,
            held_out: &examined.held_out,
        });
    regression_gate(before, after)
}

/// Keys beyond the original project's: held-out source, confidence intervals, recommendation.
fn extra(
    run: &FinetunedRun<'_>,
    base: &ModelAnswers,
    tuned: Option<&ModelAnswers>,
    recommendation: Option<&Recommendation>,
) -> Extra {
    let mut extra = Extra::new();
    if let Some(held_out) = run.held_out {
        let about = json!({
            "source": held_out.source,
            "samples": held_out.questions.len(),
            "samples_in_split": held_out.available,
            "pictures_left_out": held_out.pictures,
        });
        extra.insert("held_out".to_owned(), about);
    }
    if let Some(tuned) = tuned {
        let [before, after] =
            [base, tuned].map(|examined| examined.accuracies(|accuracy| accuracy.combined_accuracy));
        let cases = paired_difference(&before, &after);
        extra.insert("combined_accuracy_difference".to_owned(), json!(cases));
        let [before, after] = [base, tuned].map(|examined| {
            examined
                .held_out
                .iter()
                .map(AnswerScore::percent)
                .collect::<Vec<_>>()
        });
        let answers = paired_difference(&before, &after);
        extra.insert("held_out_score_difference".to_owned(), json!(answers));
    }
    if let Some(recommendation) = recommendation {
        extra.insert("recommended".to_owned(), recommendation.recommended.into());
        extra.insert(
            "recommendation_reason".to_owned(),
            recommendation.reason.clone().into(),
        );
    }
    extra
}
