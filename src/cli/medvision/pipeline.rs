//! `medvision pipeline`: all phases in order.

use std::fmt::Write;
use std::process::ExitCode;

use anyhow::Context;

use crate::cli::{self, CommonArgs, EXIT_CODES_HELP, EXIT_FAILURE, EXIT_OK};
use crate::console::{self, EXIT_INTERRUPTED, Interrupt, Level};
use crate::pipeline::{Ended, Pipeline, PipelineArgs, Step};

const STOPPING: &str =
    "stopping; what is finished is kept, and the same command goes on. Ctrl-C again stops at once";

/// Run all phases in order, from the look at the machine to the report
///
/// validate_environment, download_model, benchmark_baseline, quantize_base, benchmark_quantized, download_datasets,
/// prepare_training_data, finetune_lora, evaluate_finetuned, generate_report: each is a program of its own with further
/// flags, whose variables (MVP_...) hold here, too. A phase whose inputs are unchanged is skipped, and a run that was
/// stopped goes on where it was. Without network the small model and a few synthetic reports stand in, and it says so.
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
                    "{} failed ({reason}); what came before is kept: mend what is said above and run the same command again",
                    phase.name()
                );
                console::say(Level::ERROR, &message);
                EXIT_FAILURE
            }
            Some((_, Ended::Interrupted)) => EXIT_INTERRUPTED,
            Some(_) => EXIT_OK,
            None => {
                console::say(Level::ERROR, "no phase to run: --from comes after --to");
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
