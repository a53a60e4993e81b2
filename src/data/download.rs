//! Data sets from the hub, or from local copies, to their raw form under `datasets/raw`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, block_in_place, spawn_blocking};

use super::{
    build::{Material, Origin, build, named_pictures},
    pictures::Pictures,
    published::{Dataset, Publication},
    raw::{RawDataset, RawManifest},
    rows::{Format, count_rows},
    source::{LocalSource, NO_ROWS, PICKLE, described, local_files},
};
use crate::console::{self, Level, Progress, Unit};
use crate::error::HubError;
use crate::hub::{
    CancelGuard, Hub, HubSettings, Incoming, RemoteFile, RemoteReader, Repository, RepositoryKind, Snapshot,
    fetch_all, is_left_out, is_pickle, name_fault,
};
use crate::records::{DatasetDownload, DownloadSummary};
use crate::{Error, Result, hub, records};

/// Which data sets, from where and where to.
#[derive(Debug)]
pub struct DatasetsRequest {
    /// `datasets/raw`.
    pub folder: PathBuf,
    /// In the order they are downloaded.
    pub datasets: Vec<&'static Dataset>,
    /// Local copies, used instead of the hub.
    pub sources: Vec<LocalSource>,
    /// Most rows of each; none for each one's own limit.
    pub limit: Option<u64>,
    /// Use no network.
    pub offline: bool,
}

/// A complete raw data set.
struct Obtained {
    manifest: RawManifest,
    was_there: bool,
}

/// Downloads each data set in turn; what went wrong with one is in its record and costs no other.
pub fn download_datasets(request: &DatasetsRequest, settings: HubSettings) -> Result<DownloadSummary> {
    fs::create_dir_all(&request.folder).map_err(|error| Error::io(&request.folder, error))?;
    let hub = Arc::new(Hub::new(settings)?);
    hub::run(async {
        let mut datasets = Vec::new();
        for dataset in &request.datasets {
            let start = Instant::now();
            let outcome = obtain(dataset, request, &hub).await;
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
            "was_there": obtained.was_there,
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

async fn obtain(dataset: &'static Dataset, request: &DatasetsRequest, hub: &Arc<Hub>) -> Result<Obtained> {
    let job = Job {
        dataset,
        folder: request.folder.join(dataset.name),
        row_limit: request.limit.or(dataset.row_limit),
    };
    if let Some((path, publication)) = request.sources.iter().find_map(|source| source.of(dataset)) {
        return block_in_place(|| job.take_local(&path, publication));
    }
    if request.offline {
        return block_in_place(|| job.offline());
    }
    let mut publications = dataset.publications.iter().peekable();
    while let Some(publication) = publications.next() {
        match job.fetch(publication, hub).await {
            Err(error) if publications.peek().is_some() && is_absent(&error) => {
                console::say(Level::WARN, &format!("{error}; another copy is tried"));
            }
            outcome => return outcome,
        }
    }
    Err(Error::checkpoint(dataset.name, "is published nowhere"))
}

/// The hub works and does not give this repository.
fn is_absent(error: &Error) -> bool {
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

/// One data set on its way.
struct Job {
    dataset: &'static Dataset,
    folder: PathBuf,
    row_limit: Option<u64>,
}

impl Job {
    /// The data set as it is on disk, if it is whole and what `is_same` wants.
    fn there(&self, is_same: impl Fn(&RawManifest) -> bool) -> Result<Option<Obtained>> {
        let found = match RawDataset::open(&self.folder) {
            Ok(found) => found,
            Err(error) => {
                console::say(Level::WARN, &format!("{error}; it is made anew"));
                None
            }
        };
        let found =
            found.filter(|found| found.manifest().row_limit == self.row_limit && is_same(found.manifest()));
        let Some(found) = found else {
            return Ok(None);
        };
        if let Err(error) = found.verify() {
            console::say(Level::WARN, &format!("{error}; it is made anew"));
            return Ok(None);
        }
        Incoming::discard(&self.folder)?;
        Ok(Some(Obtained {
            manifest: found.manifest().clone(),
            was_there: true,
        }))
    }

    fn offline(&self) -> Result<Obtained> {
        let missing = || HubError::Offline(format!("{} is not there, or not whole", self.folder.display()));
        self.there(|_| true)?.ok_or_else(|| missing().into())
    }

    fn take_local(&self, path: &Path, publication: &Publication) -> Result<Obtained> {
        let (files, pictures) = local_files(path, publication)?;
        let source_files = described(&files)?;
        if let Some(there) =
            self.there(|manifest| manifest.source == LOCAL && manifest.source_files == source_files)?
        {
            return Ok(there);
        }
        let material = Material {
            publication,
            files,
            pictures,
            row_limit: self.row_limit,
        };
        let origin = Origin {
            name: self.dataset.name,
            source: LOCAL.to_owned(),
            revision: None,
            files: source_files,
        };
        self.finish(Incoming::open(&self.folder)?, &material, origin)
    }

    async fn fetch(&self, publication: &Publication, hub: &Arc<Hub>) -> Result<Obtained> {
        let repository = Repository::new(RepositoryKind::Dataset, publication.repository, "main")?;
        let snapshot = Arc::new(hub.snapshot(&repository).await?);
        let commit = Some(snapshot.commit());
        let is_same = |manifest: &RawManifest| {
            manifest.source == publication.repository && manifest.revision.as_deref() == commit
        };
        if let Some(there) = block_in_place(|| self.there(is_same))? {
            return Ok(there);
        }
        let names = snapshot.files.iter().map(|file| file.path.as_str());
        let wanted = publication.row_files(names.filter(|name| !is_left_out(name)));
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
        // By commit, so that nothing of another one is taken for this one's.
        let folder = staging.folder().join(snapshot.commit());
        let fetched = self.fetch_rows(hub, &snapshot, &wanted, &folder).await?;
        let material = Material {
            publication,
            files: fetched.iter().map(|file| folder.join(&file.path)).collect(),
            pictures: folder.join("pictures"),
            row_limit: self.row_limit,
        };
        if publication.has_pictures() {
            fetch_pictures(hub, &snapshot, &material).await?;
        }
        let origin = Origin {
            name: self.dataset.name,
            source: publication.repository.to_owned(),
            revision: Some(snapshot.commit().to_owned()),
            files: fetched,
        };
        block_in_place(|| self.finish(staging, &material, origin))
    }

    /// Fetches files of rows until there are enough of them, all at once where all are wanted.
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

    fn finish(&self, staging: Incoming, material: &Material<'_>, origin: Origin) -> Result<Obtained> {
        let rows = self.row_limit.unwrap_or(0);
        let bar = console::progress_of("checking the data set", Unit::Of("rows"), rows);
        let manifest = build(material, origin, &staging.folder().join(NEW), &bar);
        bar.finish_and_clear();
        let manifest = manifest?;
        staging.replace_with(NEW)?;
        Ok(Obtained {
            manifest,
            was_there: false,
        })
    }
}

/// `source` of a local copy.
const LOCAL: &str = "local";
/// The folder in which a data set is put together.
const NEW: &str = "new";

/// Fetches the pictures that rows name by path: files of the repository, or entries of its zip archives.
async fn fetch_pictures(hub: &Arc<Hub>, snapshot: &Arc<Snapshot>, material: &Material<'_>) -> Result<()> {
    let in_rows = |path: &PathBuf| matches!(Format::of(&path.to_string_lossy()), Some((Format::Parquet, _)));
    if material.files.iter().all(in_rows) {
        return Ok(());
    }
    let named = block_in_place(|| named_pictures(material))?;
    let named: Vec<String> = named
        .into_iter()
        .filter(|name| name_fault(name).is_none() && !is_left_out(name))
        .collect();
    let (plain, archived): (Vec<String>, Vec<String>) = named.into_iter().partition(|name| {
        snapshot
            .files
            .binary_search_by(|file| file.path.cmp(name))
            .is_ok()
    });
    let is_plain = |file: &&RemoteFile| plain.binary_search(&file.path).is_ok();
    let files: Vec<RemoteFile> = snapshot.files.iter().filter(is_plain).cloned().collect();
    fetch_all(hub, snapshot, &files, &material.pictures).await?;
    fetch_archived(hub, snapshot, archived, &material.pictures).await
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
    let bar = console::progress_of("downloading pictures", Unit::Of("pictures"), missing.len() as u64);
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
            extracted.unwrap_or_else(|error| Err(Error::io("a download", std::io::Error::other(error))))
        });
    }
    let mut guard = Some(guard);
    let mut whole = Ok(());
    // All of them, after a failure too: a reader that goes on when the runtime ends has no clock to wait by.
    while let Some(outcome) = tasks.join_next().await {
        let outcome =
            outcome.unwrap_or_else(|error| Err(Error::io("a download", std::io::Error::other(error))));
        if outcome.is_err() && whole.is_ok() {
            whole = outcome;
            guard = None;
        }
    }
    drop(guard);
    bar.finish_and_clear();
    whole
}

/// Writes those of `names` that are in the archive to `folder`.
fn extract(
    archive: &Path,
    reader: RemoteReader,
    names: &[String],
    folder: &Path,
    bar: &Progress,
) -> Result<()> {
    let mut pictures = Pictures::empty(folder);
    pictures.add_archive(archive, Box::new(reader))?;
    for name in pictures.in_order(names) {
        let Some(bytes) = pictures.read(name)? else {
            continue;
        };
        let path = folder.join(name);
        let parent = path.parent().unwrap_or(folder);
        fs::create_dir_all(parent).map_err(|error| Error::io(parent, error))?;
        crate::fs::write_atomically(&path, |file| std::io::Write::write_all(file, &bytes))?;
        bar.inc(1);
    }
    Ok(())
}
