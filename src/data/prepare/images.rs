//! The images of the samples: reports rendered as pages, image files copied unchanged.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::clinical::IMAGE_PREFIX;
use super::duplicates::short_hex;
use super::samples::Candidate;
use crate::data::DATASETS;
use crate::fs::{is_temporary, sync_file_system, write_unsynced};
use crate::processing::{DecodeLimits, decode};
use crate::rendering::{RENDERING_VERSION, encode_grey, text_lines, text_page};
use crate::{Error, Result};

/// Maximum size of an image file; larger ones count as undecodable.
const MAX_IMAGE_BYTES: u64 = 256 << 20;

/// Prefix of the file names of rendered pages.
const PAGE_PREFIX: &str = "mt";

/// Source of an image.
#[derive(Debug, Clone)]
pub(super) enum ImageSource {
    /// Text to render as a page.
    Text { text: String },
    /// File to copy.
    File { path: PathBuf, prefix: &'static str },
}

/// Result of writing an image, with its file name.
#[derive(Debug)]
pub(super) enum Written {
    Created { file: String },
    Existing { file: String },
    Undecodable,
}

impl Written {
    pub(super) fn file(&self) -> Option<&str> {
        match self {
            Self::Created { file } | Self::Existing { file } => Some(file),
            Self::Undecodable => None,
        }
    }
}

impl ImageSource {
    /// Returns a key that is equal for equal images.
    pub(super) fn identity(&self) -> String {
        match self {
            Self::Text { text } => page_name(text),
            Self::File { path, .. } => path.to_string_lossy().into_owned(),
        }
    }
}

/// Returns the file name of a page: a hash of its text and the rendering version. Equal texts of two data sets share a page.
fn page_name(text: &str) -> String {
    let digest = Sha256::new()
        .chain_update(RENDERING_VERSION.to_le_bytes())
        .chain_update(text);
    format!("{PAGE_PREFIX}_{}.png", short_hex(digest))
}

/// Writer of the image folder.
pub(super) struct ImageWriter<'a> {
    folder: &'a Path,
}

impl<'a> ImageWriter<'a> {
    pub(super) fn new(folder: &'a Path) -> Self {
        Self { folder }
    }

    /// Writes an image unless it exists and is intact.
    pub(super) fn write(&self, image: &ImageSource) -> Result<Written> {
        match image {
            ImageSource::Text { text } => self.write_page(text),
            ImageSource::File { path, prefix } => self.copy(path, prefix),
        }
    }

    fn write_page(&self, text: &str) -> Result<Written> {
        let file = page_name(text);
        if is_intact_png(&self.folder.join(&file)) {
            return Ok(Written::Existing { file });
        }
        let mut bytes = Vec::new();
        encode_grey(&text_page(&text_lines(text)), &mut bytes)
            .map_err(|error| Error::io(self.folder, error))?;
        self.store(&file, &bytes)?;
        Ok(Written::Created { file })
    }

    /// Writes a generated image unless it exists; its name is a hash of its content.
    pub(super) fn write_generated(&self, bytes: &[u8], suffix: &str) -> Result<Written> {
        let file = format!(
            "{IMAGE_PREFIX}_{}.{suffix}",
            short_hex(Sha256::new_with_prefix(bytes))
        );
        if read(&self.folder.join(&file)).is_ok_and(|existing| existing == bytes) {
            return Ok(Written::Existing { file });
        }
        self.store(&file, bytes)?;
        Ok(Written::Created { file })
    }

    fn copy(&self, path: &Path, prefix: &str) -> Result<Written> {
        let bytes = match read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Written::Undecodable),
            Err(error) => return Err(Error::io(path, error)),
        };
        let suffix = path.extension().and_then(OsStr::to_str).unwrap_or("img");
        let file = format!("{prefix}_{}.{suffix}", short_hex(Sha256::new_with_prefix(&bytes)));
        // Compare the content: a crash of the machine may have truncated the file.
        if read(&self.folder.join(&file)).is_ok_and(|existing| existing == bytes) {
            return Ok(Written::Existing { file });
        }
        if bytes.len() as u64 > MAX_IMAGE_BYTES || decode(&bytes, &DecodeLimits::default()).is_err() {
            return Ok(Written::Undecodable);
        }
        self.store(&file, &bytes)?;
        Ok(Written::Created { file })
    }

    /// The file is complete or absent; [`ImageWriter::sync`] forces it to the disk.
    fn store(&self, file: &str, bytes: &[u8]) -> Result<()> {
        write_unsynced(&self.folder.join(file), bytes)
    }

    /// Syncs the whole file system: thousands of `fsync` calls would take longer than rendering.
    pub(super) fn sync(&self) -> Result<()> {
        sync_file_system(self.folder)
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(MAX_IMAGE_BYTES + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Returns whether a PNG is complete and unchanged: all chunk checksums match and the last chunk is `IEND`.
fn is_intact_png(path: &Path) -> bool {
    let Ok(bytes) = read(path) else { return false };
    let Some(mut rest) = bytes.strip_prefix(b"\x89PNG\r\n\x1a\n") else {
        return false;
    };
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = u32::from_be_bytes(*length) as usize;
        let Some((chunk, after)) = after.split_at_checked(length.saturating_add(4)) else {
            return false;
        };
        let Some((checksum, after)) = after.split_first_chunk::<4>() else {
            return false;
        };
        if crc32fast::hash(chunk) != u32::from_be_bytes(*checksum) {
            return false;
        }
        if chunk.starts_with(b"IEND") {
            return after.is_empty();
        }
        rest = after;
    }
    false
}

/// Removes images of earlier runs that no sample uses, and temporary files.
pub(super) fn remove_stale(folder: &Path, candidates: &[Candidate], generated: &[String]) -> Result<()> {
    let wanted: HashSet<&str> = candidates
        .iter()
        .map(|candidate| candidate.file.as_str())
        .chain(generated.iter().map(String::as_str))
        .collect();
    let attempt = || {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if is_ours(&name) && !wanted.contains(name.as_ref()) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    };
    attempt().map_err(|error| Error::io(folder, error))
}

/// Returns whether a file name is one that this module gives, as opposed to a user's file.
fn is_ours(name: &str) -> bool {
    let publications = DATASETS.iter().flat_map(|dataset| dataset.publications);
    let mut prefixes = publications
        .map(|publication| publication.image_prefix)
        .chain([IMAGE_PREFIX, PAGE_PREFIX]);
    is_temporary(name)
        || prefixes.any(|prefix| {
            name.strip_prefix(prefix)
                .is_some_and(|rest| rest.starts_with('_'))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncated_and_changed_pngs_are_detected() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("page.png");
        let mut bytes = Vec::new();
        encode_grey(&text_page(&["one line"]), &mut bytes).unwrap();
        let intact = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            is_intact_png(&path)
        };
        assert!(intact(&bytes));
        for length in (0..bytes.len()).step_by(7).chain([bytes.len() - 1]) {
            assert!(!intact(&bytes[..length]), "cut to {length}");
        }
        for index in (0..bytes.len()).step_by(11) {
            let mut flipped = bytes.clone();
            flipped[index] ^= 0x40;
            assert!(!intact(&flipped), "byte {index}");
        }
        assert!(!intact(&[bytes.as_slice(), b"more"].concat()));
        assert!(!is_intact_png(&folder.path().join("absent.png")));
    }
}
