//! `medvision pipeline`: runs all phases in order.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::FalseyValueParser;

use crate::cli::{self, CommonArgs, EXIT_CODES_HELP, EXIT_FAILURE, EXIT_OK, EXIT_USAGE, HubArgs};
use crate::console::{EXIT_INTERRUPTED, Interrupt, Level, say};
use crate::pipeline::{Phase, Pipeline, PipelineOptions, Step, StepStatus};

const STOPPING: &str = "stopping, finished work is kept: run the same command to continue";

/// Run all phases in order, from environment check to report
///
/// validate_environment, download_model, benchmark_baseline, quantize_base, benchmark_quantized, download_datasets,
/// prepare_training_data, finetune_lora, evaluate_finetuned, generate_report: each is also a program with its own
/// flags, whose environment variables (MVP_...) apply here. Phases with unchanged inputs are skipped, and interrupted
/// runs resume. Without a network the embedded model and a few synthetic reports are used, with a warning.
#[derive(clap::Args)]
#[command(after_help = EXIT_CODES_HELP)]
pub(super) struct PipelineArgs {
    #[command(flatten)]
    phases: PhaseArgs,

    #[command(flatten)]
    hub: HubArgs,

    #[command(flatten)]
    common: CommonArgs,
}

/// Which phases are run, and on what.
#[derive(clap::Args)]
#[command(next_help_heading = "Pipeline options")]
struct PhaseArgs {
    /// First phase to run
    #[arg(
        long,
        value_name = "PHASE",
        env = "MVP_FROM",
        default_value = "validate_environment",
        hide_env_values = true
    )]
    from: Phase,

    /// Last phase to run
    #[arg(
        long,
        value_name = "PHASE",
        env = "MVP_TO",
        default_value = "generate_report",
        hide_env_values = true
    )]
    to: Phase,

    /// Run phases even if they are up to date
    #[arg(long, env = "MVP_FORCE", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    force: bool,

    /// Use the base model in this folder instead of downloading it
    #[arg(long, value_name = "DIR", env = "MVP_MODEL_SOURCE", hide_env_values = true)]
    model_source: Option<PathBuf>,

    /// Use this local copy of a dataset instead of downloading it; repeatable
    #[arg(
        long = "dataset-source",
        value_name = "[NAME=]DIR|FILE",
        env = "MVP_DATASET_SOURCE",
        value_delimiter = ',',
        hide_env_values = true
    )]
    dataset_sources: Vec<String>,
}

/// Runs the phases and prints how each ended.
pub(super) fn run(args: &PipelineArgs) -> anyhow::Result<ExitCode> {
    let common = &args.common;
    common.start_logging(Level::WARN);
    let project = common.project()?;
    let interrupt = Interrupt::install(STOPPING)?;
    let options = PipelineOptions {
        from: args.phases.from,
        to: args.phases.to,
        force: args.phases.force,
        model: common.model.clone(),
        device: common.device,
        precision: common.precision,
        model_source: args.phases.model_source.clone(),
        dataset_sources: args.phases.dataset_sources.clone(),
        offline: args.hub.offline(),
        hub: args.hub.settings().ok(),
        program_flags: common.flags(&project),
        download_flags: args.hub.flags(),
    };
    let steps = Pipeline {
        project: &project,
        options: &options,
        notify: &say,
        stop: interrupt.flag(),
    }
    .run()?;
    cli::print(&table(&steps))?;
    let exit_code = match steps.last().map(|step| (step.phase, &step.status)) {
        Some((phase, StepStatus::Failed(reason))) => {
            let message = format!(
                "{} failed ({reason}); earlier phases are kept: fix the problem above and run the same command again",
                phase.name()
            );
            say(Level::ERROR, &message);
            EXIT_FAILURE
        }
        Some((_, StepStatus::Interrupted)) => EXIT_INTERRUPTED,
        Some(_) => EXIT_OK,
        None => {
            say(Level::ERROR, "nothing to run: --from is after --to");
            EXIT_USAGE
        }
    };
    Ok(ExitCode::from(exit_code))
}

fn table(steps: &[Step]) -> String {
    let mut text = String::new();
    for step in steps {
        let status = match &step.status {
            StepStatus::Done => "done",
            StepStatus::UpToDate => "up to date",
            StepStatus::Skipped(_) => "nothing to do",
            StepStatus::Failed(_) => "failed",
            StepStatus::Interrupted => "interrupted",
        };
        let _ = writeln!(
            text,
            "{:24} {status:14} {:>8.1} s",
            step.phase.name(),
            step.seconds
        );
    }
    text
}
