//! `benchmarks/evaluation_finetuned.json`: base model and adapter on the evaluation cases.

use serde::{Deserialize, Serialize};

use super::{Extra, MemoryFigure};

/// Both models on the evaluation cases.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluationFinetuned {
    /// The pipeline's name of this step.
    pub phase: Option<String>,
    /// Number of cases.
    pub eval_test_cases: Option<u64>,
    /// Without the adapter.
    pub base_model: EvaluatedModel,
    /// With it; null if there is none yet.
    pub finetuned_model: Option<EvaluatedModel>,
    /// Fine-tuned minus base.
    pub accuracy_delta: Option<AccuracyDelta>,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}

/// One model on the evaluation cases.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluatedModel {
    /// Its name in the tables.
    pub label: String,
    /// The adapter, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter_path: Option<String>,
    /// Time to load the model, seconds.
    pub load_time_seconds: Option<f64>,
    /// GPU memory after loading.
    pub vram_post_load_mb: Option<MemoryFigure>,
    /// Peak GPU memory.
    pub vram_peak_mb: Option<MemoryFigure>,
    /// One per case.
    pub eval_results: Vec<EvaluationResult>,
    /// Over the cases.
    pub summary: Option<EvaluationSummary>,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}

/// One case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluationResult {
    /// The case's id.
    pub test_id: String,
    /// File name of the page.
    pub image: String,
    /// Prompt.
    pub prompt: String,
    /// Generated text.
    pub response: String,
    /// From decoded page to the last token, seconds.
    pub latency_seconds: f64,
    /// The answer's score.
    pub accuracy: Option<Accuracy>,
    /// GPU memory after the case.
    pub gpu_memory_mb: Option<MemoryFigure>,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Recall of a document's expected terms and values in an answer: percent, 2 decimals.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Accuracy {
    /// `terms_found` of `terms_total`.
    pub term_accuracy: f64,
    /// `values_found` of `values_total`.
    pub value_accuracy: f64,
    /// Their mean.
    pub combined_accuracy: f64,
    /// Expected terms that occur in the answer.
    pub terms_found: u64,
    /// Expected terms.
    pub terms_total: u64,
    /// Those that are missing, sorted.
    pub terms_missed: Vec<String>,
    /// Expected values that occur in the answer.
    pub values_found: u64,
    /// Expected values.
    pub values_total: u64,
    /// Those that are missing, sorted.
    pub values_missed: Vec<String>,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Over all cases.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EvaluationSummary {
    /// Mean latency, seconds.
    pub avg_latency_seconds: Option<f64>,
    /// Shortest, seconds.
    pub min_latency_seconds: Option<f64>,
    /// Longest, seconds.
    pub max_latency_seconds: Option<f64>,
    /// Mean term accuracy, percent.
    pub avg_term_accuracy_pct: Option<f64>,
    /// Mean value accuracy, percent.
    pub avg_value_accuracy_pct: Option<f64>,
    /// Mean of both, percent.
    pub avg_combined_accuracy_pct: Option<f64>,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Fine-tuned minus base, percentage points.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AccuracyDelta {
    /// Terms.
    pub term_accuracy_delta_pct: Option<f64>,
    /// Values.
    pub value_accuracy_delta_pct: Option<f64>,
    /// Both.
    pub combined_accuracy_delta_pct: Option<f64>,
    /// Keys without a field.
    #[serde(flatten)]
    pub extra: Extra,
}
