//! `benchmark_quantized`: benchmarks a quantized model on the test documents and compares it with the base model.

use std::process::ExitCode;

use clap::Parser;

use super::session::NO_RECORD;
use super::{
    AdapterArgs, BenchmarkArgs, CommonArgs, EXIT_CODES_HELP, EXIT_OK, Session, print, print_folder_warnings,
    start,
};
use crate::benchmark::{
    BenchmarkRun, Pages, benchmark, comparison_table, quantized_folder, quantized_record, summary_table,
};
use crate::console::{Level, say};
use crate::quant::Method;
use crate::records::{self, Benchmark};
use crate::version::version;

/// Benchmark a quantized model on the test documents and compare it with the base model
///
/// Reads the pages in datasets/test_images and writes benchmarks/quantized_int4.json (benchmarks/quantized_awq.json with
/// --method awq), then prints a comparison with benchmarks/baseline_fp16.json. --model is the base model, whose quantized folder
/// is used, or a quantized folder.
#[derive(Parser)]
#[command(name = "benchmark_quantized", version = version(), after_help = EXIT_CODES_HELP)]
pub(super) struct Arguments {
    /// Quantization method to benchmark
    #[arg(
        long,
        value_name = "METHOD",
        env = "MVP_METHOD",
        default_value = "nf4",
        hide_env_values = true,
        help_heading = "Benchmark options"
    )]
    method: Method,
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
    let (common, method) = (&arguments.common, arguments.method);
    let project = common.project()?;
    let base = common.model_folder(&project)?;
    let model = quantized_folder(&project, &base.path, method)?;
    // Before the model is loaded, so that a broken record is reported at once.
    let baseline: Option<Benchmark> = records::read_if_present(&project.file(records::paths::BASELINE_FP16))?;
    let adapter = arguments.adapter.named(&project)?;
    print_folder_warnings(&model, adapter.as_deref());
    let mut record = {
        let session = Session::start(common.select_device()?, NO_RECORD)?;
        session.begin("loading the model");
        benchmark(&BenchmarkRun {
            project: &project,
            model,
            adapter,
            selected: &session.selected,
            precision: common.precision,
            options: &arguments.benchmark.options(),
            pages: Pages::Keep,
            progress: &|done, all| session.count("reading", "documents", done, all),
            stop: session.stop(),
        })?
    };
    record.quantization_method = Some(method.name().to_owned());
    let path = project.file(quantized_record(method));
    records::write(&path, &record)?;
    print(&format!(
        "{}written: {}\n",
        summary_table(&record),
        path.display()
    ))?;
    match &baseline {
        Some(baseline) => {
            let label = match method {
                Method::Nf4 => "NF4",
                Method::Awq => "AWQ",
            };
            let table = comparison_table(("FP16", baseline), (label, &record));
            print(&format!("\n{table}"))?;
        }
        None => say(
            Level::WARN,
            "no baseline to compare with; run benchmark_baseline first",
        ),
    }
    Ok(ExitCode::from(EXIT_OK))
}
