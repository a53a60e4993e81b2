//! `benchmark_baseline`: benchmarks the base model on the test documents.

use std::process::ExitCode;

use clap::Parser;

use super::session::NO_RECORD;
use super::{
    AdapterArgs, BenchmarkArgs, CommonArgs, EXIT_CODES_HELP, EXIT_OK, Session, print, print_folder_warnings,
    start,
};
use crate::benchmark::{BenchmarkRun, Pages, benchmark, summary_table};
use crate::records;
use crate::version::version;

/// Benchmark the base model on the test documents
///
/// Renders the five test documents to datasets/test_images, reads each and writes benchmarks/baseline_fp16.json: memory before
/// and after loading and at its peak, load time, latencies, time to first token, tokens per second, and how many of
/// the expected terms and values are in the answers. One warm-up page runs first and is not counted.
#[derive(Parser)]
#[command(name = "benchmark_baseline", version = version(), after_help = EXIT_CODES_HELP)]
pub(super) struct Arguments {
    #[command(flatten)]
    benchmark: BenchmarkArgs,
    #[command(flatten)]
    adapter: AdapterArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the program and returns its exit code.
pub(super) fn main() -> ExitCode {
    start(|arguments: &Arguments| &arguments.common, run)
}

fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let project = arguments.common.project()?;
    let model = arguments.common.model_folder(&project)?;
    let adapter = arguments.adapter.named(&project)?;
    print_folder_warnings(&model.path, adapter.as_deref());
    let record = {
        let session = Session::start(arguments.common.select_device()?, NO_RECORD)?;
        session.begin("loading the model");
        benchmark(&BenchmarkRun {
            project: &project,
            model: model.path,
            adapter,
            selected: &session.selected,
            precision: arguments.common.precision,
            options: &arguments.benchmark.options(),
            pages: Pages::Render,
            progress: &|done, all| session.count("reading", "documents", done, all),
            stop: session.stop(),
        })?
    };
    let path = project.file(records::paths::BASELINE_FP16);
    records::write(&path, &record)?;
    print(&format!(
        "{}written: {}\n",
        summary_table(&record),
        path.display()
    ))?;
    Ok(ExitCode::from(EXIT_OK))
}
