//! `evaluate_finetuned`: evaluates an adapter against its base model.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, value_parser};

use super::session::NO_RECORD;
use super::{
    AdapterArgs, CommonArgs, EXIT_CODES_HELP, EXIT_OK, Session, print, print_folder_warnings, start,
};
use crate::benchmark::{finetuned_benchmark, quantized_folder, three_way_table};
use crate::console::{Level, say};
use crate::evaluation::{
    FinetunedRun, HeldOut, HeldOutSplit, evaluate, evaluation_cases, evaluation_table, recommendation_line,
};
use crate::lora::{Recommendation, own_adapter_folder};
use crate::project::{LORA_SUFFIX, Project};
use crate::quant::Method;
use crate::records::{self, Benchmark, paths};
use crate::version::version;
use crate::{Error, Result};

/// Evaluate the fine-tuned model against its base
///
/// Runs the quantized base with and without the adapter on the five evaluation cases and held-out pages and writes
/// benchmarks/evaluation_finetuned.json; also benchmarks the adapter on the test documents (finetuned_standard_bench.json), next
/// to benchmarks/baseline_fp16.json and quantized_int4.json. The adapter folder records whether the adapter is
/// recommended; extract and server attach one that is not recommended only when it is named with --adapter.
#[derive(Parser)]
#[command(name = "evaluate_finetuned", version = version(), after_help = EXIT_CODES_HELP)]
pub(super) struct Arguments {
    #[command(flatten)]
    evaluation: EvaluationArgs,
    #[command(flatten)]
    adapter: AdapterArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// What is evaluated.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Evaluation options")]
struct EvaluationArgs {
    /// Documents to use instead of the five evaluation cases and the five test documents
    ///
    /// {"documents": [{"id", "filename", "title", "content": ["line", ...], "prompt", "expected_terms": ["..."], ...}]}
    #[arg(long, value_name = "FILE.json", env = "MVP_DOCUMENTS", hide_env_values = true)]
    documents: Option<PathBuf>,

    /// Held-out split to evaluate in addition to the cases
    ///
    /// Taken from datasets/formatted if prepare_training_data was run; otherwise pages are generated.
    #[arg(
        long,
        value_name = "SPLIT",
        env = "MVP_EVALUATION_SPLIT",
        default_value = "test",
        hide_env_values = true
    )]
    split: HeldOutSplit,

    /// Maximum number of held-out questions, balanced over tasks and page styles; 0 for all
    #[arg(
        long,
        value_name = "N",
        env = "MVP_LIMIT",
        default_value_t = 48,
        hide_env_values = true
    )]
    limit: usize,

    /// Maximum number of new tokens per answer [default: 512, 640 for held-out pages]
    #[arg(long, value_name = "N", env = "MVP_MAX_NEW_TOKENS", hide_env_values = true,
          value_parser = value_parser!(u32).range(1..))]
    max_new_tokens: Option<u32>,
}

/// Runs the program and returns its exit code.
pub(super) fn main() -> ExitCode {
    start(|arguments: &Arguments| &arguments.common, run)
}

fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let (common, evaluation) = (&arguments.common, &arguments.evaluation);
    let project = common.project()?;
    let model = common.model_folder(&project)?.path;
    let adapter = evaluated_adapter(&arguments.adapter, &project, &model)?;
    let base = quantized_folder(&project, &model, Method::Nf4)?;
    // Before the models are loaded, so that a broken record or split is reported at once.
    let record = |path| records::read_if_present::<Benchmark>(&project.file(path));
    let (baseline, quantized) = (record(paths::BASELINE_FP16)?, record(paths::QUANTIZED_INT4)?);
    let held_out = HeldOut::read(&project, evaluation.split, evaluation.limit)?;
    let cases = evaluation_cases(&project, evaluation.documents.as_deref())?;
    print_folder_warnings(&base, adapter.as_deref());
    let session = Session::start(common.select_device()?, NO_RECORD)?;
    let run = FinetunedRun {
        base: &base,
        adapter: adapter.clone(),
        selected: &session.selected,
        precision: common.precision,
        cases: &cases,
        held_out: held_out.as_ref(),
        max_new_tokens: evaluation.max_new_tokens.map(|tokens| tokens as usize),
        progress: &|done, all| session.count("asking", "answers", done, all),
        stop: session.stop(),
    };
    let result = evaluate(&run)?;
    session.bar.finish_and_clear();
    let path = project.file(paths::EVALUATION_FINETUNED);
    records::write(&path, &result.record)?;
    print(&format!(
        "{}written: {}\n",
        evaluation_table(&result.record),
        path.display()
    ))?;
    let (Some(adapter), Some(recommendation)) = (adapter, &result.recommendation) else {
        return Ok(ExitCode::from(EXIT_OK));
    };
    keep(recommendation, &adapter);
    session.begin("loading the model");
    let record = finetuned_benchmark(&project, &run, evaluation.documents.as_deref())?;
    session.bar.finish_and_clear();
    let path = project.file(paths::FINETUNED_STANDARD_BENCH);
    records::write(&path, &record)?;
    let table = three_way_table(baseline.as_ref(), quantized.as_ref(), &record);
    let coloured = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let recommendation = recommendation_line(recommendation, coloured);
    print(&format!("\n{table}written: {}\n{recommendation}", path.display()))?;
    Ok(ExitCode::from(EXIT_OK))
}

/// The folder of the adapter to evaluate: the one of the flag, or the model's own; `None` for "none".
fn evaluated_adapter(flag: &AdapterArgs, project: &Project, model: &Path) -> Result<Option<PathBuf>> {
    if flag.adapter.is_some() {
        return flag.named(project);
    }
    own_adapter_folder(project, model).map(Some).ok_or_else(|| {
        let reason =
            "no adapter found; train one with finetune_lora, or pass --adapter DIR or --adapter none";
        Error::not_found(project.derived_model(model, LORA_SUFFIX), reason)
    })
}

/// Writes the recommendation to the adapter's folder; if that fails, it is still in the record.
fn keep(recommendation: &Recommendation, adapter: &Path) {
    if let Err(error) = recommendation.write(adapter) {
        say(
            Level::WARN,
            &format!("cannot write the recommendation to the adapter folder: {error}"),
        );
    }
}
