//! Measures what fine-tuning made of a model: evaluation cases, held-out pages, test documents.

use std::io::IsTerminal;
use std::process::ExitCode;

use crate::benchmark::{finetuned_benchmark, three_way_table};
use crate::cli::{CommonArgs, EXIT_CODES_HELP, EXIT_OK, counted, fail, print, warn_of};
use crate::console::{Interrupt, Level, Unit, progress, say};
use crate::evaluation::{
    EvaluationArgs, FinetunedRun, HeldOut, evaluate, evaluation_table, recommendation_line,
};
use crate::lora::Recommendation;
use crate::records::{self, Benchmark, paths};
use crate::version::version;
use anyhow::Context;
use clap::Parser;

const STOPPING: &str = "stopping after the next token, no record will be written";

/// Evaluate the fine-tuned model against its base
///
/// Runs the quantized base with and without the adapter on the five evaluation cases and held-out pages and writes
/// benchmarks/evaluation_finetuned.json; also benchmarks the adapter on the test documents (finetuned_standard_bench.json), next
/// to benchmarks/baseline_fp16.json and quantized_int4.json. The adapter folder records whether the adapter is
/// recommended; extract and server attach one that is not recommended only when it is named with --adapter.
#[derive(Parser)]
#[command(name = "evaluate_finetuned", version = version(), after_help = EXIT_CODES_HELP)]
struct Arguments {
    #[command(flatten)]
    evaluation: EvaluationArgs,
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
    let (common, evaluation) = (&arguments.common, &arguments.evaluation);
    let project = common.project()?;
    let model = common.model_folder(&project)?.path;
    let adapter = evaluation.adapter(&project, &model)?;
    let base = evaluation.quantized(&project, &model)?;
    // Before the models are loaded: a broken record or split should not wait for that.
    let record = |path| records::read_if_present::<Benchmark>(&project.file(path));
    let (baseline, quantized) = (record(paths::BASELINE_FP16)?, record(paths::QUANTIZED_INT4)?);
    let held_out = HeldOut::read(&project, evaluation.split, evaluation.limit)?;
    let cases = evaluation.written_cases(&project)?;
    warn_of(&base, adapter.as_deref());
    let selected = common.select_device()?;
    let interrupt = Interrupt::install(STOPPING).context("cannot listen for Ctrl-C")?;
    let bar = progress();
    let run = FinetunedRun {
        base: &base,
        adapter: adapter.clone(),
        selected: &selected,
        precision: common.precision.into(),
        cases: &cases,
        held_out: held_out.as_ref(),
        max_new_tokens: evaluation.max_new_tokens.map(|tokens| tokens as usize),
        progress: &|done, all| counted(&bar, ("asking", "answers"), done, all),
        stop: interrupt.flag(),
    };
    let found = evaluate(&run);
    bar.finish_and_clear();
    let found = found?;
    let path = project.file(paths::EVALUATION_FINETUNED);
    records::write(&path, &found.record)?;
    print(&format!(
        "{}written: {}\n",
        evaluation_table(&found.record),
        path.display()
    ))?;
    let (Some(adapter), Some(recommendation)) = (adapter, &found.recommendation) else {
        return Ok(ExitCode::from(EXIT_OK));
    };
    keep(recommendation, &adapter);
    bar.begin("loading the model", Unit::Nothing, 0);
    let record = finetuned_benchmark(&project, &run, evaluation.documents.as_deref());
    bar.finish_and_clear();
    let record = record?;
    let path = project.file(paths::FINETUNED_STANDARD_BENCH);
    records::write(&path, &record)?;
    let table = three_way_table(baseline.as_ref(), quantized.as_ref(), &record);
    let coloured = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let recommendation = recommendation_line(recommendation, coloured);
    print(&format!("\n{table}written: {}\n{recommendation}", path.display()))?;
    Ok(ExitCode::from(EXIT_OK))
}

/// Writes the recommendation to the adapter's folder; if that fails, it is still in the record.
fn keep(recommendation: &Recommendation, adapter: &std::path::Path) {
    if let Err(error) = recommendation.write(adapter) {
        say(
            Level::WARN,
            &format!("cannot write the recommendation to the adapter folder: {error}"),
        );
    }
}
