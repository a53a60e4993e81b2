//! `download_model`: downloads and verifies the base model.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use clap::builder::FalseyValueParser;

use super::{CommonArgs, EXIT_CODES_HELP, EXIT_FAILURE, EXIT_OK, HubArgs, print, start};
use crate::checkpoint::LocalFolder;
use crate::console::{exit_on_signal, say, without_control_characters};
use crate::engine::FolderCheck;
use crate::fs::hub_cache;
use crate::hub::{
    ModelDownload, ModelRequest, RemoteFolder, Repository, RepositoryKind, download_model, model_name,
};
use crate::project::{MODEL_ID, Project};
use crate::records::{self, gibibytes};
use crate::version::version;

/// Download the base model, verifying every file
///
/// Output: models/qwen25-vl-7b-base (override with --model). The folder appears only once it is complete.
/// Interrupted downloads resume when the command is run again. An existing folder is verified and updated to the
/// hub's revision. HF_ENDPOINT (another hub), HF_TOKEN (for gated models) and HF_HUB_OFFLINE are honored.
#[derive(Parser)]
#[command(name = "download_model", version = version(), after_help = EXIT_CODES_HELP)]
pub(super) struct Arguments {
    /// Model id on the hub
    #[arg(long, value_name = "OWNER/NAME", env = "MVP_MODEL_ID", default_value = MODEL_ID, hide_env_values = true)]
    model_id: String,

    /// Branch, tag or commit
    #[arg(long, env = "MVP_REVISION", default_value = "main", hide_env_values = true)]
    revision: String,

    /// Copy the model from this folder instead of downloading it
    ///
    /// Files are verified against the manifest of an earlier download or the metadata of the hub's own tools.
    #[arg(long, value_name = "DIR", env = "MVP_MODEL_SOURCE", hide_env_values = true)]
    source: Option<PathBuf>,

    /// Check whether the model can be loaded, fetching only config.json and the weight headers
    ///
    /// Compares the name, shape and dtype of every tensor with the configuration; this takes a few hundred KB for
    /// a published model. With --source or --model, checks a local folder without using the network. Exits with 1 if
    /// anything does not match.
    #[arg(long, env = "MVP_CHECK", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    check: bool,

    /// With --check: print the result as JSON
    #[arg(long, env = "MVP_JSON", value_parser = FalseyValueParser::new(), hide_env_values = true)]
    json: bool,

    #[command(flatten)]
    hub: HubArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// Runs the program and returns its exit code.
pub(super) fn main() -> ExitCode {
    start(|arguments: &Arguments| &arguments.common, run)
}

fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    exit_on_signal("interrupted; downloaded data is kept, run the same command to continue")?;
    let project = arguments.common.project()?;
    if arguments.check {
        return check(arguments, &project);
    }
    let request = ModelRequest {
        id: arguments.model_id.clone(),
        revision: arguments.revision.clone(),
        folder: project.new_model(arguments.common.model.as_deref(), model_name(&arguments.model_id)),
        source: arguments.source.clone(),
        offline: arguments.hub.offline(),
    };
    let start = Instant::now();
    let download = download_model(&request, arguments.hub.settings()?, &say)?;
    let record = download.record(&request.folder, start.elapsed());
    records::write(&project.file(records::paths::DOWNLOAD_INFO), &record)?;
    print(&summary(&request, &download, start.elapsed().as_secs_f64()))?;
    Ok(ExitCode::from(EXIT_OK))
}

/// The local folder to check instead of the hub's: --source, --model, or offline the model's own folder.
fn local_folder(arguments: &Arguments, project: &Project) -> crate::Result<Option<PathBuf>> {
    let model = arguments.common.model.as_deref();
    if let Some(source) = &arguments.source {
        return hub_cache::resolved(source, &arguments.revision).map(Some);
    }
    if model.is_some() || arguments.hub.offline() {
        let folder = project.new_model(model, model_name(&arguments.model_id));
        return hub_cache::resolved(&folder, &arguments.revision).map(Some);
    }
    Ok(None)
}

fn check(arguments: &Arguments, project: &Project) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let (name, commit, outcome, fetched) = match local_folder(arguments, project)? {
        Some(folder) => {
            let outcome = FolderCheck::of(&LocalFolder(folder.clone()), true)?;
            (folder.display().to_string(), None, outcome, 0)
        }
        None => {
            let repository =
                Repository::new(RepositoryKind::Model, &arguments.model_id, &arguments.revision)?;
            let folder = RemoteFolder::open(&repository, arguments.hub.settings()?)?;
            let outcome = FolderCheck::of(&folder, false)?;
            let commit = Some(folder.commit().to_owned());
            (repository.id, commit, outcome, folder.fetched_bytes())
        }
    };
    let text = if arguments.json {
        let mut found = outcome.to_json();
        found["model"] = name.into();
        found["revision"] = commit.into();
        found["fetched_bytes"] = fetched.into();
        format!("{found:#}\n")
    } else if let Some(commit) = commit {
        let (kilobytes, seconds) = (fetched as f64 / 1e3, start.elapsed().as_secs_f64());
        format!("{name} at {commit}: {outcome}downloaded {kilobytes:.0} KB in {seconds:.1} s\n")
    } else {
        format!("{name}: {outcome}")
    };
    print(&without_control_characters(&text))?;
    Ok(ExitCode::from(if outcome.fits() {
        EXIT_OK
    } else {
        EXIT_FAILURE
    }))
}

fn summary(request: &ModelRequest, download: &ModelDownload, seconds: f64) -> String {
    let manifest = &download.manifest;
    format!(
        "{}: {} files, {:.2} GiB ({:.2} GiB downloaded), {seconds:.1} s\nmodel {} at {}, verified against: {}\n",
        request.folder.display(),
        manifest.files.len(),
        gibibytes(manifest.total_bytes()),
        gibibytes(download.new_bytes),
        manifest.repository,
        manifest.commit.as_deref().unwrap_or("an unknown commit"),
        manifest.checked_against,
    )
}
