//! Quantizes the base model to four bits.

use std::process::ExitCode;

use crate::benchmark::BenchmarkArgs;
use crate::cli::{CommonArgs, EXIT_CODES_HELP, EXIT_FAILURE, EXIT_OK, fail, print, warn_of};
use crate::console::{Interrupt, Level, progress};
use crate::quantize::{BaseRun, QuantizeArgs, Watch, quantize_base, summary};
use crate::version::version;
use anyhow::Context;
use clap::Parser;

const STOPPING: &str = "stopping after the current weight, finished work is kept";

/// Quantize the base model to 4 bits
///
/// Writes models/qwen25-vl-7b-bnb-nf4 and models/qwen25-vl-7b-awq-int4, which transformers loads as they are, and
/// benchmarks/quantization_info.json. Both are measured on calibration pages, and the more accurate one
/// becomes the active method. Interrupted runs resume; an existing folder made from
/// the same model with the same options is kept.
#[derive(Parser)]
#[command(name = "quantize_base", version = version(), after_help = EXIT_CODES_HELP)]
struct Arguments {
    #[command(flatten)]
    quantize: QuantizeArgs,
    #[command(flatten)]
    documents: BenchmarkArgs,
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
    let model = arguments.common.model_folder(&project)?.path;
    warn_of(&model, None);
    let selected = arguments.common.select_device()?;
    let interrupt = Interrupt::install(STOPPING).context("cannot listen for Ctrl-C")?;
    let bar = progress();
    let watch = Watch {
        stage: &|name, unit, count| bar.begin(name, unit, count),
        total: &|count| bar.set_length(count),
        progress: &|count| bar.inc(count),
        stop: interrupt.flag(),
    };
    let run = BaseRun {
        project: &project,
        model: &model,
        selected: &selected,
        method: arguments.quantize.method(),
        nf4: arguments.quantize.nf4(),
        awq: arguments.quantize.awq(),
        pages: arguments.quantize.calibration_pages(),
        measured_pages: arguments.quantize.measured_pages(),
        documents: &arguments.documents,
    };
    let info = quantize_base(&run, watch);
    bar.finish_and_clear();
    let info = info?;
    print(&summary(&info))?;
    Ok(ExitCode::from(if info.active_method.is_some() {
        EXIT_OK
    } else {
        EXIT_FAILURE
    }))
}
