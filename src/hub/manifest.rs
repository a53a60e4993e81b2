//! `download_manifest.json`: the files of a download with size and SHA-256, and their origin.

use std::io::{Read, Write};
use std::path::Path;

use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};

use super::{Checksum, Hasher, checksum::read_chunks};
use crate::fs::{open_regular, read_bounded};
use crate::{Error, Result};

/// Name of the manifest in a downloaded folder.
pub const DOWNLOAD_MANIFEST: &str = "download_manifest.json";
const FORMAT: u32 = 1;
const MAX_BYTES: u64 = 64 << 20;

/// One file of a download.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Path relative to the folder, with `/`.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
}

/// Manifest of a downloaded folder. It is written last, so a folder with one is complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DownloadManifest {
    /// Version of the format.
    pub format: u32,
    /// `OWNER/NAME` on the hub, or "local".
    pub repository: String,
    /// Requested branch, tag or commit.
    pub requested_revision: String,
    /// Resolved commit; `None` for local copies of unknown origin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// What the files were verified against: `hub`, `notes of the local copy`, or only the model's `structure`.
    pub checked_against: String,
    /// Program that wrote it, with its version.
    pub tool: String,
    /// Files, sorted by path.
    pub files: Vec<ManifestFile>,
}

impl DownloadManifest {
    /// Creates a manifest without files.
    pub fn new(
        repository: &str,
        requested_revision: &str,
        commit: Option<&str>,
        checked_against: &str,
    ) -> Self {
        Self {
            format: FORMAT,
            repository: repository.to_owned(),
            requested_revision: requested_revision.to_owned(),
            commit: commit.map(str::to_owned),
            checked_against: checked_against.to_owned(),
            tool: tool_version(),
            files: Vec::new(),
        }
    }

    /// Reads the manifest in `folder`; `None` if there is none.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(DOWNLOAD_MANIFEST);
        let text = match read_bounded(&path, MAX_BYTES) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(&path, error)),
        };
        let manifest: Self = serde_json::from_slice(&text).map_err(|error| {
            Error::invalid_file(
                &path,
                format!("not a download's manifest ({error}); delete it and run the download again"),
            )
        })?;
        if manifest.format > FORMAT {
            return Err(Error::invalid_file(
                &path,
                "written by a newer version of this program; delete it and run the download again",
            ));
        }
        let inside = |file: &ManifestFile| {
            let mut parts = Path::new(&file.path).components().peekable();
            parts.peek().is_some() && parts.all(|part| matches!(part, std::path::Component::Normal(_)))
        };
        match manifest.files.iter().find(|file| !inside(file)) {
            Some(_) => Err(Error::invalid_file(
                &path,
                "names a file outside the folder; delete it and run the download again",
            )),
            None => Ok(Some(manifest)),
        }
    }

    /// Writes the manifest into `folder`.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(DOWNLOAD_MANIFEST);
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(|error| Error::io(&path, std::io::Error::other(error)))?;
        text.push(b'\n');
        crate::fs::write_atomically(&path, |file| file.write_all(&text))
    }

    /// Total size of the files in bytes.
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

impl ManifestFile {
    /// Describes the file at `folder/path`; `None` if it is missing or its size or checksum differs.
    pub(super) fn matching(
        folder: &Path,
        path: &str,
        size: u64,
        checksum: &Checksum,
        bar: &ProgressBar,
    ) -> Result<Option<Self>> {
        let full = folder.join(path);
        if !full
            .metadata()
            .is_ok_and(|found| found.is_file() && found.len() == size)
        {
            return Ok(None);
        }
        let mut digests = Digests::new(Some(checksum), size);
        let file = open_regular(&full).map_err(|error| Error::io(&full, error))?;
        digests
            .update_from(file, bar)
            .map_err(|error| Error::io(&full, error))?;
        Ok(digests.finish(Some(checksum)).ok().map(|sha256| Self {
            path: path.to_owned(),
            size,
            sha256,
        }))
    }
}

/// SHA-256 for the manifest and, if the hub announces one, the git blob id.
#[derive(Debug)]
pub(super) struct Digests {
    sha256: Hasher,
    blob: Option<Hasher>,
}

impl Digests {
    /// Creates the hashers for a file of `size` bytes with the checksum `expected`, if known.
    pub(super) fn new(expected: Option<&Checksum>, size: u64) -> Self {
        let is_blob = |checksum: &&Checksum| matches!(checksum, Checksum::GitBlob(_));
        Self {
            sha256: Checksum::sha256_hasher(),
            blob: expected.filter(is_blob).map(|checksum| checksum.hasher(size)),
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.sha256.update(bytes);
        if let Some(hasher) = &mut self.blob {
            hasher.update(bytes);
        }
    }

    /// Hashes the content of `reader` and advances `bar`. Returns the number of bytes.
    pub(super) fn update_from(&mut self, reader: impl Read, bar: &ProgressBar) -> std::io::Result<u64> {
        read_chunks(reader, |chunk| {
            self.update(chunk);
            bar.inc(chunk.len() as u64);
        })
    }

    /// Returns the SHA-256.
    ///
    /// # Errors
    /// The actual checksum, if it is not `expected`.
    pub(super) fn finish(self, expected: Option<&Checksum>) -> Result<String, Checksum> {
        let sha256 = self.sha256.finish();
        let found = self.blob.map_or(sha256, Hasher::finish);
        match expected {
            Some(expected) if *expected != found => Err(found),
            _ => Ok(sha256.to_string()),
        }
    }
}

/// Name and version of this program, for manifests.
pub(crate) fn tool_version() -> String {
    format!("medical-vision-pipeline {}", crate::version::version())
}
