//! The download phases: from the hub, from local copies, or with what ships with the program if there is no network.

use std::ffi::OsString;
use std::fs;
use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde_json::json;

use super::plan::Plan;
use crate::data::{DATASETS, Dataset, LocalSource, is_synthetic, write_synthetic_reports};
use crate::hub::HubSettings;
use crate::project::{BASE_MODEL, Project, model_folder_name, require_model};
use crate::records::{self, DownloadInfo, gib, paths};
use crate::{Error, Result};

/// Timeout of the connection that probes the hub.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

/// How a download phase is run.
#[derive(Debug)]
pub(super) enum Download {
    /// As planned.
    Run(Plan),
    /// With a fallback, which the warning describes.
    Fallback(Plan, String),
    /// Not at all, for this reason.
    Skip(String),
}

/// Whether the hub can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Network {
    /// It accepts connections.
    Online,
    /// It cannot or must not be reached, for this reason.
    Offline(String),
}

impl Network {
    /// Connects to the hub, unless `offline` is set.
    pub(super) fn probe(offline: bool, settings: &HubSettings) -> Self {
        if offline {
            return Self::Offline("offline".to_owned());
        }
        let proxy = [
            "https_proxy",
            "HTTPS_PROXY",
            "http_proxy",
            "HTTP_PROXY",
            "ALL_PROXY",
        ];
        if proxy
            .iter()
            .any(|name| std::env::var_os(name).is_some_and(|value| !value.is_empty()))
        {
            return Self::Online;
        }
        let (Some(host), Some(port)) = (
            settings.endpoint.host_str().map(str::to_owned),
            settings.endpoint.port_or_known_default(),
        ) else {
            return Self::Online;
        };
        let name = host.trim_matches(['[', ']']).to_owned();
        let (sender, receiver) = mpsc::channel();
        // A resolver without network may block for long; the thread is not joined.
        thread::spawn(move || {
            let addresses = (name.as_str(), port).to_socket_addrs();
            let reached = addresses
                .into_iter()
                .flatten()
                .any(|address| TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).is_ok());
            let _ = sender.send(reached);
        });
        match receiver.recv_timeout(CONNECT_TIMEOUT) {
            Ok(true) => Self::Online,
            _ => Self::Offline(format!("{host} cannot be reached")),
        }
    }
}

/// The user's choice of a base model.
pub(super) struct ModelChoice<'a> {
    /// `--model`.
    pub model: Option<&'a Path>,
    /// `--model-source`.
    pub source: Option<&'a Path>,
}

/// How the base model is obtained.
pub(super) fn model(
    project: &Project,
    choice: &ModelChoice<'_>,
    network: impl Fn() -> Network,
) -> Result<Download> {
    let folder = project.new_model(choice.model, BASE_MODEL);
    let plan = |flags: Vec<OsString>| Plan {
        runs: vec![flags],
        inputs: choice.source.map(Path::to_owned).into_iter().collect(),
        outputs: vec![folder.clone(), project.file(paths::DOWNLOAD_INFO)],
    };
    if let Some(source) = choice.source {
        return Ok(Download::Run(plan(vec!["--source".into(), source.into()])));
    }
    if choice.model.is_some() {
        let model = project.model_folder(choice.model)?.path;
        record_local_model(project, &model, "a local folder, chosen with --model")?;
        return Ok(Download::Skip(format!("--model is {}", model.display())));
    }
    match network() {
        Network::Online => Ok(Download::Run(plan(Vec::new()))),
        Network::Offline(reason) if folder.is_dir() => Ok(Download::Fallback(
            plan(vec!["--offline".into()]),
            format!(
                "{reason}: verifying {} against its own manifest",
                folder.display()
            ),
        )),
        Network::Offline(reason) => {
            let model = project.model_folder(None)?.path;
            record_local_model(project, &model, "comes with the program")?;
            Ok(Download::Skip(format!(
                "{reason}: using the small model that ships with the program instead of the 7B model \
                 (--model-source DIR uses a local copy of the 7B model)"
            )))
        }
    }
}

/// Writes the download record of a local model, unless there is one.
fn record_local_model(project: &Project, model: &Path, source: &str) -> Result<()> {
    let path = project.file(paths::DOWNLOAD_INFO);
    let local_dir = model.display().to_string();
    let known = records::read_if_present::<DownloadInfo>(&path).ok().flatten();
    if known.is_some_and(|record| record.local_dir == local_dir) {
        return Ok(());
    }
    require_model(model)?;
    let files = fs::read_dir(model).map_err(|error| Error::io(model, error))?;
    let bytes: u64 = files
        .flatten()
        .filter_map(|file| fs::metadata(file.path()).ok())
        .filter(|metadata| metadata.is_file())
        .map(|metadata| metadata.len())
        .sum();
    let record = DownloadInfo {
        model_id: model_folder_name(model),
        local_dir,
        model_size_gb: Some(gib(bytes)),
        download_time_seconds: None,
        extra: json!({"source": source, "bytes": bytes})
            .as_object()
            .cloned()
            .unwrap_or_default(),
    };
    records::write(&path, &record)
}

/// How the datasets are obtained.
pub(super) fn datasets(
    project: &Project,
    sources: &[String],
    network: impl Fn() -> Network,
) -> Result<Download> {
    let raw = project.file("datasets/raw");
    let manifests = DATASETS
        .iter()
        .map(|dataset| raw.join(dataset.name).join("manifest.json"));
    let outputs: Vec<PathBuf> = manifests.chain([project.file(paths::DOWNLOAD_SUMMARY)]).collect();
    let mut flags: Vec<OsString> = Vec::new();
    for source in sources {
        flags.extend(["--source".into(), source.into()]);
    }
    let plan = |flags: Vec<OsString>, inputs: Vec<PathBuf>| Plan {
        runs: vec![flags],
        inputs,
        outputs: outputs.clone(),
    };
    let local: Vec<LocalSource> = sources.iter().filter_map(|source| source.parse().ok()).collect();
    let inputs = source_paths(sources);
    let reason = match network() {
        Network::Online => return Ok(Download::Run(plan(flags, inputs))),
        Network::Offline(reason) => reason,
    };
    // Offline: local copies, and datasets that were downloaded before.
    let is_available = |dataset: &&Dataset| {
        local.iter().any(|source| source.of(dataset).is_some())
            || raw.join(dataset.name).join("manifest.json").is_file()
    };
    let names: Vec<&str> = DATASETS
        .iter()
        .filter(is_available)
        .map(|dataset| dataset.name)
        .collect();
    flags.push("--offline".into());
    let only_synthetic = names == ["mtsamples"] && sources.is_empty() && is_synthetic(&raw.join("mtsamples"));
    let warning = if names.is_empty() || only_synthetic {
        let mut source = OsString::from("mtsamples=");
        source.push(write_synthetic_reports(project)?);
        flags.extend(["--dataset".into(), "mtsamples".into(), "--source".into(), source]);
        format!(
            "{reason}: using a few synthetic reports instead of the datasets, enough to try the phases but not to train on \
             (--dataset-source [NAME=]PATH uses local copies)"
        )
    } else {
        for name in &names {
            flags.extend(["--dataset".into(), name.into()]);
        }
        format!("{reason}: using only local data: {}", names.join(" and "))
    };
    Ok(Download::Fallback(plan(flags, inputs), warning))
}

/// Returns the path of each `[NAME=]PATH`.
fn source_paths(sources: &[String]) -> Vec<PathBuf> {
    let path = |source: &String| match source.split_once('=') {
        Some((name, path)) if Dataset::named(name).is_some() => PathBuf::from(path),
        _ => PathBuf::from(source),
    };
    sources.iter().map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project() -> (tempfile::TempDir, Project) {
        let folder = tempfile::tempdir().unwrap();
        let project = Project::open(Some(folder.path())).unwrap();
        (folder, project)
    }

    fn offline() -> Network {
        Network::Offline("no network".to_owned())
    }

    fn flags(download: &Download) -> Vec<String> {
        let (Download::Run(plan) | Download::Fallback(plan, _)) = download else {
            return Vec::new();
        };
        let flags = plan.runs.iter().flatten();
        flags.map(|flag| flag.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn the_model_is_downloaded_copied_verified_or_replaced() {
        let (folder, project) = project();
        let choice = |source| ModelChoice { model: None, source };
        let online = model(&project, &choice(None), || Network::Online).unwrap();
        assert!(matches!(online, Download::Run(_)) && flags(&online).is_empty());
        let copied = model(&project, &choice(Some(Path::new("/copy"))), offline).unwrap();
        assert_eq!(flags(&copied), ["--source", "/copy"]);
        let Download::Skip(reason) = model(&project, &choice(None), offline).unwrap() else {
            panic!("not skipped");
        };
        assert!(reason.contains("instead of the 7B model"), "{reason}");
        let record: DownloadInfo = records::read(&project.file(paths::DOWNLOAD_INFO)).unwrap();
        assert_eq!(record.model_id, "qwen25-vl-nano");
        assert!(record.extra["bytes"].as_u64().unwrap() > 20 << 20);
        assert_eq!(record.download_time_seconds, None);
        fs::create_dir_all(folder.path().join("models").join(BASE_MODEL)).unwrap();
        assert_eq!(
            flags(&model(&project, &choice(None), offline).unwrap()),
            ["--offline"]
        );
    }

    #[test]
    fn offline_datasets_are_local_copies_or_synthetic_reports() {
        let (folder, project) = project();
        let copied = datasets(&project, &["mtsamples=/x/rows.jsonl".to_owned()], offline).unwrap();
        assert_eq!(
            flags(&copied),
            [
                "--source",
                "mtsamples=/x/rows.jsonl",
                "--offline",
                "--dataset",
                "mtsamples"
            ]
        );
        let synthetic = datasets(&project, &[], offline).unwrap();
        let path = folder.path().join("datasets/synthetic/mtsamples_synthetic.jsonl");
        assert_eq!(
            flags(&synthetic).last().unwrap(),
            &format!("mtsamples={}", path.display())
        );
        assert!(path.is_file());
        let online = datasets(&project, &[], || Network::Online).unwrap();
        assert!(flags(&online).is_empty());
    }

    #[test]
    fn offline_mode_does_not_probe_the_hub() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let settings = HubSettings {
            endpoint: format!("http://127.0.0.1:{port}").parse().unwrap(),
            token: None,
            jobs: 1,
            retries: 0,
            stall: CONNECT_TIMEOUT,
            first_delay: CONNECT_TIMEOUT,
        };
        assert!(matches!(Network::probe(true, &settings), Network::Offline(_)));
        assert_eq!(Network::probe(false, &settings), Network::Online);
    }
}
