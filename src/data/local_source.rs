//! Local copies of published data sets (`--source`).

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::datasets::{DATASETS, Dataset, Publication};
use crate::console::Notify;
use crate::error::HubError;
use crate::fs::{hub_cache, open_regular, parent_folder};
use crate::hub::{Checksum, Hasher, ManifestFile, files_below, is_pickle};
use crate::{Error, Result};

/// A file or folder on this machine, and the data set that it is a copy of.
#[derive(Debug, Clone)]
pub struct LocalSource {
    name: Option<&'static str>,
    path: PathBuf,
}

impl FromStr for LocalSource {
    type Err = String;

    /// Parses `PATH`, or `NAME=PATH` if the data set cannot be inferred from the path.
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some((name, path)) = text.split_once('=')
            && let Some(dataset) = Dataset::named(name)
        {
            let (name, path) = (Some(dataset.name), PathBuf::from(path));
            return Ok(Self { name, path });
        }
        let source = Self {
            name: None,
            path: PathBuf::from(text),
        };
        if DATASETS.iter().all(|dataset| source.of(dataset).is_none()) {
            let names = DATASETS
                .iter()
                .map(|dataset| dataset.name)
                .collect::<Vec<_>>()
                .join(", ");
            return Err(format!(
                "the data set cannot be inferred from its name; write NAME={text} with one of {names}"
            ));
        }
        Ok(source)
    }
}

impl LocalSource {
    /// Returns the copy of `dataset` that this is or contains.
    pub(crate) fn of(&self, dataset: &Dataset) -> Option<(PathBuf, &'static Publication)> {
        let named = |path: &Path| dataset.publication_of(path.file_name()?.to_str()?);
        if let Some(name) = self.name {
            let first = Dataset::named(name)?.publications.first()?;
            return (name == dataset.name).then(|| (self.path.clone(), named(&self.path).unwrap_or(first)));
        }
        if let Some(publication) = named(&self.path) {
            return Some((self.path.clone(), publication));
        }
        let mut inside: Vec<PathBuf> = fs::read_dir(&self.path)
            .ok()?
            .flatten()
            .map(|entry| entry.path())
            .collect();
        inside.sort();
        inside
            .into_iter()
            .find_map(|path| named(&path).map(|publication| (path.clone(), publication)))
    }
}

/// Returns the row files of a local copy, in order, and the folder of its images.
pub(super) fn local_files(
    path: &Path,
    publication: &Publication,
    notify: Notify<'_>,
) -> Result<(Vec<PathBuf>, PathBuf)> {
    let path = &hub_cache::resolved(path, "main")?;
    let unsuitable = |reason: &str| HubError::Unsuitable {
        repository: path.display().to_string(),
        reason: reason.to_owned(),
    };
    if is_pickle(&path.to_string_lossy()) {
        return Err(unsuitable(PICKLE).into());
    }
    if path.is_file() {
        return Ok((vec![path.to_owned()], parent_folder(path).to_owned()));
    }
    if path.exists() && !path.is_dir() {
        open_regular(path).map_err(|error| Error::io(path, error))?;
    }
    if !path.is_dir() {
        return Err(Error::not_found(
            path,
            "no such file or folder; --source expects a copy of a data set",
        ));
    }
    let names = files_below(path, notify)?;
    let files = publication.row_files(names.iter().map(String::as_str));
    if files.is_empty() {
        let pickled = names.iter().any(|name| is_pickle(name));
        return Err(unsuitable(if pickled { PICKLE } else { NO_ROWS }).into());
    }
    Ok((
        files.into_iter().map(|name| path.join(name)).collect(),
        path.to_owned(),
    ))
}

pub(super) const PICKLE: &str = "its rows are pickle, which can run any code when it is loaded, so this program never loads it; use Parquet, JSON or CSV";
pub(super) const NO_ROWS: &str = "contains no .parquet, .jsonl, .json or .csv file";

/// Returns the size and SHA-256 of local files.
pub(super) fn described(files: &[PathBuf]) -> Result<Vec<ManifestFile>> {
    let describe = |path: &PathBuf| {
        let size = path.metadata().map_err(|error| Error::io(path, error))?.len();
        let sha256 = Hasher::hash_file(path, Checksum::sha256_hasher())?;
        Ok(ManifestFile {
            path: path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            size,
            sha256: sha256.to_string(),
        })
    };
    files.iter().map(describe).collect()
}
