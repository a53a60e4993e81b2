//! What a download left on disk: each file with its size and SHA-256, and where it came from.

use std::io::{Read, Write};
use std::path::Path;

use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};

use super::{Checksum, Hasher, checksum::read_pieces};
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
    /// Bytes.
    pub size: u64,
    /// SHA-256 of the bytes, hexadecimal.
    pub sha256: String,
}

/// `download_manifest.json`: written last, so a folder that has one was complete when it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DownloadManifest {
    /// Version of this file's form.
    pub format: u32,
    /// `OWNER/NAME` on the hub, or "local".
    pub repository: String,
    /// What was asked for: a branch, tag or commit.
    pub requested_revision: String,
    /// The commit it was; none for local copies of unknown origin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// What the files were checked against: `hub`, `notes of the local copy`, or nothing but the model's `structure`.
    pub checked_against: String,
    /// What wrote it.
    pub tool: String,
    /// Every file, sorted by path.
    pub files: Vec<ManifestFile>,
}

impl DownloadManifest {
    /// A manifest without files.
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
            tool: tool(),
            files: Vec::new(),
        }
    }

    /// The manifest in `folder`; `None` where it has none.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(DOWNLOAD_MANIFEST);
        let text = match read_bounded(&path, MAX_BYTES) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(&path, error)),
        };
        let manifest: Self = serde_json::from_slice(&text).map_err(|error| {
            Error::checkpoint(
                &path,
                format!("not a download's manifest ({error}); delete it and run the download again"),
            )
        })?;
        if manifest.format > FORMAT {
            return Err(Error::checkpoint(
                &path,
                "written by a newer version of this program; delete it and run the download again",
            ));
        }
        let inside = |file: &ManifestFile| {
            let mut parts = Path::new(&file.path).components().peekable();
            parts.peek().is_some() && parts.all(|part| matches!(part, std::path::Component::Normal(_)))
        };
        match manifest.files.iter().find(|file| !inside(file)) {
            Some(_) => Err(Error::checkpoint(
                &path,
                "names a file outside the folder; delete it and run the download again",
            )),
            None => Ok(Some(manifest)),
        }
    }

    /// Writes it into `folder`.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(DOWNLOAD_MANIFEST);
        let mut text = serde_json::to_vec_pretty(self)
            .map_err(|error| Error::io(&path, std::io::Error::other(error)))?;
        text.push(b'\n');
        crate::fs::write_atomically(&path, |file| file.write_all(&text))
    }

    /// Bytes of all files.
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

impl ManifestFile {
    /// Describes the file at `folder/path`, if its bytes are those of `checksum`.
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

/// SHA-256 for the manifest and, where the hub announces that, git's blob id.
#[derive(Debug)]
pub(super) struct Digests {
    sha256: Hasher,
    blob: Option<Hasher>,
}

impl Digests {
    /// Hashers for a file of `size` bytes that is to be `expected`, where that is known.
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

    /// Takes everything `reader` yields and moves `bar` along; how many bytes that was.
    pub(super) fn update_from(&mut self, reader: impl Read, bar: &ProgressBar) -> std::io::Result<u64> {
        read_pieces(reader, |piece| {
            self.update(piece);
            bar.inc(piece.len() as u64);
        })
    }

    /// The SHA-256 if the bytes are those of `expected`, else what they hash to.
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
pub(crate) fn tool() -> String {
    format!("medical-vision-pipeline {}", crate::version::version())
}
