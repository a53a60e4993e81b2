//! Layout of the project folder, and selection of the model folder.

use std::fs;
use std::path::{Path, PathBuf};

use crate::fs::hub_cache;
use crate::{Error, Result};

/// Hub id of the model that the pipeline is made for.
pub const MODEL_ID: &str = "Qwen/Qwen2.5-VL-7B-Instruct";
/// Its folder under `models/`.
pub const BASE_MODEL: &str = "qwen25-vl-7b-base";
/// Folder of the embedded model under `models/`.
pub const EMBEDDED_MODEL: &str = "qwen25-vl-nano";
/// Suffix of NF4 model folders.
pub const NF4_SUFFIX: &str = "-bnb-nf4";
/// Suffix of AWQ model folders.
pub const AWQ_SUFFIX: &str = "-awq-int4";
/// Suffix of adapter folders.
pub const LORA_SUFFIX: &str = "-medical-lora";
/// Suffix of merged model folders.
pub const MERGED_SUFFIX: &str = "-medical-merged";
/// How to get [`BASE_MODEL`].
pub const GET_BASE_MODEL: &str = "download_model (about 16 GB)";

/// The project folder, which contains everything that the pipeline reads and writes.
#[derive(Debug, Clone)]
pub struct Project {
    root: PathBuf,
}

/// The model folder of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFolder {
    /// Its path.
    pub path: PathBuf,
    /// Whether the embedded model is used because no model was chosen and [`BASE_MODEL`] is missing.
    pub stands_in: bool,
    /// Where models are mounted, if the project's folder of models is a link to that.
    pub mount: Option<PathBuf>,
}

impl ModelFolder {
    /// Notice for the user if the embedded model is used by default.
    pub fn notice(&self) -> Option<String> {
        self.stands_in.then(|| {
            // In the image the models' folder is a link to where one is mounted.
            let remedy = match &self.mount {
                Some(mount) => format!(
                    "mount a folder that holds it at {}, or run there: {GET_BASE_MODEL}",
                    mount.display()
                ),
                None => format!("run: {GET_BASE_MODEL}"),
            };
            format!(
                "model: {} (13M parameters, for trying out: typed and scanned pages of printed English); \
                 to use the 7B model, which reads any document, {remedy}",
                self.path.display()
            )
        })
    }
}

impl Project {
    /// Opens the project at `root`; default: the current folder.
    pub fn open(root: Option<&Path>) -> Result<Self> {
        match root {
            Some(root) if !root.is_dir() => Err(not_a_folder(root, "the project folder (--root, MVP_ROOT)")),
            // Empty, so that messages show "models/..." rather than "./models/...".
            root => Ok(Self {
                root: root.map(Path::to_owned).unwrap_or_default(),
            }),
        }
    }

    /// The project folder.
    pub fn root(&self) -> &Path {
        if self.root.as_os_str().is_empty() {
            Path::new(".")
        } else {
            &self.root
        }
    }

    /// Path of a file or folder of the project, for example of one of [`records::paths`](crate::records::paths).
    pub fn file(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.root.join(relative)
    }

    /// The models folder.
    pub fn models(&self) -> PathBuf {
        self.root.join("models")
    }

    /// The folder of records.
    pub fn benchmarks(&self) -> PathBuf {
        self.root.join("benchmarks")
    }

    fn folder(&self, path: PathBuf, stands_in: bool) -> ModelFolder {
        ModelFolder {
            path,
            stands_in,
            mount: fs::read_link(self.models()).ok(),
        }
    }

    /// Finds the model folder for `choice`: a path, or a name under `models/`; default [`BASE_MODEL`], or [`EMBEDDED_MODEL`] if it
    /// is missing.
    ///
    /// The error lists the searched folders and how to get a model.
    pub fn model_folder(&self, choice: Option<&Path>) -> Result<ModelFolder> {
        let (candidates, stands_in) = match choice {
            Some(choice) => (self.chosen(choice), false),
            None => {
                let base = self.models().join(BASE_MODEL);
                if base.is_dir() {
                    return Ok(self.folder(base, false));
                }
                (self.embedded_models(), true)
            }
        };
        if let Some(path) = candidates.iter().find(|path| path.is_dir()) {
            return Ok(self.folder(hub_cache::resolved(path, "main")?, stands_in));
        }
        let first = &candidates[0];
        Err(not_a_folder(
            first,
            &format!("a model folder; to get the 7B model: {GET_BASE_MODEL}"),
        ))
    }

    /// The model folder to serve: as [`Self::model_folder`], but the default is the 4-bit folder of `quantize_base` if there is one.
    pub fn served_model(&self, choice: Option<&Path>) -> Result<ModelFolder> {
        let quantized = |base: &Path| Some(self.derived_model(base, NF4_SUFFIX)).filter(|path| path.is_dir());
        // The base folder may have been deleted.
        if let (None, Some(path)) = (choice, quantized(Path::new(BASE_MODEL))) {
            return Ok(self.folder(path, false));
        }
        let mut folder = self.model_folder(choice)?;
        if let (None, Some(path)) = (choice, quantized(&folder.path)) {
            folder.path = path;
        }
        Ok(folder)
    }

    /// Folder for a model that need not exist: `choice`, a path or a name under `models/`, or `models/DEFAULT`.
    pub fn new_model(&self, choice: Option<&Path>, default: &str) -> PathBuf {
        let Some(choice) = choice else {
            return self.models().join(default);
        };
        let is_name = choice.components().count() == 1 && choice.is_relative();
        let there = self.chosen(choice).into_iter().find(|path| path.is_dir());
        there.unwrap_or_else(|| {
            if is_name {
                self.models().join(choice)
            } else {
                self.root.join(choice)
            }
        })
    }

    /// Folder derived from the model in `base`: `models/NAME` with one of the suffixes; see [`model_stem`].
    pub fn derived_model(&self, base: &Path, suffix: &str) -> PathBuf {
        self.models().join(format!("{}{suffix}", model_stem(base)))
    }

    /// Finds the adapter folder for `choice`: a path, or a name under `models/`.
    pub fn adapter_folder(&self, choice: &Path) -> Result<PathBuf> {
        let places = self.chosen(choice);
        let found = places.iter().find(|path| path.is_dir()).cloned();
        let found = found
            .ok_or_else(|| not_a_folder(choice, "a LoRA adapter in PEFT format (--adapter, MVP_ADAPTER)"))?;
        hub_cache::resolved(&found, "main")
    }

    /// Candidate paths of a chosen model; errors name the first one.
    fn chosen(&self, choice: &Path) -> Vec<PathBuf> {
        let mut places = vec![choice.to_owned()];
        if choice.is_relative() {
            places.push(self.root.join(choice));
            places.push(self.models().join(choice));
        }
        places
    }

    /// Candidate paths of the embedded model: the project, the checkout of the executable, an installation, the checkout that
    /// `cargo install` compiled.
    pub(crate) fn embedded_models(&self) -> Vec<PathBuf> {
        let mut places = vec![self.models().join(EMBEDDED_MODEL)];
        let executable = std::env::current_exe()
            .and_then(fs::canonicalize)
            .unwrap_or_default();
        for folder in executable.ancestors().skip(1).take(4) {
            places.push(folder.join("models").join(EMBEDDED_MODEL));
            places.push(folder.join("share/medvision/models").join(EMBEDDED_MODEL));
        }
        places.extend(option_env!("MEDVISION_MODELS").map(|models| Path::new(models).join(EMBEDDED_MODEL)));
        places
    }
}

/// The error for a `folder` that is not a model folder: what it is, if known, and what to do.
pub fn require_model(folder: &Path) -> Result<()> {
    if folder.join("config.json").exists() {
        return Ok(());
    }
    if folder.join("adapter_config.json").exists() {
        return Err(Error::unsuitable(
            folder,
            "is a LoRA adapter, not a model: pass it with --adapter, and the model with --model",
        ));
    }
    let inside = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut inside: Vec<PathBuf> = inside
        .map(|entry| entry.path())
        .filter(|path| path.join("config.json").is_file())
        .collect();
    inside.sort();
    let advice = match inside.first() {
        Some(path) => format!("did you mean {}?", path.display()),
        None => format!(
            "not a model folder, or an incomplete download: run the download again; to get the 7B model: {GET_BASE_MODEL}"
        ),
    };
    Err(Error::not_found(
        folder,
        format!("no config.json found; {advice}"),
    ))
}

/// Name of a model's folder, with links resolved; for a snapshot in the hub cache the name of the repository.
pub fn model_folder_name(model: &Path) -> String {
    name_in(&model.canonicalize().unwrap_or_else(|_| model.to_owned()))
}

fn name_in(path: &Path) -> String {
    match hub_cache::repository(path) {
        Some(repository) => repository.rsplit('/').next().unwrap_or_default().to_owned(),
        None => path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
    }
}

/// A model's name without the suffixes `-base`, [`NF4_SUFFIX`], [`AWQ_SUFFIX`].
pub fn model_stem(model: &Path) -> String {
    // Only paths such as "." or "models/x/.." have no name.
    let path = match model.file_name() {
        Some(_) => model.to_owned(),
        None => model.canonicalize().unwrap_or_default(),
    };
    let name = name_in(&path);
    let forms = ["-base", NF4_SUFFIX, AWQ_SUFFIX];
    let stem = forms.iter().find_map(|form| name.strip_suffix(form));
    stem.unwrap_or(name.as_str()).to_owned()
}

fn not_a_folder(path: &Path, what: &str) -> Error {
    if path.exists() {
        Error::unsuitable(path, format!("not a folder; expected {what}"))
    } else {
        Error::not_found(path, format!("no such folder; expected {what}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project(models: &[&str]) -> (tempfile::TempDir, Project) {
        let folder = tempfile::tempdir().unwrap();
        for model in models {
            fs::create_dir_all(folder.path().join("models").join(model)).unwrap();
        }
        let project = Project::open(Some(folder.path())).unwrap();
        (folder, project)
    }

    #[test]
    fn the_base_model_goes_before_the_embedded_one() {
        let (_folder, project) = project(&[BASE_MODEL, EMBEDDED_MODEL]);
        let folder = project.model_folder(None).unwrap();
        assert_eq!(folder.path, project.models().join(BASE_MODEL));
        assert_eq!(folder.notice(), None);
    }

    #[test]
    fn what_is_served_is_in_four_bits_unless_somebody_chose() {
        for (models, served, stands_in) in [
            (&[BASE_MODEL, EMBEDDED_MODEL][..], BASE_MODEL, false),
            (
                &[BASE_MODEL, "qwen25-vl-7b-bnb-nf4"],
                "qwen25-vl-7b-bnb-nf4",
                false,
            ),
            (
                &["qwen25-vl-7b-bnb-nf4", EMBEDDED_MODEL],
                "qwen25-vl-7b-bnb-nf4",
                false,
            ),
            (
                &[EMBEDDED_MODEL, "qwen25-vl-nano-bnb-nf4"],
                "qwen25-vl-nano-bnb-nf4",
                true,
            ),
            (&[EMBEDDED_MODEL], EMBEDDED_MODEL, true),
        ] {
            let (_folder, project) = project(models);
            let folder = project.served_model(None).unwrap();
            assert_eq!(
                (folder.path, folder.stands_in),
                (project.models().join(served), stands_in)
            );
            let chosen = project.served_model(Some(Path::new(models[0]))).unwrap();
            assert_eq!(chosen.path, project.models().join(models[0]));
        }
    }

    #[test]
    fn the_embedded_model_stands_in_and_says_so() {
        let (_folder, project) = project(&[EMBEDDED_MODEL]);
        let folder = project.model_folder(None).unwrap();
        assert_eq!(folder.path, project.models().join(EMBEDDED_MODEL));
        let notice = folder.notice().unwrap();
        assert!(
            notice.contains(GET_BASE_MODEL) && !notice.contains('\n'),
            "{notice}"
        );
        assert!(!notice.contains("mount"), "{notice}");
        // As in the image.
        let (folder, mounted) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(mounted.path().join(EMBEDDED_MODEL)).unwrap();
        std::os::unix::fs::symlink(mounted.path(), folder.path().join("models")).unwrap();
        let project = Project::open(Some(folder.path())).unwrap();
        let notice = project.model_folder(None).unwrap().notice().unwrap();
        let expected = format!("mount a folder that holds it at {}", mounted.path().display());
        assert!(notice.contains(&expected), "{notice}");
    }

    #[test]
    fn a_model_is_chosen_by_path_or_by_name() {
        let (_folder, project) = project(&["mine"]);
        let path = project.models().join("mine");
        for choice in [path.as_path(), Path::new("models/mine"), Path::new("mine")] {
            let folder = project.model_folder(Some(choice)).unwrap();
            assert_eq!(folder.path, path);
            assert_eq!(folder.notice(), None);
        }
    }

    #[test]
    fn what_is_made_from_a_model_is_named_after_it() {
        let (folder, project) = project(&["mine"]);
        for (base, derived) in [
            ("models/qwen25-vl-7b-base", "qwen25-vl-7b-bnb-nf4"),
            ("/elsewhere/qwen25-vl-nano/", "qwen25-vl-nano-bnb-nf4"),
            ("base", "base-bnb-nf4"),
            ("models/qwen25-vl-7b-awq-int4", "qwen25-vl-7b-bnb-nf4"),
        ] {
            let found = project.derived_model(Path::new(base), NF4_SUFFIX);
            assert_eq!(found, folder.path().join("models").join(derived));
        }
        let unnamed = project.models().join("mine/.");
        assert_eq!(
            project.derived_model(&unnamed.join(".."), AWQ_SUFFIX),
            folder.path().join("models/models-awq-int4")
        );
    }

    #[test]
    fn a_folder_without_a_config_is_told_apart() {
        let (_folder, project) = project(&["models/inner", "lora", "empty"]);
        let models = project.models();
        fs::write(models.join("models/inner/config.json"), "{}").unwrap();
        fs::write(models.join("lora/adapter_config.json"), "{}").unwrap();
        let reason = |name: &str| require_model(&models.join(name)).unwrap_err().to_string();
        assert!(reason("models").contains("models/inner"));
        assert!(reason("lora").contains("--adapter"));
        assert!(reason("empty").contains("no config.json") && reason("empty").contains(GET_BASE_MODEL));
        assert!(require_model(&models.join("models/inner")).is_ok());
    }

    #[test]
    fn a_folder_of_the_hubs_cache_is_called_as_its_repository() {
        let (_folder, project) = project(&[]);
        let cache = project.models().join("models--Qwen--Qwen2.5-VL-7B-Instruct");
        let snapshot = cache.join("snapshots").join("a".repeat(40));
        fs::create_dir_all(&snapshot).unwrap();
        let found = project.model_folder(Some(&cache)).unwrap().path;
        assert_eq!(found, snapshot);
        assert_eq!(model_folder_name(&found), "Qwen2.5-VL-7B-Instruct");
        assert_eq!(model_stem(&found), "Qwen2.5-VL-7B-Instruct");
        let derived = project.derived_model(&found, NF4_SUFFIX);
        assert_eq!(derived, project.models().join("Qwen2.5-VL-7B-Instruct-bnb-nf4"));
    }

    #[test]
    fn a_missing_model_is_named_with_the_way_to_get_one() {
        let (_folder, project) = project(&[]);
        let message = project
            .model_folder(Some(Path::new("models/absent")))
            .unwrap_err()
            .to_string();
        assert!(message.starts_with("models/absent: no such folder"), "{message}");
        assert!(message.contains(GET_BASE_MODEL), "{message}");
    }
}
