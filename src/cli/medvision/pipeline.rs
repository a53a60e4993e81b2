//! `medvision pipeline`: all phases in order.

use std::fmt::Write;
use std::process::ExitCode;

use anyhow::Context;

use crate::cli::{self, CommonArgs, EXIT_CODES_HELP, EXIT_FAILURE, EXIT_OK};
use crate::console::{self, EXIT_INTERRUPTED, Interrupt, Level};
use crate::pipeline::{Ended, Pipeline, PipelineArgs, Step};

const STOPPING: &str = "stopping, finished work is kept: run the same command to continue";

/// Run all phases in order, from environment check to report
///
/// validate_environment, download_model, benchmark_baseline, quantize_base, benchmark_quantized, download_datasets,
/// prepare_training_data, finetune_lora, evaluate_finetuned, generate_report: each is also a program with its own
/// flags, whose environment variables (MVP_...) apply here. Phases with unchanged inputs are skipped, and interrupted
/// runs resume. Without a network the embedded model and a few synthetic reports are used, with a warning.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES_HELP)]
pub(super) struct PipelineCommand {
    #[command(flatten)]
    pipeline: PipelineArgs,

    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the phases and prints how each ended.
pub(super) fn run(command: &PipelineCommand) -> anyhow::Result<ExitCode> {
    command.common.start_logging(Level::WARN);
    let project = command.common.project()?;
    let interrupt = Interrupt::install(STOPPING).context("cannot listen for Ctrl-C")?;
    let steps = Pipeline {
        project: &project,
        programs: &command.common.for_programs(),
        args: &command.pipeline,
        stop: interrupt.flag(),
    }
    .run()?;
    cli::print(&table(&steps))?;
    Ok(ExitCode::from(
        match steps.last().map(|step| (step.phase, &step.ended)) {
            Some((phase, Ended::Failed(reason))) => {
                let message = format!(
                    "{} failed ({reason}); earlier phases are kept: fix the problem above and run the same command again",
                    phase.name()
                );
                console::say(Level::ERROR, &message);
                EXIT_FAILURE
            }
            Some((_, Ended::Interrupted)) => EXIT_INTERRUPTED,
            Some(_) => EXIT_OK,
            None => {
                console::say(Level::ERROR, "nothing to run: --from is after --to");
                cli::EXIT_USAGE
            }
        },
    ))
}

fn table(steps: &[Step]) -> String {
    let mut text = String::new();
    for step in steps {
        let ended = match &step.ended {
            Ended::Done => "done",
            Ended::UpToDate => "up to date",
            Ended::Nothing(_) => "nothing to do",
            Ended::NotBuilt => "not built yet",
            Ended::Failed(_) => "failed",
            Ended::Interrupted => "interrupted",
        };
        let _ = writeln!(
            text,
            "{:24} {ended:14} {:>8.1} s",
            step.phase.name(),
            step.seconds
        );
    }
    text
}
