//! `download_datasets`: downloads and verifies the datasets for fine-tuning.

use std::process::ExitCode;

use clap::Parser;
use clap::builder::PossibleValuesParser;

use super::{CommonArgs, EXIT_CODES_HELP, EXIT_FAILURE, EXIT_OK, HubArgs, print, start};
use crate::console::{Level, exit_on_signal, say};
use crate::data::{DATASETS, Dataset, DatasetsRequest, LocalSource, download_datasets};
use crate::records::{self, DownloadSummary};
use crate::version::version;

/// Download the fine-tuning datasets, verifying every file and row
#[derive(Parser)]
#[command(name = "download_datasets", version = version(), long_about = long_about(), after_help = EXIT_CODES_HELP)]
pub(super) struct Arguments {
    /// Dataset to download; repeatable [default: all]
    #[arg(long = "dataset", value_name = "NAME", env = "MVP_DATASET", value_delimiter = ',', hide_env_values = true,
          value_parser = PossibleValuesParser::new(DATASETS.iter().map(|dataset| dataset.name)))]
    datasets: Vec<String>,

    /// Local copy to use instead of the hub: a data file or a folder; repeatable
    ///
    /// Use NAME=PATH if the dataset cannot be inferred from the path.
    #[arg(
        long = "source",
        value_name = "[NAME=]DIR|FILE",
        env = "MVP_DATASET_SOURCE",
        value_delimiter = ',',
        hide_env_values = true
    )]
    sources: Vec<LocalSource>,

    /// Maximum number of rows per dataset [default: as above]
    #[arg(long, value_name = "ROWS", env = "MVP_LIMIT", hide_env_values = true, value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,

    #[command(flatten)]
    hub: HubArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// Returns the long help: what each data set contains, and what the program writes.
fn long_about() -> String {
    let datasets: Vec<String> = DATASETS
        .iter()
        .map(|dataset| format!("{}: {}", dataset.name, dataset.description))
        .collect();
    format!(
        "Download the fine-tuning datasets, verifying every file and row\n\n{}. Output: datasets/raw/NAME. Rows without text \
         or with a corrupt image are skipped and counted. Existing files are verified, not downloaded again. HF_ENDPOINT, \
         HF_TOKEN and HF_HUB_OFFLINE are honored.",
        datasets.join("; ")
    )
}

/// Runs the program and returns its exit code.
pub(super) fn main() -> ExitCode {
    start(|arguments: &Arguments| &arguments.common, run)
}

fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    exit_on_signal("interrupted; downloaded data is kept, run the same command to continue")?;
    let project = arguments.common.project()?;
    let all = || DATASETS.iter().map(|dataset| dataset.name);
    let chosen =
        |name: &&str| arguments.datasets.is_empty() || arguments.datasets.iter().any(|one| one == name);
    let request = DatasetsRequest {
        folder: project.file("datasets/raw"),
        datasets: all().filter(chosen).filter_map(Dataset::named).collect(),
        sources: arguments.sources.clone(),
        limit: arguments.limit,
        offline: arguments.hub.offline(),
    };
    let summary = download_datasets(&request, arguments.hub.settings()?, &say)?;
    records::write(&project.file(records::paths::DOWNLOAD_SUMMARY), &summary)?;
    print(&summary.to_string())?;
    let failures = failures(&summary);
    for (error, names) in &failures {
        say(Level::ERROR, &format!("{}: {error}", names.join(", ")));
    }
    // Two of the three are enough to train on; where fewer were asked for, all of them.
    let enough = summary.total_successful >= request.datasets.len().min(2) as u64;
    // One cause for all of them says it.
    if !enough && (failures.len() != 1 || summary.total_successful != 0) {
        say(Level::ERROR, "too few datasets to continue");
    }
    Ok(ExitCode::from(if enough { EXIT_OK } else { EXIT_FAILURE }))
}

/// Each cause with the data sets that failed of it.
fn failures(summary: &DownloadSummary) -> Vec<(&str, Vec<&str>)> {
    let mut causes: Vec<(&str, Vec<&str>)> = Vec::new();
    for dataset in &summary.datasets {
        let Some(error) = dataset.error.as_deref() else {
            continue;
        };
        match causes.iter_mut().find(|(cause, _)| *cause == error) {
            Some((_, names)) => names.push(&dataset.name),
            None => causes.push((error, vec![&dataset.name])),
        }
    }
    causes
}
