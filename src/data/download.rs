//! Downloads data sets from the hub, or reads local copies, into raw data sets under `datasets/raw`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, block_in_place, spawn_blocking};

use super::{
    datasets::{Dataset, Publication},
    image_files::ImageFiles,
    local_source::{LocalSource, NO_ROWS, PICKLE, described, local_files},
    raw_builder::{Origin, SourceData, build, referenced_images},
    raw_dataset::{RawDataset, RawManifest},
    row_files::{Format, count_rows},
};
use crate::console::{self, Level, Notify, Progress, Unit};
use crate::error::HubError;
use crate::fs::{parent_folder, write_atomically};
use crate::hub::{
    CancelGuard, Hub, HubSettings, Incoming, RemoteFile, RemoteReader, Repository, RepositoryKind, Snapshot,
    fetch_all, is_excluded, is_pickle, name_fault,
};
use crate::records::{DatasetDownload, DownloadSummary};
use crate::{Error, Result, hub, records};

/// Which data sets to download, from where and where to.
#[derive(Debug)]
pub struct DatasetsRequest {
    /// `datasets/raw`.
    pub folder: PathBuf,
    /// Data sets in download order.
    pub datasets: Vec<&'static Dataset>,
    /// Local copies to use instead of the hub.
    pub sources: Vec<LocalSource>,
    /// Maximum number of rows of each data set; `None` for its own limit.
    pub limit: Option<u64>,
    /// Verify existing data sets without using the network.
    pub offline: bool,
}

/// A complete raw data set.
struct Obtained {
    manifest: RawManifest,
    existed: bool,
}

/// Downloads the data sets in turn. The failure of one is in its record and does not stop the others.
pub fn download_datasets(
    request: &DatasetsRequest,
    settings: HubSettings,
    notify: Notify<'_>,
) -> Result<DownloadSummary> {
    fs::create_dir_all(&request.folder).map_err(|error| Error::io(&request.folder, error))?;
    let hub = Arc::new(Hub::new(settings)?);
    hub::run(async {
        let mut datasets = Vec::new();
        for dataset in &request.datasets {
            let start = Instant::now();
            let outcome = obtain(dataset, request, &hub, notify).await;
            datasets.push(record(dataset, outcome, start));
        }
        let successful = datasets.iter().filter(|dataset| dataset.success);
        Ok(DownloadSummary {
            total_successful: successful.clone().count() as u64,
            total_samples: successful.map(|dataset| dataset.count).sum(),
            datasets,
            extra: records::Extra::new(),
        })
    })
}

fn record(dataset: &Dataset, outcome: Result<Obtained>, start: Instant) -> DatasetDownload {
    let extra = outcome.as_ref().ok().map(|obtained| {
        let manifest = &obtained.manifest;
        serde_json::json!({
            "label": manifest.label,
            "source": manifest.source,
            "revision": manifest.revision,
            "rows": manifest.rows,
            "skipped": manifest.skipped,
            "was_there": obtained.existed,
        })
    });
    DatasetDownload {
        name: dataset.name.to_owned(),
        success: outcome.is_ok(),
        count: outcome.as_ref().map_or(0, |obtained| obtained.manifest.records),
        time_seconds: Some(records::seconds(start.elapsed().as_secs_f64())),
        error: outcome.err().map(|error| error.to_string()),
        extra: extra
            .and_then(|extra| extra.as_object().cloned())
            .unwrap_or_default(),
    }
}

async fn obtain(
    dataset: &'static Dataset,
    request: &DatasetsRequest,
    hub: &Arc<Hub>,
    notify: Notify<'_>,
) -> Result<Obtained> {
    let job = Job {
        dataset,
        folder: request.folder.join(dataset.name),
        row_limit: request.limit.or(dataset.row_limit),
        notify,
    };
    if let Some((path, publication)) = request.sources.iter().find_map(|source| source.of(dataset)) {
        return block_in_place(|| job.read_local(&path, publication));
    }
    if request.offline {
        return block_in_place(|| job.offline());
    }
    let mut publications = dataset.publications.iter().peekable();
    while let Some(publication) = publications.next() {
        match job.fetch(publication, hub).await {
            Err(error) if publications.peek().is_some() && is_unavailable(&error) => {
                notify(Level::WARN, &format!("{error}; trying another publication"));
            }
            outcome => return outcome,
        }
    }
    Err(Error::Internal(format!(
        "the data set {} has no publication",
        dataset.name
    )))
}

/// Returns whether the hub is reachable but does not serve this repository.
fn is_unavailable(error: &Error) -> bool {
    use HubError::{Gated, NoFile, NoRepository, NoRevision, Refused, Unsuitable};
    matches!(
        error,
        Error::Hub(
            Gated { .. }
                | NoFile { .. }
                | NoRepository { .. }
                | NoRevision { .. }
                | Refused { .. }
                | Unsuitable { .. }
        )
    )
}

/// Download of one data set.
struct Job<'a> {
    dataset: &'static Dataset,
    folder: PathBuf,
    row_limit: Option<u64>,
    notify: Notify<'a>,
}

impl Job<'_> {
    /// Returns the data set on disk, if it is complete and `is_same` accepts its manifest.
    fn existing(&self, is_same: impl Fn(&RawManifest) -> bool) -> Result<Option<Obtained>> {
        let found = match RawDataset::open(&self.folder) {
            Ok(found) => found,
            Err(error) => {
                (self.notify)(Level::WARN, &format!("{error}; downloading it again"));
                None
            }
        };
        let found =
            found.filter(|found| found.manifest().row_limit == self.row_limit && is_same(found.manifest()));
        let Some(found) = found else {
            return Ok(None);
        };
        if let Err(error) = found.verify() {
            (self.notify)(Level::WARN, &format!("{error}; downloading it again"));
            return Ok(None);
        }
        Incoming::discard(&self.folder)?;
        Ok(Some(Obtained {
            manifest: found.manifest().clone(),
            existed: true,
        }))
    }

    fn offline(&self) -> Result<Obtained> {
        let missing = || {
            HubError::Offline(format!(
                "{} does not exist or is not complete",
                self.folder.display()
            ))
        };
        self.existing(|_| true)?.ok_or_else(|| missing().into())
    }

    fn read_local(&self, path: &Path, publication: &Publication) -> Result<Obtained> {
        let (files, image_folder) = local_files(path, publication, self.notify)?;
        let source_files = described(&files)?;
        if let Some(existing) =
            self.existing(|manifest| manifest.source == LOCAL && manifest.source_files == source_files)?
        {
            return Ok(existing);
        }
        let source = SourceData {
            publication,
            files,
            image_folder,
            row_limit: self.row_limit,
        };
        let origin = Origin {
            name: self.dataset.name,
            source: LOCAL.to_owned(),
            revision: None,
            files: source_files,
        };
        self.finish(Incoming::open(&self.folder)?, &source, origin)
    }

    async fn fetch(&self, publication: &Publication, hub: &Arc<Hub>) -> Result<Obtained> {
        let repository = Repository::new(RepositoryKind::Dataset, publication.repository, "main")?;
        let snapshot = Arc::new(hub.snapshot(&repository).await?);
        let commit = Some(snapshot.commit());
        let is_same = |manifest: &RawManifest| {
            manifest.source == publication.repository && manifest.revision.as_deref() == commit
        };
        if let Some(existing) = block_in_place(|| self.existing(is_same))? {
            return Ok(existing);
        }
        let names = snapshot.files.iter().map(|file| file.path.as_str());
        let wanted = publication.row_files(names.filter(|name| !is_excluded(name)));
        if wanted.is_empty() {
            let pickled = snapshot.files.iter().any(|file| is_pickle(&file.path));
            let reason = if pickled { PICKLE } else { NO_ROWS };
            return Err(Error::from(HubError::Unsuitable {
                repository: publication.repository.to_owned(),
                reason: reason.to_owned(),
            }));
        }
        let find = |name: &&str| snapshot.files.iter().find(|file| file.path == *name).cloned();
        let wanted: Vec<RemoteFile> = wanted.iter().filter_map(find).collect();
        let staging = Incoming::open(&self.folder)?;
        // One folder per commit, so that files of different commits are not mixed.
        let folder = staging.folder().join(snapshot.commit());
        let fetched = self.fetch_rows(hub, &snapshot, &wanted, &folder).await?;
        let source = SourceData {
            publication,
            files: fetched.iter().map(|file| folder.join(&file.path)).collect(),
            image_folder: folder.join("pictures"),
            row_limit: self.row_limit,
        };
        if publication.has_images() {
            fetch_images(hub, &snapshot, &source).await?;
        }
        let origin = Origin {
            name: self.dataset.name,
            source: publication.repository.to_owned(),
            revision: Some(snapshot.commit().to_owned()),
            files: fetched,
        };
        block_in_place(|| self.finish(staging, &source, origin))
    }

    /// Downloads row files: all of them at once, or one by one until there are enough rows.
    async fn fetch_rows(
        &self,
        hub: &Arc<Hub>,
        snapshot: &Arc<Snapshot>,
        wanted: &[RemoteFile],
        folder: &Path,
    ) -> Result<Vec<hub::ManifestFile>> {
        let Some(limit) = self.row_limit else {
            return fetch_all(hub, snapshot, wanted, folder).await;
        };
        let (mut fetched, mut rows) = (Vec::new(), 0);
        for file in wanted {
            if rows >= limit {
                break;
            }
            fetched.extend(fetch_all(hub, snapshot, std::slice::from_ref(file), folder).await?);
            rows += block_in_place(|| count_rows(&folder.join(&file.path), limit - rows))?;
        }
        Ok(fetched)
    }

    fn finish(&self, staging: Incoming, source: &SourceData<'_>, origin: Origin) -> Result<Obtained> {
        let rows = self.row_limit.unwrap_or(0);
        let bar = console::progress_of("checking the data set", Unit::Of("rows"), rows);
        let manifest = build(source, origin, &staging.folder().join(NEW), &bar);
        bar.finish_and_clear();
        let manifest = manifest?;
        staging.replace_with(NEW)?;
        Ok(Obtained {
            manifest,
            existed: false,
        })
    }
}

/// `source` of the manifest of a local copy.
const LOCAL: &str = "local";
/// Subfolder of the staging folder in which a data set is built.
const NEW: &str = "new";

/// Downloads the images that rows refer to by path: files of the repository, or entries of its zip archives.
async fn fetch_images(hub: &Arc<Hub>, snapshot: &Arc<Snapshot>, source: &SourceData<'_>) -> Result<()> {
    let embedded = |path: &PathBuf| matches!(Format::of(&path.to_string_lossy()), Some((Format::Parquet, _)));
    if source.files.iter().all(embedded) {
        return Ok(());
    }
    let named = block_in_place(|| referenced_images(source))?;
    let named: Vec<String> = named
        .into_iter()
        .filter(|name| name_fault(name).is_none() && !is_excluded(name))
        .collect();
    let (plain, archived): (Vec<String>, Vec<String>) = named.into_iter().partition(|name| {
        snapshot
            .files
            .binary_search_by(|file| file.path.cmp(name))
            .is_ok()
    });
    let is_plain = |file: &&RemoteFile| plain.binary_search(&file.path).is_ok();
    let files: Vec<RemoteFile> = snapshot.files.iter().filter(is_plain).cloned().collect();
    fetch_all(hub, snapshot, &files, &source.image_folder).await?;
    fetch_archived(hub, snapshot, archived, &source.image_folder).await
}

async fn fetch_archived(
    hub: &Arc<Hub>,
    snapshot: &Arc<Snapshot>,
    names: Vec<String>,
    folder: &Path,
) -> Result<()> {
    let missing: Vec<String> = names
        .into_iter()
        .filter(|name| !folder.join(name).is_file())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let bar = console::progress_of("downloading images", Unit::Of("images"), missing.len() as u64);
    let missing = Arc::new(missing);
    let guard = CancelGuard::new();
    let permits = Arc::new(Semaphore::new(hub.jobs()));
    let mut tasks = JoinSet::new();
    for archive in snapshot.files.iter().filter(|file| file.path.ends_with(".zip")) {
        let reader = RemoteReader::new(hub, snapshot, archive, (Handle::current(), &guard));
        let (name, folder) = (PathBuf::from(&archive.path), folder.to_owned());
        let (missing, permits, bar) = (Arc::clone(&missing), Arc::clone(&permits), bar.clone());
        tasks.spawn(async move {
            let _permit = permits.acquire_owned().await.ok();
            let extracted = spawn_blocking(move || extract(&name, reader, &missing, &folder, &bar)).await;
            extracted.unwrap_or_else(|error| Err(download_panicked(&error)))
        });
    }
    let mut guard = Some(guard);
    let mut result = Ok(());
    // Wait for all tasks, even after a failure: a reader must not outlive the runtime and its timer.
    while let Some(outcome) = tasks.join_next().await {
        let outcome = outcome.unwrap_or_else(|error| Err(download_panicked(&error)));
        if outcome.is_err() && result.is_ok() {
            result = outcome;
            guard = None;
        }
    }
    drop(guard);
    bar.finish_and_clear();
    result
}

fn download_panicked(error: &tokio::task::JoinError) -> Error {
    Error::Internal(format!("a download ended unexpectedly: {error}"))
}

/// Extracts those of `names` that are in the archive to `folder`.
fn extract(
    archive: &Path,
    reader: RemoteReader,
    names: &[String],
    folder: &Path,
    bar: &Progress,
) -> Result<()> {
    let mut images = ImageFiles::empty(folder);
    images.add_archive(archive, Box::new(reader))?;
    for name in images.in_order(names) {
        let Some(bytes) = images.read(name)? else {
            continue;
        };
        let path = folder.join(name);
        let parent = parent_folder(&path);
        fs::create_dir_all(parent).map_err(|error| Error::io(parent, error))?;
        write_atomically(&path, |file| std::io::Write::write_all(file, &bytes))?;
        bar.inc(1);
    }
    Ok(())
}
