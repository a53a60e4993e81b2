//! Measures the base model on the test documents.

use std::process::ExitCode;

use crate::benchmark::{BenchmarkArgs, BenchmarkRun, Pages, benchmark, summary_table};
use crate::cli::{AdapterArgs, CommonArgs, EXIT_CODES_HELP, EXIT_OK, counted, fail, print, warn_of};
use crate::console::{Interrupt, Level, spinner};
use crate::records;
use crate::version::version;
use anyhow::Context;
use clap::Parser;

const STOPPING: &str = "stopping after the next token, no record will be written";

/// Benchmark the base model on the test documents
///
/// Renders the five test documents to datasets/test_images, reads each and writes benchmarks/baseline_fp16.json: memory before
/// and after loading and at its peak, load time, latencies, time to first token, tokens per second, and how many of
/// the expected terms and values are in the answers. One warm-up page runs first and is not counted.
#[derive(Parser)]
#[command(name = "benchmark_baseline", version = version(), after_help = EXIT_CODES_HELP)]
struct Arguments {
    #[command(flatten)]
    benchmark: BenchmarkArgs,
    #[command(flatten)]
    adapter: AdapterArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the program; its exit code.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    arguments.common.start_logging(Level::WARN);
    run(&arguments).unwrap_or_else(|error| fail(&error))
}

fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let project = arguments.common.project()?;
    let model = arguments.common.model_folder(&project)?;
    let adapter = arguments.adapter.named(&project)?;
    warn_of(&model.path, adapter.as_deref());
    let selected = arguments.common.select_device()?;
    let interrupt = Interrupt::install(STOPPING).context("cannot listen for Ctrl-C")?;
    let bar = spinner("loading the model");
    let record = benchmark(&BenchmarkRun {
        project: &project,
        model: model.path,
        adapter,
        selected: &selected,
        precision: arguments.common.precision.into(),
        args: &arguments.benchmark,
        pages: Pages::Draw,
        progress: &|done, all| counted(&bar, ("reading", "documents"), done, all),
        stop: interrupt.flag(),
    });
    bar.finish_and_clear();
    let record = record?;
    let path = project.file(records::paths::BASELINE_FP16);
    records::write(&path, &record)?;
    print(&format!(
        "{}written: {}\n",
        summary_table(&record),
        path.display()
    ))?;
    Ok(ExitCode::from(EXIT_OK))
}
