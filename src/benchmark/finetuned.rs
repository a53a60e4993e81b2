//! Benchmark of the fine-tuned model.

use std::path::Path;

use super::{BenchmarkOptions, BenchmarkRun, Pages, benchmark};
use crate::Result;
use crate::evaluation::FinetunedRun;
use crate::project::Project;
use crate::quant::{Method, Quantization};
use crate::records::Benchmark;

/// Makes `benchmarks/finetuned_standard_bench.json`: the model and adapter of an evaluation on `documents`, or on the five test
/// documents.
pub fn finetuned_benchmark(
    project: &Project,
    run: &FinetunedRun<'_>,
    documents: Option<&Path>,
) -> Result<Benchmark> {
    let options = BenchmarkOptions {
        documents: documents.map(Path::to_owned),
        max_new_tokens: run.case_tokens(),
        ..BenchmarkOptions::default()
    };
    let mut record = benchmark(&BenchmarkRun {
        project,
        model: run.base.to_owned(),
        adapter: run.adapter.clone(),
        selected: run.selected,
        precision: run.precision,
        options: &options,
        pages: Pages::Keep,
        progress: run.progress,
        stop: run.stop,
    })?;
    let method = match Quantization::from_dir(run.base)? {
        Quantization::None => None,
        Quantization::BitsAndBytes(_) => Some(Method::Nf4),
        Quantization::Awq(_) => Some(Method::Awq),
    };
    record.quantization_method = method.map(|method| method.name().to_owned());
    Ok(record)
}
