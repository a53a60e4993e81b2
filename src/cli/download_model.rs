//! Downloads the base model, checked file by file.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use crate::cli::{CommonArgs, EXIT_CODES_HELP, EXIT_OK, fail, print, version};
use crate::hub::{HubArgs, MODEL_ID, ModelDownload, ModelRequest, download_model, model_name};
use crate::records;
use crate::telemetry::Level;
use clap::Parser;

/// Downloads the base model, checked file by file
///
/// The model goes to models/qwen25-vl-7b-base (--model says otherwise) and is there when it is complete. What an
/// interrupted run fetched is kept: the same command goes on from it. A folder that is there is checked and brought to the
/// hub's state. HF_ENDPOINT (another hub), HF_TOKEN (for gated models) and HF_HUB_OFFLINE are honoured.
#[derive(Parser)]
#[command(name = "download_model", version = version(), after_help = EXIT_CODES_HELP)]
struct Arguments {
    /// The model's name on the hub
    #[arg(long, value_name = "OWNER/NAME", env = "MVP_MODEL_ID", default_value = MODEL_ID, hide_env_values = true)]
    model_id: String,

    /// Branch, tag or commit
    #[arg(long, env = "MVP_REVISION", default_value = "main", hide_env_values = true)]
    revision: String,

    /// Take the model from this folder and use no network
    ///
    /// It is checked against what it knows of itself: the manifest of an earlier download, or the notes of the hub's tools.
    #[arg(long, value_name = "DIR", env = "MVP_MODEL_SOURCE", hide_env_values = true)]
    source: Option<PathBuf>,

    #[command(flatten)]
    hub: HubArgs,
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
    let request = ModelRequest {
        id: arguments.model_id.clone(),
        revision: arguments.revision.clone(),
        folder: project.new_model(arguments.common.model.as_deref(), model_name(&arguments.model_id)),
        source: arguments.source.clone(),
        offline: arguments.hub.offline(),
    };
    let start = Instant::now();
    let download = download_model(&request, arguments.hub.settings()?)?;
    let record = download.record(&request.folder, start.elapsed());
    records::write(&project.file(records::paths::DOWNLOAD_INFO), &record)?;
    print(&summary(&request, &download, start.elapsed().as_secs_f64()))?;
    Ok(ExitCode::from(EXIT_OK))
}

fn summary(request: &ModelRequest, download: &ModelDownload, seconds: f64) -> String {
    let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
    let manifest = &download.manifest;
    format!(
        "{}: {} files, {:.2} GiB ({:.2} GiB of it new), {seconds:.1} s\nmodel {} at {}, checked against: {}\n",
        request.folder.display(),
        manifest.files.len(),
        gib(manifest.total_bytes()),
        gib(download.new_bytes),
        manifest.repository,
        manifest.commit.as_deref().unwrap_or("an unknown commit"),
        manifest.checked_against,
    )
}
