//! Downloads a model folder, or copies it from a local copy, verifies it and writes its manifest.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::block_in_place;

use super::{
    Hub, HubSettings, RemoteFile, Repository, RepositoryKind,
    download::{Incoming, existing_files, fetch_all},
    local::{self, LocalCopy},
    manifest::DownloadManifest,
};
use crate::checkpoint::Checkpoint;
use crate::console::{Level, Notify};
use crate::error::HubError;
use crate::fs::hub_cache;
use crate::project::{BASE_MODEL, EMBEDDED_MODEL, MODEL_ID};
use crate::records::{self, DownloadInfo};
use crate::{Error, Result};

/// Which model to download, and where to.
#[derive(Debug, Clone)]
pub struct ModelRequest {
    /// `OWNER/NAME` on the hub.
    pub id: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// Destination folder.
    pub folder: PathBuf,
    /// Local copy to use instead of the hub.
    pub source: Option<PathBuf>,
    /// Verify the folder without using the network.
    pub offline: bool,
}

/// A complete model folder.
#[derive(Debug, Clone)]
pub struct ModelDownload {
    /// Manifest of the folder.
    pub manifest: DownloadManifest,
    /// Bytes downloaded or copied by this run.
    pub new_bytes: u64,
}

/// Returns the folder name under `models/` for the model `id`.
pub fn model_name(id: &str) -> &str {
    match id {
        MODEL_ID => BASE_MODEL,
        _ => id.rsplit('/').next().unwrap_or(id),
    }
}

impl ModelDownload {
    /// Returns the record of a download to `folder` that took `elapsed`.
    pub fn record(&self, folder: &Path, elapsed: Duration) -> DownloadInfo {
        let manifest = &self.manifest;
        let extra = serde_json::json!({
            "revision": manifest.commit,
            "requested_revision": manifest.requested_revision,
            "checked_against": manifest.checked_against,
            "files": manifest.files.len(),
            "bytes": manifest.total_bytes(),
            "new_bytes": self.new_bytes,
        });
        DownloadInfo {
            model_id: manifest.repository.clone(),
            local_dir: folder.display().to_string(),
            model_size_gb: Some(records::gib(manifest.total_bytes())),
            download_time_seconds: Some(records::seconds(elapsed.as_secs_f64())),
            extra: extra.as_object().cloned().unwrap_or_default(),
        }
    }
}

/// Downloads the model of `request`, copies it from a local copy, or verifies it offline.
///
/// A new folder appears only when it is complete. An existing folder is updated to the revision file by file.
pub fn download_model(
    request: &ModelRequest,
    settings: HubSettings,
    notify: Notify<'_>,
) -> Result<ModelDownload> {
    let repository = Repository::new(RepositoryKind::Model, &request.id, &request.revision)?;
    reject_other_models(request)?;
    let download = super::run(async {
        match &request.source {
            Some(source) => {
                let source = hub_cache::resolved(source, &request.revision)?;
                block_in_place(|| copy(&source, request, notify))
            }
            None if request.offline => block_in_place(|| check(request, notify)),
            None => fetch(&repository, request, settings, notify).await,
        }
    })?;
    // Checksums match; this detects a repository that is itself broken.
    Checkpoint::open(&request.folder)?;
    Ok(download)
}

/// Returns an error if the folder contains another model.
fn reject_other_models(request: &ModelRequest) -> Result<()> {
    let rejected = |what: String| {
        let reason = format!("{what}, which is not replaced; name another folder with --model");
        Err(Error::unsuitable(&request.folder, reason))
    };
    if request
        .folder
        .file_name()
        .is_some_and(|name| name == EMBEDDED_MODEL)
    {
        return rejected("this is the model that comes with the program".to_owned());
    }
    match DownloadManifest::read(&request.folder)? {
        Some(manifest) if manifest.repository != request.id => {
            rejected(format!("holds {}", manifest.repository))
        }
        _ => Ok(()),
    }
}

async fn fetch(
    repository: &Repository,
    request: &ModelRequest,
    settings: HubSettings,
    notify: Notify<'_>,
) -> Result<ModelDownload> {
    let hub = Arc::new(Hub::new(settings)?);
    let staging = Incoming::open(&request.folder)?;
    let snapshot = Arc::new(hub.snapshot(repository).await?);
    let names = snapshot.files.iter().map(|file| file.path.as_str());
    let wanted = wanted(&repository.id, names, notify)?;
    let files: Vec<RemoteFile> = snapshot
        .files
        .iter()
        .filter(|file| wanted.contains(&file.path))
        .cloned()
        .collect();
    let (mut complete, missing) = block_in_place(|| existing_files(&request.folder, &files))?;
    let new_bytes = missing.iter().map(|file| file.size).sum();
    let fetched = fetch_all(&hub, &snapshot, &missing, staging.folder()).await?;
    complete.extend(fetched);
    complete.sort_by(|a, b| a.path.cmp(&b.path));
    let commit = Some(snapshot.commit());
    let mut manifest = DownloadManifest::new(&repository.id, &request.revision, commit, "hub");
    manifest.files = complete;
    block_in_place(|| staging.install(&manifest))?;
    Ok(ModelDownload { manifest, new_bytes })
}

fn copy(source: &Path, request: &ModelRequest, notify: Notify<'_>) -> Result<ModelDownload> {
    let copy = LocalCopy::open(source, notify)?;
    let names = copy.files.iter().map(|file| file.path.as_str());
    let wanted = wanted(&source.display().to_string(), names, notify)?;
    if local::is_same_folder(source, &request.folder) {
        return verified(copy, &wanted, request);
    }
    let staging = Incoming::open(&request.folder)?;
    let files = copy.copy_to(staging.folder(), |path| wanted.iter().any(|name| name == path))?;
    let new_bytes = files.iter().map(|file| file.size).sum();
    let mut manifest = copy.manifest(&request.id, &request.revision);
    manifest.files = files;
    staging.install(&manifest)?;
    Ok(ModelDownload { manifest, new_bytes })
}

/// Verifies the folder offline: it is its own local copy.
fn check(request: &ModelRequest, notify: Notify<'_>) -> Result<ModelDownload> {
    if !request.folder.is_dir() {
        return Err(HubError::Offline(format!("{} does not exist", request.folder.display())).into());
    }
    let copy = LocalCopy::open(&request.folder, notify)?;
    let names = copy.files.iter().map(|file| file.path.as_str());
    let wanted = wanted(&request.folder.display().to_string(), names, notify)?;
    verified(copy, &wanted, request)
}

fn verified(copy: LocalCopy, wanted: &[String], request: &ModelRequest) -> Result<ModelDownload> {
    let files = copy.verify(|path| wanted.iter().any(|name| name == path))?;
    let mut manifest = copy.manifest(&request.id, &request.revision);
    manifest.files = files;
    manifest.write(&request.folder)?;
    Ok(ModelDownload {
        manifest,
        new_bytes: 0,
    })
}

/// Returns the names to download: all but documentation, programs, hidden and pickle files.
///
/// # Errors
/// [`HubError::Unsuitable`], if no model is left.
fn wanted<'a>(origin: &str, names: impl Iterator<Item = &'a str>, notify: Notify<'_>) -> Result<Vec<String>> {
    let (pickles, others): (Vec<&str>, Vec<&str>) = names
        .filter(|name| !is_documentation(name) && !is_excluded(name))
        .partition(|name| is_pickle(name));
    let has = |wanted: fn(&str) -> bool| others.iter().any(|name| wanted(name));
    let unsuitable = |reason: String| {
        Error::from(HubError::Unsuitable {
            repository: origin.to_owned(),
            reason,
        })
    };
    if !has(|name| name.ends_with(".safetensors")) {
        return Err(unsuitable(match pickles.first() {
            Some(name) => {
                format!("its weights ({name}) are pickle, {PICKLE}; choose a model with .safetensors files")
            }
            None => "contains no .safetensors weights; is it the name of a model?".to_owned(),
        }));
    }
    if !has(|name| name == "config.json") {
        return Err(unsuitable(
            "contains no config.json; is it the name of a model?".to_owned(),
        ));
    }
    for name in &pickles {
        notify(Level::WARN, &format!("{name} is skipped: it is pickle, {PICKLE}"));
    }
    Ok(others.into_iter().map(str::to_owned).collect())
}

const PICKLE: &str = "which can run any code when it is loaded, so this program never loads it";

/// `*.md`, `LICENSE*` and `.gitattributes`, in any folder.
fn is_documentation(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.ends_with(".md") || name.starts_with("LICENSE") || name == ".gitattributes"
}

/// Returns whether a file is hidden, in a hidden folder such as `.git`, or a program: a model needs none of these.
pub(crate) fn is_excluded(path: &str) -> bool {
    const PROGRAMS: [&str; 12] = [
        "py", "pyc", "pyi", "pyx", "ipynb", "sh", "bat", "cmd", "ps1", "exe", "dll", "so",
    ];
    let suffix = path.rsplit('/').next().and_then(|name| name.rsplit_once('.'));
    path.split('/').any(|part| part.starts_with('.'))
        || suffix.is_some_and(|(_, suffix)| {
            PROGRAMS
                .iter()
                .any(|program| suffix.eq_ignore_ascii_case(program))
        })
}

/// Returns whether the suffix is one of the usual ones of formats that Python unpickles.
pub(crate) fn is_pickle(path: &str) -> bool {
    const SUFFIXES: [&str; 9] = [
        "bin", "pt", "pth", "ckpt", "pkl", "pickle", "joblib", "npy", "npz",
    ];
    let suffix = path.rsplit('/').next().and_then(|name| name.rsplit_once('.'));
    suffix.is_some_and(|(_, suffix)| SUFFIXES.iter().any(|pickle| suffix.eq_ignore_ascii_case(pickle)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documentation_programs_and_pickles_are_skipped() {
        let names = [
            "config.json",
            "README.md",
            "a/NOTES.md",
            "LICENSE",
            "LICENSE.txt",
            ".gitattributes",
            "x.py",
            "modeling_QWEN.PY",
            ".git/config",
            "a/.GIT/hooks/post-checkout",
            ".cache/huggingface/download/config.json.metadata",
            "run.sh",
            "tool.exe",
            "model.safetensors",
            "pytorch_model.bin",
            "training_args.BIN",
            "optimizer.pt",
            "binary",
            "md",
        ];
        let taken = wanted("owner/name", names.into_iter(), &|_, _| {}).unwrap();
        assert_eq!(taken, ["config.json", "model.safetensors", "binary", "md"]);
    }

    #[test]
    fn a_repository_without_safetensors_is_rejected_with_the_reason() {
        let rejected = |names: &[&str]| {
            wanted("owner/name", names.iter().copied(), &|_, _| {})
                .unwrap_err()
                .to_string()
        };
        assert!(rejected(&["config.json", "pytorch_model.bin"]).contains("(pytorch_model.bin) are pickle"));
        assert!(rejected(&["config.json"]).contains("no .safetensors"));
        assert!(rejected(&["model.safetensors"]).contains("no config.json"));
    }
}
