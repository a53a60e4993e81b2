//! Benchmark of the fine-tuned model.

use std::path::Path;

use super::{BenchmarkArgs, BenchmarkRun, Pages, benchmark};
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
    let args = BenchmarkArgs {
        documents: documents.map(Path::to_owned),
        max_new_tokens: u32::try_from(run.case_tokens()).unwrap_or(u32::MAX),
        no_warm_up: false,
    };
    let mut record = benchmark(&BenchmarkRun {
        project,
        model: run.base.to_owned(),
        adapter: run.adapter.clone(),
        selected: run.selected,
        precision: run.precision,
        args: &args,
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
