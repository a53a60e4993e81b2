//! `medvision save-offline`: writes the folder.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::contents::check_name;
use super::copy::copy;
use super::engine::ContainerEngine;
use super::{IMAGE, LICENCES, MODELS, README, SBOM, SUMS};
use crate::checkpoint::LocalFolder;
use crate::console::Unit;
use crate::engine::FolderCheck;
use crate::fs::{
    FileDigest, MANIFEST, Manifest, OldFolder, Origin, TemporaryFolder, digest_of, open_regular,
    parent_folder, replace_folder, shortage, sync_file_system, write_atomically,
};
use crate::hub::DownloadManifest;
use crate::lora::Adapter;
use crate::project::{model_folder_name, require_model};
use crate::quantize::Watch;
use crate::version::version;
use crate::{Error, Result};

/// Most folders inside `licences/`.
const MAX_DEPTH: usize = 6;

/// What goes into the folder.
#[derive(Debug, Clone)]
pub struct SaveOptions {
    /// The model's folder.
    pub model: PathBuf,
    /// The adapter's folder.
    pub adapter: Option<PathBuf>,
    /// The image's name, and the engine that has it.
    pub image: Option<(String, ContainerEngine)>,
    /// Folder of the installation, whose licences and bill of materials are added where it has them.
    pub installation: Option<PathBuf>,
}

/// A folder that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// Names of the model and, if there is one, of its adapter.
    pub models: Vec<String>,
    /// Whether the installation had licences and a bill of materials.
    pub licences: bool,
    /// Files and folders of models that were left out, since no model has any there.
    pub left_out: Vec<PathBuf>,
    /// Number of files.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// A file to copy.
struct Source {
    path: PathBuf,
    /// What the folder's own manifest says of it.
    expected: Option<Expected>,
}

struct Expected {
    bytes: u64,
    sha256: String,
}

/// Writes `out`, which must not exist: under another name, renamed when it is complete. Every file is read again.
///
/// # Errors
/// [`Error::Interrupted`], with nothing left behind.
pub fn save(out: &Path, options: &SaveOptions, watch: Watch<'_>) -> Result<Saved> {
    if out.symlink_metadata().is_ok() || out.file_name().is_none() {
        return Err(Error::unsuitable(
            out,
            "exists already: name a new folder, for instance one inside it",
        ));
    }
    let parent = parent_folder(out);
    if !parent.is_dir() {
        return Err(Error::not_found(parent, "no such folder to write to"));
    }
    let mut saved = Saved {
        models: Vec::new(),
        licences: false,
        left_out: Vec::new(),
        files: 0,
        bytes: 0,
    };
    let sources = sources(options, &mut saved)?;
    let image_bytes = match &options.image {
        Some((name, engine)) => engine.image_bytes(name)?,
        None => 0,
    };
    let mut bytes = 0;
    for source in sources.values() {
        bytes += fs::metadata(&source.path)
            .map_err(|error| Error::io(&source.path, error))?
            .len();
    }
    check_space(parent, bytes + image_bytes)?;
    let temporary = TemporaryFolder::new_in(parent).map_err(|error| Error::io(parent, error))?;
    let dir = temporary.path();
    // Each byte is read twice.
    watch.begin("copying and checking", Unit::Bytes, 2 * bytes)?;
    let mut files = BTreeMap::new();
    for (name, source) in &sources {
        files.insert(name.clone(), copy_in(source, &dir.join(name), watch)?);
    }
    if let Some((name, engine)) = &options.image {
        watch.begin("saving and checking the image", Unit::Bytes, 2 * image_bytes)?;
        files.insert(IMAGE.to_owned(), engine.save(name, &dir.join(IMAGE), watch)?);
    }
    describe(dir, options, &saved, &mut files)?;
    saved.files = files.len();
    saved.bytes = files.values().map(|digest| digest.bytes).sum();
    manifest(options, &saved, files).write(dir)?;
    watch.begin("forcing everything to the disk", Unit::Nothing, 0)?;
    sync_file_system(dir)?;
    replace_folder(dir, out, OldFolder::Remove).map_err(|error| Error::io(out, error))?;
    Ok(saved)
}

/// The files to copy, by their name in the folder.
fn sources(options: &SaveOptions, saved: &mut Saved) -> Result<BTreeMap<String, Source>> {
    let mut sources = BTreeMap::new();
    require_model(&options.model)?;
    let check = FolderCheck::of(&LocalFolder(options.model.clone()), false)?;
    if !check.fits() {
        return Err(Error::unsuitable(
            &options.model,
            check.to_string().trim_end().replace('\n', "; "),
        ));
    }
    add_model(&options.model, &mut sources, saved)?;
    if let Some(adapter) = &options.adapter {
        Adapter::read(adapter)?;
        add_model(adapter, &mut sources, saved)?;
    }
    if let Some(installation) = &options.installation {
        add_licences(&installation.join(LICENCES), LICENCES, 0, &mut sources)?;
        let sbom = installation.join(SBOM);
        if sbom.is_file() {
            sources.insert(
                SBOM.to_owned(),
                Source {
                    path: sbom,
                    expected: None,
                },
            );
        }
        saved.licences = sources
            .keys()
            .any(|name| name == SBOM || name.starts_with(LICENCES));
    }
    match sources
        .keys()
        .find_map(|name| check_name(name).err().map(|fault| (name, fault)))
    {
        Some((name, fault)) => Err(Error::unsuitable(
            &options.model,
            format!("\"{name}\": {fault}; rename it"),
        )),
        None => Ok(sources),
    }
}

/// The files of a model or adapter folder: those at its top, of which links are followed, as in the hub's cache.
fn add_model(folder: &Path, sources: &mut BTreeMap<String, Source>, saved: &mut Saved) -> Result<()> {
    let model = model_folder_name(folder);
    if saved.models.contains(&model) {
        return Err(Error::unsuitable(folder, "has the model's own name: rename it"));
    }
    let mut expected = expected(folder)?;
    for entry in fs::read_dir(folder).map_err(|error| Error::io(folder, error))? {
        let path = entry.map_err(|error| Error::io(folder, error))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            return Err(Error::unsuitable(&path, "its name is not UTF-8: rename it"));
        };
        // Of the hub's tools, or temporary.
        if name.starts_with('.') {
            continue;
        }
        if !path.is_file() {
            saved.left_out.push(path);
            continue;
        }
        let expected = expected.remove(name);
        sources.insert(format!("{MODELS}/{model}/{name}"), Source { path, expected });
    }
    if let Some(missing) = expected.into_keys().find(|name| !name.contains('/')) {
        let reason = "listed in the folder's manifest, but missing: make or download the model again";
        return Err(Error::not_found(folder.join(missing), reason));
    }
    saved.models.push(model);
    Ok(())
}

/// What the manifests of this program's own folders and downloads say of their files.
fn expected(folder: &Path) -> Result<BTreeMap<String, Expected>> {
    let mut files = BTreeMap::new();
    for file in DownloadManifest::read(folder)?
        .map(|manifest| manifest.files)
        .unwrap_or_default()
    {
        let (bytes, sha256) = (file.size, file.sha256);
        files.insert(file.path, Expected { bytes, sha256 });
    }
    for (name, FileDigest { bytes, sha256 }) in Manifest::read(folder)
        .map(|found| found.files)
        .unwrap_or_default()
    {
        files.insert(name, Expected { bytes, sha256 });
    }
    Ok(files)
}

fn add_licences(
    folder: &Path,
    prefix: &str,
    depth: usize,
    sources: &mut BTreeMap<String, Source>,
) -> Result<()> {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let entry = entry.map_err(|error| Error::io(folder, error))?;
        let kind = entry.file_type().map_err(|error| Error::io(folder, error))?;
        let name = format!("{prefix}/{}", entry.file_name().to_string_lossy());
        if kind.is_dir() && depth < MAX_DEPTH {
            add_licences(&entry.path(), &name, depth + 1, sources)?;
        } else if kind.is_file() {
            let path = entry.path();
            sources.insert(name, Source { path, expected: None });
        }
    }
    Ok(())
}

fn copy_in(source: &Source, to: &Path, watch: Watch<'_>) -> Result<FileDigest> {
    let from = &source.path;
    fs::create_dir_all(parent_folder(to)).map_err(|error| Error::io(to, error))?;
    let file = open_regular(from).map_err(|error| Error::io(from, error))?;
    let digest = copy(&file, from, to, watch)?;
    match &source.expected {
        Some(expected) if expected.bytes != digest.bytes || expected.sha256 != digest.sha256 => {
            let reason = "is not what the folder's manifest says: damaged, or changed since; make or download the model again";
            Err(Error::invalid_file(from, reason))
        }
        _ => Ok(digest),
    }
}

/// Writes what a reader without this program needs.
fn describe(
    dir: &Path,
    options: &SaveOptions,
    saved: &Saved,
    files: &mut BTreeMap<String, FileDigest>,
) -> Result<()> {
    let image = options.image.as_ref().map(|(name, _)| name.as_str());
    let write = |name: &str, text: &str, files: &mut BTreeMap<String, FileDigest>| {
        let path = dir.join(name);
        write_atomically(&path, |file| file.write_all(text.as_bytes()))?;
        files.insert(name.to_owned(), digest_of(&path)?);
        Ok::<(), Error>(())
    };
    write(README, &readme(image, &saved.models), files)?;
    let sums: String = files
        .iter()
        .map(|(name, digest)| format!("{}  {name}\n", digest.sha256))
        .collect();
    write(SUMS, &sums, files)
}

fn readme(image: Option<&str>, models: &[String]) -> String {
    let mut text = format!(
        "medvision {}, for a network without the hub and without an image registry.\n\n\
         With medvision there, in its project folder:\n\n    medvision load-offline THIS_FOLDER\n\n\
         Without it, in this folder:\n\n    sha256sum --check {SUMS}\n",
        version()
    );
    if let Some(image) = image {
        text += &format!(
            "    docker load --input {IMAGE}\n    docker run -p 127.0.0.1:8000:8000 -p 127.0.0.1:7860:7860 \
             -v \"$PWD/{MODELS}:/models:ro\" -e MVP_MODEL={} {image}\n",
            models.first().map_or("NAME", String::as_str)
        );
    }
    text + "\nThe sums show damage on the way. They do not show who made this folder: take it from who you trust.\n"
}

fn manifest(options: &SaveOptions, saved: &Saved, files: BTreeMap<String, FileDigest>) -> Manifest {
    let mut manifest = Manifest::new(Origin {
        method: "offline".to_owned(),
        options: json!({ "image": options.image.as_ref().map(|(name, _)| name) }),
        source: saved.models.join(", "),
        source_revision: files
            .get(SUMS)
            .map(|sums| sums.sha256.clone())
            .unwrap_or_default(),
        tool: version().to_owned(),
    });
    manifest.files = files;
    manifest.complete = true;
    debug_assert!(!manifest.files.contains_key(MANIFEST));
    manifest
}

/// The error if the disk of `folder` lacks space for `bytes` more.
pub(super) fn check_space(folder: &Path, bytes: u64) -> Result<()> {
    let Ok(Some(lack)) = shortage(folder, bytes) else {
        return Ok(());
    };
    let reason = format!(
        "the disk has {} MiB free, {} MiB are needed: make room and run again",
        lack.free >> 20,
        lack.needed >> 20
    );
    Err(Error::io(
        folder,
        std::io::Error::new(std::io::ErrorKind::StorageFull, reason),
    ))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use super::*;
    use crate::offline::{LoadOptions, load};

    fn options() -> SaveOptions {
        SaveOptions {
            model: Path::new(env!("CARGO_MANIFEST_DIR")).join("models/qwen25-vl-nano"),
            adapter: None,
            image: None,
            installation: None,
        }
    }

    /// Runs `work` with a watch that asks to stop after `after` reports.
    fn stopped_after<T>(after: u64, work: impl FnOnce(Watch<'_>) -> T) -> T {
        let (stop, reports) = (AtomicBool::new(false), AtomicU64::new(0));
        let progress = |_| {
            if reports.fetch_add(1, Ordering::SeqCst) + 1 >= after {
                stop.store(true, Ordering::SeqCst);
            }
        };
        work(Watch {
            progress: &progress,
            stop: &stop,
            ..Watch::none()
        })
    }

    fn entries(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn a_save_or_load_that_is_stopped_in_a_copy_leaves_nothing() {
        let home = tempfile::tempdir().unwrap();
        let (out, into) = (home.path().join("out"), home.path().join("models"));
        // In the first file, between two, in the weights, while a copy is read again.
        for after in [1, 9, 20, 40] {
            let stopped = stopped_after(after, |watch| save(&out, &options(), watch));
            assert!(matches!(stopped, Err(Error::Interrupted)), "{after}");
            assert_eq!(entries(home.path()), 0, "{after}");
        }
        save(&out, &options(), Watch::none()).unwrap();
        let verifying = 40;
        for after in [1, verifying + 1, verifying + 20, verifying + 50] {
            let loading = LoadOptions {
                replace: false,
                engine: None,
            };
            let stopped = stopped_after(after, |watch| load(&out, &into, &loading, watch));
            assert!(matches!(stopped, Err(Error::Interrupted)), "{after}");
            assert!(!into.exists() || entries(&into) == 0, "{after}");
        }
    }

    #[test]
    fn a_model_that_is_not_what_its_manifest_says_is_not_saved() {
        let home = tempfile::tempdir().unwrap();
        let model = home.path().join("mine");
        fs::create_dir(&model).unwrap();
        for entry in fs::read_dir(options().model).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, model.join(path.file_name().unwrap())).unwrap();
        }
        let origin = Origin {
            method: "test".to_owned(),
            options: json!(null),
            source: String::new(),
            source_revision: String::new(),
            tool: String::new(),
        };
        let mut manifest = Manifest::new(origin);
        let digest = digest_of(&model.join("tokenizer.json")).unwrap();
        manifest.files.insert("tokenizer.json".to_owned(), digest.clone());
        manifest.write(&model).unwrap();
        let mine = SaveOptions {
            model: model.clone(),
            ..options()
        };
        save(&home.path().join("first"), &mine, Watch::none()).unwrap();
        let digest = FileDigest {
            sha256: "0".repeat(64),
            ..digest
        };
        manifest.files.insert("tokenizer.json".to_owned(), digest.clone());
        manifest.write(&model).unwrap();
        let error = save(&home.path().join("second"), &mine, Watch::none())
            .unwrap_err()
            .to_string();
        assert!(error.contains("tokenizer.json: is not what"), "{error}");
        manifest.files = BTreeMap::from([("absent.json".to_owned(), digest)]);
        manifest.write(&model).unwrap();
        let error = save(&home.path().join("second"), &mine, Watch::none())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("absent.json") && error.contains("missing"),
            "{error}"
        );
        assert_eq!(entries(home.path()), 2);
    }

    #[test]
    fn a_full_disk_is_an_error_before_the_work() {
        let error = check_space(Path::new("/"), 1 << 60).unwrap_err().to_string();
        assert!(error.contains("make room"), "{error}");
        check_space(Path::new("/"), 0).unwrap();
    }
}
