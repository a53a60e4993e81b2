//! Names and sums of the files of an offline folder, which may come from anybody.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::copy::{hash, open_plain};
use super::{IMAGE, LICENCES, MODELS, README, SBOM, SUMS};
use crate::console::Unit;
use crate::error::excerpt;
use crate::fs::{FileDigest, MANIFEST, Manifest, irregular};
use crate::quantize::Watch;
use crate::{Error, Result};

/// Most files of a folder.
const MAX_FILES: usize = 20_000;
/// Most folders inside each other.
const MAX_DEPTH: usize = 8;
/// Most bytes of one part of a name, as file systems have it.
const MAX_PART: usize = 255;
/// Most faults that an error names.
const MAX_SHOWN: usize = 10;

/// Checks that `name` stays inside the folder and is one that [`super::save()`] writes.
pub(super) fn check_name(name: &str) -> Result<(), &'static str> {
    let parts: Vec<&str> = name.split('/').collect();
    if parts.len() > MAX_DEPTH || parts.iter().any(|part| part.len() > MAX_PART) {
        return Err("too long a name");
    }
    let outside = |part: &str| matches!(part, "" | "." | "..") || part.contains('\\');
    if parts.iter().copied().any(outside) {
        return Err("a name that leads out of the folder");
    }
    if name.chars().any(char::is_control) {
        return Err("a name with control characters");
    }
    match parts.as_slice() {
        [SBOM | IMAGE | SUMS | README] => Ok(()),
        [LICENCES, _, ..] => Ok(()),
        // Names with a dot are those of temporary and hidden files.
        [MODELS, model, file] if !model.starts_with('.') && !file.starts_with('.') => Ok(()),
        _ => Err("not a file of such a folder"),
    }
}

/// Reads the manifest of `folder`, and checks size and sum of every file that it lists and that there is no other.
///
/// # Errors
/// [`Error::InvalidFile`], with the files that are wrong.
pub(super) fn verify(folder: &Path, watch: Watch<'_>) -> Result<Manifest> {
    if !folder.is_dir() {
        return Err(Error::not_found(
            folder,
            "no such folder; name one that save-offline wrote",
        ));
    }
    let manifest = Manifest::read(folder)
        .filter(|manifest| manifest.complete)
        .ok_or_else(|| {
            let reason = format!(
                "no {MANIFEST} of save-offline: the folder is incomplete or something else; copy it again"
            );
            Error::invalid_file(folder, reason)
        })?;
    let mut faults: Vec<String> = Vec::new();
    for name in manifest.files.keys() {
        if let Err(fault) = check_name(name) {
            faults.push(format!("\"{}\" in {MANIFEST}: {fault}", excerpt(name)));
        }
    }
    if manifest.files.len() > MAX_FILES {
        faults.push(format!(
            "{} files; at most {MAX_FILES} are expected",
            manifest.files.len()
        ));
    }
    // Nothing is opened under a name that leads elsewhere.
    finish(folder, faults)?;
    let mut there = Listing::default();
    there.add(folder, "", 0)?;
    let mut faults = std::mem::take(&mut there.faults);
    for name in there.files.keys() {
        if name != MANIFEST && !manifest.files.contains_key(name) {
            faults.push(format!("{}: not in {MANIFEST}", excerpt(name)));
        }
    }
    let total: u64 = manifest
        .files
        .values()
        .fold(0, |sum, digest| sum.saturating_add(digest.bytes));
    watch.begin("checking every sum", Unit::Bytes, total)?;
    for (name, digest) in &manifest.files {
        match there.files.get(name) {
            None if !there.irregular.contains(name) => faults.push(format!("{name}: missing")),
            Some(bytes) if *bytes != digest.bytes => {
                faults.push(format!("{name}: {bytes} bytes, not {}", digest.bytes));
            }
            Some(_) => faults.extend(wrong_sum(folder, name, digest, watch)?),
            None => {}
        }
    }
    finish(folder, faults)?;
    Ok(manifest)
}

fn wrong_sum(folder: &Path, name: &str, digest: &FileDigest, watch: Watch<'_>) -> Result<Option<String>> {
    let path = folder.join(name);
    let file = match open_plain(&path) {
        Ok(file) => file,
        Err(error) => return Ok(Some(format!("{name}: {error}"))),
    };
    match hash(&file, &path, watch) {
        Ok(found) if found == *digest => Ok(None),
        Ok(_) => Ok(Some(format!("{name}: its SHA-256 is another"))),
        Err(Error::Io { source, .. }) => Ok(Some(format!("{name}: {source}"))),
        Err(error) => Err(error),
    }
}

fn finish(folder: &Path, mut faults: Vec<String>) -> Result<()> {
    if faults.is_empty() {
        return Ok(());
    }
    let count = faults.len();
    faults.truncate(MAX_SHOWN);
    let more = match count - faults.len() {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    let reason = format!(
        "nothing was loaded: {}{more}; copy the folder again",
        faults.join(", ")
    );
    Err(Error::invalid_file(folder, reason))
}

/// What is in a folder, links not followed.
#[derive(Default)]
struct Listing {
    /// Bytes by name.
    files: BTreeMap<String, u64>,
    /// Names of what is no file.
    irregular: BTreeSet<String>,
    faults: Vec<String>,
}

impl Listing {
    fn add(&mut self, folder: &Path, prefix: &str, depth: usize) -> Result<()> {
        let io = |error| Error::io(folder, error);
        for entry in fs::read_dir(folder).map_err(io)? {
            let entry = entry.map_err(io)?;
            let shown = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let kind = entry.file_type().map_err(io)?;
            if self.files.len() + self.faults.len() > MAX_FILES {
                self.faults.push(format!("more than {MAX_FILES} files"));
                return Ok(());
            }
            if kind.is_symlink() {
                self.faults.push(format!("{}: a link", excerpt(&shown)));
                self.irregular.insert(shown);
            } else if kind.is_dir() && depth < MAX_DEPTH {
                self.add(&entry.path(), &format!("{shown}/"), depth + 1)?;
            } else if let Some(what) = irregular(kind) {
                self.faults.push(format!("{}: {what}", excerpt(&shown)));
                self.irregular.insert(shown);
            } else if entry.file_name().to_str().is_none() {
                self.faults
                    .push(format!("{}: not in {MANIFEST}", excerpt(&shown)));
            } else {
                let bytes = entry.metadata().map_err(io)?.len();
                self.files.insert(shown, bytes);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside_and_are_those_of_such_a_folder() {
        for name in [
            "models/qwen25-vl-nano/config.json",
            "models/Bär 7B/model-00001-of-00005.safetensors",
            "licences/crates/serde-1.0.0/LICENSE-MIT",
            "image.tar",
            "SHA256SUMS",
            "README.txt",
            "sbom.cdx.json",
        ] {
            check_name(name).unwrap_or_else(|fault| panic!("{name}: {fault}"));
        }
        let long = "x".repeat(256);
        for name in [
            "",
            "/etc/passwd",
            "../x",
            "models/../../x",
            "models/..",
            "models/../x",
            "models/a/../b",
            "models//x",
            "models/a/./b",
            "models/a",
            "models/a/b/c",
            "models/.a/b",
            "models/a/.b",
            "models\\a\\b",
            "models/a/b\n",
            "models/a/\u{1b}[2J",
            "licences",
            "licences/",
            "licences/../x",
            "image.tar/",
            "manifest.json",
            "other.bin",
            &format!("models/a/{long}"),
            &format!("licences/{}x", "a/".repeat(MAX_DEPTH)),
        ] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }
}
