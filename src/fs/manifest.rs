//! `manifest.json` of a folder that this program wrote: its origin and the sha256 of every file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::fs::{json::write_pretty, open_regular, read_bounded};
use crate::{Error, Result};

/// Name of the file.
pub const MANIFEST: &str = "manifest.json";
const VERSION: u64 = 1;
/// Maximum size of a manifest.
const MAX_BYTES: u64 = 16 << 20;

/// Source and options of a folder. Folders with equal origins hold the same files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// The method's name in the records.
    pub method: String,
    /// The method's options.
    pub options: Value,
    /// Name of the source folder.
    pub source: String,
    /// sha256 over the source's files, see [`revision`].
    pub source_revision: String,
    /// Version of the program.
    pub tool: String,
}

/// Size and hash of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDigest {
    /// Length in bytes.
    pub bytes: u64,
    /// Lower-case hexadecimal.
    pub sha256: String,
}

/// The manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    manifest_version: u64,
    /// Source and options.
    pub origin: Origin,
    /// Whether all files are written.
    pub complete: bool,
    /// Finished files by name.
    pub files: BTreeMap<String, FileDigest>,
    /// While the folder is staged: payloads of finished files, which the last files are written from. A file and its payload
    /// are recorded together, so that a resumed run never has one without the other.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub notes: BTreeMap<String, Value>,
}

impl Manifest {
    /// The manifest of an empty folder.
    pub fn new(origin: Origin) -> Self {
        Self {
            manifest_version: VERSION,
            origin,
            complete: false,
            files: BTreeMap::new(),
            notes: BTreeMap::new(),
        }
    }

    /// Reads the manifest in `dir`; `None` if there is none that this version can use.
    pub fn read(dir: &Path) -> Option<Self> {
        let path = dir.join(MANIFEST);
        let manifest: Self = serde_json::from_slice(&read_bounded(&path, MAX_BYTES).ok()?).ok()?;
        (manifest.manifest_version == VERSION).then_some(manifest)
    }

    /// Writes it into `dir`.
    pub fn write(&self, dir: &Path) -> Result<()> {
        write_pretty(&dir.join(MANIFEST), self)
    }

    /// Names of the files in `dir` whose size and hash match.
    pub fn intact(&self, dir: &Path) -> Vec<String> {
        let files: Vec<_> = self.files.iter().collect();
        files
            .into_par_iter()
            .filter(|(name, digest)| digest_of(&dir.join(name)).is_ok_and(|found| found == **digest))
            .map(|(name, _)| name.clone())
            .collect()
    }
}

/// Size and hash of the file at `path`.
pub fn digest_of(path: &Path) -> Result<FileDigest> {
    open_regular(path)
        .and_then(|file| digest_of_file(&file))
        .map_err(|error| Error::io(path, error))
}

/// Size and hash of the open `file`. Where locks are mandatory, a second handle could not read a locked file.
pub(crate) fn digest_of_file(file: &File) -> io::Result<FileDigest> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let n = match file.read_at(&mut buffer, bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        bytes += n as u64;
    }
    Ok(FileDigest {
        bytes,
        sha256: hex(&hasher.finalize()),
    })
}

/// The revision of a set of files: sha256 over their names and hashes.
pub fn revision(files: &[PathBuf]) -> Result<String> {
    let mut lines = files
        .par_iter()
        .map(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            Ok(format!("{} {name}\n", digest_of(path)?.sha256))
        })
        .collect::<Result<Vec<_>>>()?;
    lines.sort();
    Ok(hex(&Sha256::digest(lines.concat())))
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
