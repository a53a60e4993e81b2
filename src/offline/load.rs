//! `medvision load-offline`: checks the folder, then takes over what is in it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::contents::verify;
use super::copy::{copy, hash, open_plain};
use super::engine::ContainerEngine;
use super::save::check_space;
use super::{IMAGE, MODELS};
use crate::console::Unit;
use crate::fs::{FileDigest, OldFolder, TemporaryFolder, replace_folder};
use crate::quantize::Watch;
use crate::{Error, Result};

/// How to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadOptions {
    /// Whether a model that differs takes the place of one of the same name, which is kept as `NAME.previous`.
    pub replace: bool,
    /// The engine that the image goes to; `None` leaves it.
    pub engine: Option<ContainerEngine>,
}

/// What was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// Number of files that were checked.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// The models.
    pub models: Vec<LoadedModel>,
    /// Whether the folder has an image.
    pub has_image: bool,
    /// What the engine printed after it loaded the image.
    pub image: Option<String>,
}

/// A model or adapter of the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedModel {
    /// Where it is now.
    pub folder: PathBuf,
    /// Whether it was there already, the same in every file.
    pub was_there: bool,
    /// Where the model is that was there before.
    pub previous: Option<PathBuf>,
}

/// Files of a model with their sums.
type Files = BTreeMap<String, FileDigest>;

/// Checks every file of the folder `dir`, then copies its models into `into`, each in one step, and loads its image.
///
/// # Errors
/// [`Error::InvalidFile`] names the files that are wrong, [`Error::Unsuitable`] a model that is there and differs; nothing was
/// changed then. [`Error::Interrupted`] leaves whole models only.
pub fn load(dir: &Path, into: &Path, options: &LoadOptions, watch: Watch<'_>) -> Result<Loaded> {
    let manifest = verify(dir, watch)?;
    let mut models: BTreeMap<String, Files> = BTreeMap::new();
    for (name, digest) in &manifest.files {
        // The check allowed models/NAME/FILE alone.
        if let [MODELS, model, file] = name.split('/').collect::<Vec<_>>()[..] {
            let files = models.entry(model.to_owned()).or_default();
            files.insert(file.to_owned(), digest.clone());
        }
    }
    let mut there = Vec::new();
    for (model, files) in &models {
        let target = into.join(model);
        if target.symlink_metadata().is_err() {
            continue;
        }
        if is_same(&target, files, watch)? {
            there.push(model);
        } else if !options.replace {
            let reason = "is there already and differs; nothing was loaded: move it away, or replace it with --replace";
            return Err(Error::unsuitable(target, reason));
        }
    }
    fs::create_dir_all(into).map_err(|error| Error::io(into, error))?;
    let new = models
        .iter()
        .filter(|(model, _)| !there.contains(model))
        .map(|(_, files)| bytes(files))
        .sum();
    check_space(into, new)?;
    watch.begin("copying and checking", Unit::Bytes, 2 * new)?;
    let mut loaded = Loaded {
        files: manifest.files.len(),
        bytes: bytes(&manifest.files),
        models: Vec::new(),
        has_image: manifest.files.contains_key(IMAGE),
        image: None,
    };
    for (model, files) in &models {
        let folder = into.join(model);
        let was_there = there.contains(&model);
        let previous = match was_there {
            true => None,
            false => place(&dir.join(MODELS).join(model), files, &folder, watch)?,
        };
        loaded.models.push(LoadedModel {
            folder,
            was_there,
            previous,
        });
    }
    if let (Some(engine), Some(digest)) = (&options.engine, manifest.files.get(IMAGE)) {
        watch.begin("loading the image", Unit::Bytes, digest.bytes)?;
        let path = dir.join(IMAGE);
        let file = open_plain(&path).map_err(|error| Error::io(&path, error))?;
        loaded.image = Some(engine.load(&file, &path, digest, watch)?);
    }
    Ok(loaded)
}

fn bytes(files: &Files) -> u64 {
    files.values().map(|digest| digest.bytes).sum()
}

/// Whether the folder `target` has these files. It may have others, such as the record of an evaluation.
fn is_same(target: &Path, files: &Files, watch: Watch<'_>) -> Result<bool> {
    for (name, digest) in files {
        let path = target.join(name);
        let Ok(file) = crate::fs::open_regular(&path) else {
            return Ok(false);
        };
        let same_size = file.metadata().is_ok_and(|found| found.len() == digest.bytes);
        if !same_size || hash(&file, &path, watch)? != *digest {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Copies a model beside `target` and puts it there in one step; returns where the one is that was there before.
fn place(source: &Path, files: &Files, target: &Path, watch: Watch<'_>) -> Result<Option<PathBuf>> {
    let parent = crate::fs::parent_folder(target);
    let temporary = TemporaryFolder::new_in(parent).map_err(|error| Error::io(parent, error))?;
    for (name, digest) in files {
        let from = source.join(name);
        let file = open_plain(&from).map_err(|error| Error::io(&from, error))?;
        if copy(&file, &from, &temporary.path().join(name), watch)? != *digest {
            return Err(Error::invalid_file(from, "was changed while it was loaded"));
        }
    }
    replace_folder(temporary.path(), target, OldFolder::Keep).map_err(|error| Error::io(target, error))
}
