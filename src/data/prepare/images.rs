//! The images of the samples: reports drawn as pages, pictures taken over as they are.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::groups::short_hex;
use super::samples::Candidate;
use crate::fs::{is_temporary, sync_file_system, write_unsynced};
use crate::processing::{DecodeLimits, decode};
use crate::rendering::{RENDERING_VERSION, encode_grey, text_lines, text_page};
use crate::{Error, Result};

/// A larger picture counts as broken.
const MAX_PICTURE_BYTES: u64 = 256 << 20;
const PREFIXES: [&str; 5] = ["mt_", "pvqa_", "pmv_", "roco_", "clinical_"];

/// What an image is made from.
#[derive(Debug, Clone)]
pub(super) enum ImageSource {
    /// Drawn as a page.
    Text(String),
    /// Taken over; its name begins with `label`.
    Picture { path: PathBuf, label: &'static str },
}

/// What became of an image.
#[derive(Debug)]
pub(super) enum Outcome {
    Made { file: String },
    Kept { file: String },
    Broken,
}

impl Outcome {
    pub(super) fn file(&self) -> Option<&str> {
        match self {
            Self::Made { file } | Self::Kept { file } => Some(file),
            Self::Broken => None,
        }
    }
}

impl ImageSource {
    /// Tells images apart before they are made.
    pub(super) fn identity(&self) -> String {
        match self {
            Self::Text(text) => page_name(text),
            Self::Picture { path, .. } => path.to_string_lossy().into_owned(),
        }
    }
}

/// A page is named after its text and how it is drawn.
fn page_name(text: &str) -> String {
    let digest = Sha256::new()
        .chain_update(RENDERING_VERSION.to_le_bytes())
        .chain_update(text);
    format!("mt_{}.png", short_hex(digest))
}

/// The folder of the images.
pub(super) struct Images<'a> {
    folder: &'a Path,
}

impl<'a> Images<'a> {
    pub(super) fn new(folder: &'a Path) -> Self {
        Self { folder }
    }

    /// Makes an image unless it is there, whole.
    pub(super) fn write(&self, image: &ImageSource) -> Result<Outcome> {
        match image {
            ImageSource::Text(text) => self.write_page(text),
            ImageSource::Picture { path, label } => self.take_over(path, label),
        }
    }

    fn write_page(&self, text: &str) -> Result<Outcome> {
        let file = page_name(text);
        if is_whole_png(&self.folder.join(&file)) {
            return Ok(Outcome::Kept { file });
        }
        let mut bytes = Vec::new();
        encode_grey(&text_page(&text_lines(text)), &mut bytes)
            .map_err(|error| Error::io(self.folder, error))?;
        self.store(&file, &bytes)?;
        Ok(Outcome::Made { file })
    }

    /// Stores an image that was just made, unless it is there; named after its content.
    pub(super) fn write_generated(&self, label: &str, bytes: &[u8], suffix: &str) -> Result<Outcome> {
        let file = format!("{label}_{}.{suffix}", short_hex(Sha256::new_with_prefix(bytes)));
        if read(&self.folder.join(&file)).is_ok_and(|there| there == bytes) {
            return Ok(Outcome::Kept { file });
        }
        self.store(&file, bytes)?;
        Ok(Outcome::Made { file })
    }

    fn take_over(&self, path: &Path, label: &str) -> Result<Outcome> {
        let bytes = match read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Outcome::Broken),
            Err(error) => return Err(Error::io(path, error)),
        };
        let suffix = path.extension().and_then(OsStr::to_str).unwrap_or("img");
        let file = format!("{label}_{}.{suffix}", short_hex(Sha256::new_with_prefix(&bytes)));
        // Read again, since a picture may have been cut short by a fault of the machine.
        if read(&self.folder.join(&file)).is_ok_and(|there| there == bytes) {
            return Ok(Outcome::Kept { file });
        }
        if bytes.len() as u64 > MAX_PICTURE_BYTES || decode(&bytes, &DecodeLimits::default()).is_err() {
            return Ok(Outcome::Broken);
        }
        self.store(&file, &bytes)?;
        Ok(Outcome::Made { file })
    }

    /// The file is complete or absent; [`Images::sync`] forces it to the disk.
    fn store(&self, file: &str, bytes: &[u8]) -> Result<()> {
        write_unsynced(&self.folder.join(file), bytes)
    }

    /// Forces everything to the disk in one call: thousands of single calls would take longer than drawing the pages.
    pub(super) fn sync(&self) -> Result<()> {
        sync_file_system(self.folder)
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(MAX_PICTURE_BYTES + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether a PNG was written to its end and never changed: every chunk's checksum is right and the last one is the end.
fn is_whole_png(path: &Path) -> bool {
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

/// Removes what earlier runs left: images that no sample has any more, and half-written ones.
pub(super) fn sweep(folder: &Path, candidates: &[Candidate], generated: &[String]) -> Result<()> {
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
            let ours = is_temporary(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix));
            if ours && !wanted.contains(name.as_ref()) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    };
    attempt().map_err(|error| Error::io(folder, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_png_is_whole_only_with_every_byte() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("page.png");
        let mut bytes = Vec::new();
        encode_grey(&text_page(&["one line"]), &mut bytes).unwrap();
        let whole = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            is_whole_png(&path)
        };
        assert!(whole(&bytes));
        for length in (0..bytes.len()).step_by(7).chain([bytes.len() - 1]) {
            assert!(!whole(&bytes[..length]), "cut to {length}");
        }
        for index in (0..bytes.len()).step_by(11) {
            let mut flipped = bytes.clone();
            flipped[index] ^= 0x40;
            assert!(!whole(&flipped), "byte {index}");
        }
        assert!(!whole(&[bytes.as_slice(), b"more"].concat()));
        assert!(!is_whole_png(&folder.path().join("absent.png")));
    }
}
