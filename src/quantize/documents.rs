//! Accuracy of a model on the test documents, before and after quantization.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Watch, run::BaseRun};
use crate::benchmark::{BenchmarkOptions, BenchmarkRun, Pages, benchmark};
use crate::device::Precision;
use crate::fs::hex;
use crate::records::{Accuracy, InferenceResult, round_to};
use crate::{Error, Result};

/// Mean accuracy over documents with expected terms or values, percent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DocumentAccuracy {
    /// Number of these documents.
    pub documents: usize,
    /// Terms found.
    pub avg_term_accuracy_pct: f64,
    /// Values found.
    pub avg_value_accuracy_pct: f64,
    /// Mean of both.
    pub avg_combined_accuracy_pct: f64,
}

impl DocumentAccuracy {
    fn of(results: &[InferenceResult]) -> Self {
        let scores: Vec<&Accuracy> = results
            .iter()
            .filter_map(|result| result.accuracy.as_ref())
            .collect();
        let mean = |figure: fn(&Accuracy) -> f64| {
            let sum: f64 = scores.iter().map(|score| figure(score)).sum();
            round_to(sum / scores.len().max(1) as f64, 2)
        };
        Self {
            documents: scores.len(),
            avg_term_accuracy_pct: mean(|score| score.term_accuracy),
            avg_value_accuracy_pct: mean(|score| score.value_accuracy),
            avg_combined_accuracy_pct: mean(|score| score.combined_accuracy),
        }
    }
}

/// Measures the model in `dir` on the run's documents.
pub(super) fn document_accuracy(run: &BaseRun<'_>, dir: &Path, watch: Watch<'_>) -> Result<DocumentAccuracy> {
    let record = benchmark(&BenchmarkRun {
        project: run.project,
        model: dir.to_owned(),
        adapter: None,
        selected: run.selected,
        precision: Precision::Auto,
        options: &BenchmarkOptions {
            warm_up: false,
            ..run.documents.clone()
        },
        pages: Pages::Render,
        progress: &|done, all| match done {
            0 => (watch.total)(all as u64),
            _ => (watch.progress)(1),
        },
        stop: watch.stop,
    })?;
    Ok(DocumentAccuracy::of(&record.inference_results))
}

/// sha256 over the run's documents and the maximum answer length.
pub(super) fn documents_digest(run: &BaseRun<'_>) -> Result<String> {
    let documents = run.documents.load_documents()?;
    let text = serde_json::to_vec(&(documents, run.documents.max_new_tokens))
        .map_err(|error| Error::Internal(format!("the documents cannot be written as JSON: {error}")))?;
    Ok(hex(&Sha256::digest(&text)))
}
