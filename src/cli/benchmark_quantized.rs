//! Measures a quantized model on the test documents and compares it with the base model.

use std::process::ExitCode;

use crate::benchmark::{
    BenchmarkArgs, BenchmarkRun, Pages, QuantizedBenchmark, benchmark, comparison_table, summary_table,
};
use crate::cli::{AdapterArgs, CommonArgs, EXIT_CODES_HELP, EXIT_OK, counted, fail, print, warn_of};
use crate::console::{Interrupt, Level, say, spinner};
use crate::records::{self, Benchmark};
use crate::version::version;
use anyhow::Context;
use clap::Parser;

const STOPPING: &str = "stopping after the next token, no record will be written";

/// Benchmark a quantized model on the test documents and compare it with the base model
///
/// Reads the pages in datasets/test_images and writes benchmarks/quantized_int4.json (benchmarks/quantized_awq.json with
/// --method awq), then prints a comparison with benchmarks/baseline_fp16.json. --model is the base model, whose quantized folder
/// is used, or a quantized folder.
#[derive(Parser)]
#[command(name = "benchmark_quantized", version = version(), after_help = EXIT_CODES_HELP)]
struct Arguments {
    #[command(flatten)]
    quantized: QuantizedBenchmark,
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
    let base = arguments.common.model_folder(&project)?;
    let model = arguments.quantized.folder(&project, &base.path)?;
    // Before the model is loaded: a broken record should not wait for that.
    let baseline: Option<Benchmark> = records::read_if_present(&project.file(records::paths::BASELINE_FP16))?;
    let adapter = arguments.adapter.named(&project)?;
    warn_of(&model, adapter.as_deref());
    let selected = arguments.common.select_device()?;
    let interrupt = Interrupt::install(STOPPING).context("cannot listen for Ctrl-C")?;
    let bar = spinner("loading the model");
    let record = benchmark(&BenchmarkRun {
        project: &project,
        model,
        adapter,
        selected: &selected,
        precision: arguments.common.precision.into(),
        args: &arguments.benchmark,
        pages: Pages::Keep,
        progress: &|done, all| counted(&bar, ("reading", "documents"), done, all),
        stop: interrupt.flag(),
    });
    bar.finish_and_clear();
    let record = arguments.quantized.named(record?);
    let path = project.file(arguments.quantized.record());
    records::write(&path, &record)?;
    print(&format!(
        "{}written: {}\n",
        summary_table(&record),
        path.display()
    ))?;
    match &baseline {
        Some(baseline) => {
            let quantized = (arguments.quantized.label(), &record);
            print(&format!("\n{}", comparison_table(("FP16", baseline), quantized)))?;
        }
        None => say(
            Level::WARN,
            "no baseline to compare with; run benchmark_baseline first",
        ),
    }
    Ok(ExitCode::from(EXIT_OK))
}
