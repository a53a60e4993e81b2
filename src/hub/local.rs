//! Local copies of repositories: from another machine, from the hub's own tools, or from an earlier run.
//!
//! Expected checksums come from the manifest of an earlier run, from the metadata files of `hf download --local-dir`, or
//! from the file names in the hub's cache. Without them only the model's structure can be checked.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;

use super::{
    Checksum, ManifestFile,
    checksum::read_chunks,
    download::require_space,
    manifest::{DOWNLOAD_MANIFEST, Digests, DownloadManifest},
    names::name_fault,
};
use crate::console::{self, Level, Notify};
use crate::error::HubError;
use crate::fs::{hub_cache, open_regular, read_text};
use crate::{Error, Result};

/// Maximum depth of subfolders.
const MAX_DEPTH: usize = 8;
const MAX_FILES: usize = 4_000_000;
/// Maximum size of a metadata file; it has three short lines.
const MAX_METADATA_BYTES: u64 = 4096;

/// A folder with the expected checksums of its files, as far as they are known.
#[derive(Debug)]
pub(super) struct LocalCopy {
    folder: PathBuf,
    /// Sorted by path.
    pub files: Vec<LocalFile>,
    manifest: Option<DownloadManifest>,
    commit: Option<String>,
}

/// One file of a local copy.
#[derive(Debug)]
pub(super) struct LocalFile {
    /// Relative to the folder.
    pub path: String,
    size: u64,
    expected: Option<Checksum>,
}

impl LocalCopy {
    /// Lists `folder` and reads the expected checksums; `notify` receives warnings about skipped files.
    pub(super) fn open(folder: &Path, notify: Notify<'_>) -> Result<Self> {
        if !folder.is_dir() {
            return Err(Error::not_found(
                folder,
                "no such folder; --source names one that holds a model",
            ));
        }
        let manifest = DownloadManifest::read(folder)?;
        let names = files_below(folder, notify)?;
        let announced: HashMap<&str, &ManifestFile> = manifest
            .iter()
            .flat_map(|manifest| &manifest.files)
            .map(|file| (file.path.as_str(), file))
            .collect();
        if let Some(missing) = announced
            .keys()
            .find(|name| !names.iter().any(|found| found == *name))
        {
            return Err(Error::not_found(folder.join(missing), MISSING));
        }
        let mut commit = manifest.as_ref().and_then(|manifest| manifest.commit.clone());
        commit = commit.or_else(|| hub_cache::commit(folder));
        let mut files = Vec::new();
        for path in names {
            let full = folder.join(&path);
            let size = full.metadata().map_err(|error| Error::io(&full, error))?.len();
            let expected = match announced.get(path.as_str()) {
                Some(file) => file.sha256.parse().ok(),
                None => match Metadata::read(folder, &path) {
                    Some(metadata) => {
                        commit.get_or_insert(metadata.commit);
                        metadata.checksum
                    }
                    None => blob_checksum(&full),
                },
            };
            files.push(LocalFile { path, size, expected });
        }
        Ok(Self {
            folder: folder.to_owned(),
            files,
            manifest,
            commit,
        })
    }

    /// Returns a manifest without files: the copy's own, or a new one that says what could be verified.
    pub(super) fn manifest(&self, id: &str, revision: &str) -> DownloadManifest {
        let known = self.files.iter().filter(|file| file.expected.is_some()).count();
        let checked_against = match known {
            0 => "structure",
            known if known < self.files.len() => "structure and, where it has any, notes of the local copy",
            _ => "notes of the local copy",
        };
        match &self.manifest {
            Some(manifest) => DownloadManifest {
                files: Vec::new(),
                ..manifest.clone()
            },
            None => DownloadManifest::new(id, revision, self.commit.as_deref(), checked_against),
        }
    }

    /// Hashes the `wanted` files in place.
    pub(super) fn verify(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<ManifestFile>> {
        self.each(wanted, |file, bar| {
            let path = self.folder.join(&file.path);
            let mut digests = Digests::new(file.expected.as_ref(), file.size);
            let attempt = open_regular(&path).and_then(|open| digests.update_from(open, bar));
            let size = attempt.map_err(|error| Error::io(&path, error))?;
            self.described(file, size, digests)
        })
    }

    /// Copies the `wanted` files into `folder`. Existing files are verified and kept.
    pub(super) fn copy_to(&self, folder: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<ManifestFile>> {
        let existing = |file: &LocalFile| {
            let known = file.expected.map(|checksum| {
                ManifestFile::matching(folder, &file.path, file.size, &checksum, &ProgressBar::hidden())
            });
            known.transpose().map(Option::flatten)
        };
        let sizes = self.files.iter().filter(|file| wanted(&file.path));
        require_space(folder, sizes.map(|file| file.size).fold(0, u64::saturating_add))?;
        self.each(wanted, |file, bar| match existing(file)? {
            Some(found) => Ok(found),
            None => self.copy_one(file, folder, bar),
        })
    }

    fn each(
        &self,
        wanted: impl Fn(&str) -> bool,
        work: impl Fn(&LocalFile, &ProgressBar) -> Result<ManifestFile>,
    ) -> Result<Vec<ManifestFile>> {
        let bars = console::transfer_bars("copying files");
        let files = self.files.iter().filter(|file| wanted(&file.path));
        files
            .map(|file| {
                let bar = bars.add(&file.path, file.size);
                let done = work(file, &bar);
                bar.finish_and_clear();
                done
            })
            .collect()
    }

    fn copy_one(&self, file: &LocalFile, folder: &Path, bar: &ProgressBar) -> Result<ManifestFile> {
        let (from, to) = (self.folder.join(&file.path), folder.join(&file.path));
        let source = open_regular(&from).map_err(|error| Error::io(&from, error))?;
        if let Some(parent) = to.parent() {
            fs::create_dir_all(parent).map_err(|error| Error::io(parent, error))?;
        }
        let mut target = File::create(&to).map_err(|error| Error::io(&to, error))?;
        let mut digests = Digests::new(file.expected.as_ref(), file.size);
        let mut written = Ok(());
        let size = read_chunks(source, |chunk| {
            digests.update(chunk);
            if written.is_ok() {
                written = target.write_all(chunk);
            }
            bar.inc(chunk.len() as u64);
        })
        .map_err(|error| Error::io(&from, error))?;
        written
            .and_then(|()| target.sync_all())
            .map_err(|error| Error::io(&to, error))?;
        self.described(file, size, digests)
    }

    fn described(&self, file: &LocalFile, size: u64, digests: Digests) -> Result<ManifestFile> {
        let sha256 = digests.finish(file.expected.as_ref()).map_err(|found| {
            let path = self.folder.join(&file.path);
            Error::invalid_file(
                path,
                format!("is damaged: its checksum is {found}; use another copy, or download it"),
            )
        })?;
        Ok(ManifestFile {
            path: file.path.clone(),
            size,
            sha256,
        })
    }
}

const MISSING: &str = "is missing, though the folder's manifest lists it; use another copy, or download it";

/// Metadata that `hf download --local-dir` stores of a file: commit and checksum.
struct Metadata {
    commit: String,
    checksum: Option<Checksum>,
}

impl Metadata {
    fn read(folder: &Path, path: &str) -> Option<Self> {
        let path = folder
            .join(".cache/huggingface/download")
            .join(format!("{path}.metadata"));
        let text = read_text(&path, MAX_METADATA_BYTES).ok()?;
        let mut lines = text.lines();
        Some(Self {
            commit: lines.next()?.trim().to_owned(),
            checksum: lines.next()?.trim().parse().ok(),
        })
    }
}

/// Returns the checksum of a file in the hub's cache, where it is a link to `blobs/CHECKSUM`.
fn blob_checksum(path: &Path) -> Option<Checksum> {
    let target = fs::canonicalize(path).ok()?;
    let in_blobs = target.parent()?.file_name()? == "blobs";
    in_blobs
        .then(|| target.file_name()?.to_str()?.parse().ok())
        .flatten()
}

/// Returns the relative paths of the files below `folder`, sorted and validated, without hidden ones.
/// `notify` receives warnings about other skipped files.
pub(crate) fn files_below(folder: &Path, notify: Notify<'_>) -> Result<Vec<String>> {
    let mut names = Vec::new();
    list(folder, "", 0, &mut names, notify)?;
    names.sort();
    Ok(names)
}

/// Hidden folders contain metadata of tools, hidden files are `.gitattributes` and the like.
fn list(
    folder: &Path,
    prefix: &str,
    depth: usize,
    names: &mut Vec<String>,
    notify: Notify<'_>,
) -> Result<()> {
    let subfolder = folder.join(prefix);
    let entries = fs::read_dir(&subfolder).map_err(|error| Error::io(&subfolder, error))?;
    for entry in entries {
        let name = entry.map_err(|error| Error::io(&subfolder, error))?.file_name();
        let Some(name) = name.to_str() else {
            continue;
        };
        let path = if prefix.is_empty() {
            name.to_owned()
        } else {
            format!("{prefix}/{name}")
        };
        let full = folder.join(&path);
        if name.starts_with('.') || path == DOWNLOAD_MANIFEST {
            continue;
        }
        if full.is_dir() {
            if depth < MAX_DEPTH {
                list(folder, &path, depth + 1, names, notify)?;
            }
        } else if full.is_file() {
            if let Some(reason) = name_fault(&path) {
                return Err(Error::from(HubError::UnsafeName {
                    repository: folder.display().to_string(),
                    name: path,
                    reason,
                }));
            }
            names.push(path);
        } else if full.exists() {
            let message = format!("{} is skipped: it is not a regular file", full.display());
            notify(Level::WARN, &message);
        }
        if names.len() > MAX_FILES {
            return Err(Error::unsuitable(
                folder,
                "contains too many files for a model or a data set",
            ));
        }
    }
    Ok(())
}

/// Returns whether both paths are the same folder.
pub(super) fn is_same_folder(one: &Path, other: &Path) -> bool {
    matches!((fs::canonicalize(one), fs::canonicalize(other)), (Ok(one), Ok(other)) if one == other)
}
