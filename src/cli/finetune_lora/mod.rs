//! `finetune_lora`: fine-tunes the model on the prepared pages.

mod flags;

use std::cell::Cell;
use std::process::ExitCode;

use clap::Parser;

use self::flags::TrainingArgs;
use super::{CommonArgs, EXIT_CODES_HELP, EXIT_OK, Session, fail, print};
use crate::console::{Level, Unit, exit_on_signal, say};
use crate::distributed::{ProcessGroup, ProcessInfo};
use crate::training::{TrainingRun, summary, train};
use crate::version::version;

const STOPPING: &str = "stopping after the current step, a checkpoint will be saved (continue with --resume)";

/// Fine-tune the model with LoRA on the prepared pages
///
/// Trains a LoRA adapter on the frozen 4-bit base (QLoRA) and writes models/qwen25-vl-7b-medical-lora, a folder that PEFT
/// loads, and benchmarks/training_metrics.json. Loss and accuracy are logged to benchmarks/training/ as
/// JSON lines, TensorBoard events and a plot. Continue an interrupted run with --resume. For multi-GPU training start one
/// process per GPU with torchrun, Slurm or Kubernetes (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT).
#[derive(Parser)]
#[command(name = "finetune_lora", version = version(), after_help = EXIT_CODES_HELP)]
pub(super) struct Arguments {
    #[command(flatten)]
    train: TrainingArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the program and returns its exit code.
pub(super) fn main() -> ExitCode {
    let (mut arguments, _) = super::parse::<Arguments>();
    let process = ProcessInfo::from_env();
    // Only the main process prints messages; every process prints its errors.
    let is_worker = matches!(&process, Ok(Some(process)) if !process.is_main_process());
    arguments.common.quiet |= is_worker && arguments.common.verbose == 0;
    arguments.common.start_logging(Level::WARN);
    let result = exit_on_signal("interrupted")
        .and(process)
        .map_err(Into::into)
        .and_then(|process| run(&arguments, process));
    result.unwrap_or_else(|error| fail(&error))
}

fn run(arguments: &Arguments, process: Option<ProcessInfo>) -> anyhow::Result<ExitCode> {
    let options = arguments.train.options()?;
    let project = arguments.common.project()?;
    let model = arguments.common.model_folder(&project)?.path;
    let selected = match &process {
        Some(process) => arguments.common.select_device_of(process.local_rank)?,
        None => arguments.common.select_device()?,
    };
    let group = process
        .map(|process| ProcessGroup::join(process, selected.device))
        .transpose()?;
    let is_main_process = group.as_ref().is_none_or(|group| group.info().is_main_process());
    let record = {
        let session = Session::start(selected, STOPPING)?;
        session.begin("preparing the training");
        let bar = &session.bar;
        let started = Cell::new(false);
        train(&TrainingRun {
            project: &project,
            model: &model,
            options: &options,
            device: session.selected.device,
            precision: arguments.common.precision,
            resume: arguments.train.resume,
            stop: session.stop(),
            group: group.as_ref(),
            notify: &say,
            on_step: &|report, steps| {
                if !started.replace(true) {
                    session.finish_steps();
                    bar.begin("training", Unit::Of("steps"), steps);
                }
                bar.set_position(report.step);
                bar.set_message(format!(
                    "loss {:.4}, lr {:.1e}, {:.0} tokens/s",
                    report.loss, report.learning_rate, report.tokens_per_second
                ));
            },
        })?
    };
    if is_main_process {
        print(&summary(&record))?;
    }
    Ok(ExitCode::from(EXIT_OK))
}
