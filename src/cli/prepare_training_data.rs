//! `prepare_training_data`: converts the raw datasets into pages, questions and answers in three splits.

use std::process::ExitCode;

use clap::Parser;

use super::{CommonArgs, EXIT_CODES_HELP, EXIT_OK, print, start};
use crate::console::{exit_on_signal, say};
use crate::data::{DEFAULT_CLINICAL, DEFAULT_SEED, PrepareOptions, Prepared, SplitRule, prepare};
use crate::version::version;

/// Convert the raw datasets into pages, questions and answers in three splits
///
/// Reads datasets/raw and writes datasets/formatted: train.json, val.json, test.json, images/ and data_summary.json.
/// Reports are rendered as pages; images are copied. Interrupted runs resume; a run whose output is already
/// up to date does nothing.
#[derive(Parser)]
#[command(name = "prepare_training_data", version = version(), after_help = EXIT_CODES_HELP)]
pub(super) struct Arguments {
    /// How samples are grouped before splitting
    ///
    /// With "grouped", no text occurs in two splits, and the 100 reports that the embedded model was not trained
    /// on are always in the test split.
    #[arg(
        long,
        value_name = "RULE",
        env = "MVP_SPLIT",
        default_value = "grouped",
        hide_env_values = true
    )]
    split: SplitRule,

    /// Random seed (shuffling and prompts)
    #[arg(long, value_name = "N", env = "MVP_SEED", default_value_t = DEFAULT_SEED, hide_env_values = true)]
    seed: u64,

    /// Number of synthetic clinical pages to generate for training
    ///
    /// Validation and test get a tenth of that each (at most 500), with disjoint vocabulary. There are four questions
    /// per training page and two per other page: full text, medications, laboratory values, ... 0 disables generation.
    #[arg(long, value_name = "N", env = "MVP_CLINICAL", default_value_t = DEFAULT_CLINICAL, hide_env_values = true)]
    clinical: u64,

    /// Generate synthetic clinical pages only; use no downloaded datasets
    #[arg(long, env = "MVP_ONLY_CLINICAL", hide_env_values = true)]
    only_clinical: bool,

    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the program and returns its exit code.
pub(super) fn main() -> ExitCode {
    start(|arguments: &Arguments| &arguments.common, run)
}

fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    exit_on_signal("interrupted; finished images are kept, run the same command to continue")?;
    let project = arguments.common.project()?;
    if let Some(threads) = arguments.common.threads {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads.into())
            .build_global()?;
    }
    let options = PrepareOptions {
        split: arguments.split,
        seed: arguments.seed,
        clinical: arguments.clinical,
        only_clinical: arguments.only_clinical,
    };
    print(&summary(&prepare(&project, &options, &say)?))?;
    Ok(ExitCode::from(EXIT_OK))
}

fn summary(prepared: &Prepared) -> String {
    let Prepared { summary, seconds, .. } = prepared;
    let figure = |key: &str| summary.extra.get(key).cloned().unwrap_or_default();
    let state = if prepared.up_to_date {
        "up to date, nothing to do".to_owned()
    } else {
        let (created, reused) = (prepared.images_created, prepared.images_reused);
        format!("{created} images created, {reused} kept, {seconds:.1} s")
    };
    let sources = summary
        .source_counts
        .iter()
        .map(|(source, count)| format!("{source} {count}"));
    format!(
        "{} samples: {} train, {} val, {} test ({})\n\
         {} distinct texts, {} duplicates; {} test samples whose text is in the training split\n\
         unseen by the embedded model: {} test samples from {} texts\n\
         {state}\n",
        summary.total_samples,
        summary.train_count,
        summary.val_count,
        summary.test_count,
        sources.collect::<Vec<_>>().join(", "),
        figure("different_texts"),
        figure("duplicate_samples"),
        figure("test_samples_whose_text_is_trained_on"),
        figure("unseen")["samples"],
        figure("unseen")["different_texts"],
    )
}
