//! The flag for the adapter, and its default.

use std::path::{Path, PathBuf};

#[cfg(feature = "pipeline")]
use crate::Error;
use crate::Result;
use crate::console::{Level, say};
use crate::lora::{FoundAdapter, find_adapter, requested_adapter};
use crate::project::Project;

/// The flag for the adapter.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct AdapterArgs {
    /// LoRA adapter folder in PEFT format, or its name under models/, or "none"
    ///
    /// The adapter is applied without merging. The default is models/NAME-medical-lora, where NAME is the model's name:
    /// extract and server attach it if it was trained on that model and its evaluation did not flag a regression, merge
    /// merges it, and evaluate_finetuned evaluates it (with "none" the base only). Other commands attach none.
    #[arg(long, value_name = "DIR|none", env = "MVP_ADAPTER", hide_env_values = true)]
    pub adapter: Option<PathBuf>,
}

impl AdapterArgs {
    /// The adapter that the flag names.
    pub fn named(&self, project: &Project) -> Result<Option<PathBuf>> {
        requested_adapter(project, self.adapter.as_deref())
    }

    /// The adapter that the flag names, or by default the model's own; prints which one, or why it is not attached.
    pub fn named_or_found(&self, project: &Project, model: &Path) -> Result<Option<PathBuf>> {
        match &self.adapter {
            Some(_) => self.named(project),
            None => found(project, model),
        }
    }
}

/// The model's own adapter, if it is to be attached; prints which one, or why it is not attached.
fn found(project: &Project, model: &Path) -> Result<Option<PathBuf>> {
    match find_adapter(project, model)? {
        FoundAdapter::Missing => Ok(None),
        FoundAdapter::Recommended(dir) => {
            let message = format!("adapter: {} (disable with --adapter none)", dir.display());
            say(Level::INFO, &message);
            Ok(Some(dir))
        }
        FoundAdapter::NotRecommended { dir, reason } => {
            let dir = dir.display();
            say(
                Level::WARN,
                &format!("adapter {dir} not attached: {reason}; use --adapter {dir} to attach it"),
            );
            Ok(None)
        }
    }
}

/// The adapters of a server.
#[cfg(feature = "pipeline")]
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ResidentAdapterArgs {
    /// LoRA adapter folder in PEFT format, or its name under models/, or "none"; with NAME=, one more that requests can choose
    ///
    /// Adapters are applied without merging. DIR alone is the default of all requests; without it, that is
    /// models/NAME-medical-lora, where NAME is the model's name, if it was trained on that model and its evaluation did not flag
    /// a regression. NAME=DIR, repeatable, loads a further adapter, which a request chooses by NAME: 1 to 64 letters, digits,
    /// ".", "_" and "-".
    #[arg(
        long,
        value_name = "DIR|none|NAME=DIR",
        env = "MVP_ADAPTER",
        hide_env_values = true,
        value_delimiter = ','
    )]
    pub adapter: Vec<PathBuf>,
}

/// A default adapter, and further ones by name.
#[cfg(feature = "pipeline")]
pub type ResidentAdapters = (Option<PathBuf>, Vec<(String, PathBuf)>);

#[cfg(feature = "pipeline")]
impl ResidentAdapterArgs {
    /// The adapters that the flag names; the default is otherwise the model's own, as in [`AdapterArgs::named_or_found`].
    ///
    /// # Errors
    /// [`Error::Option`] for two defaults, or a name that is not allowed; an error that names a missing folder.
    pub fn resolve(&self, project: &Project, model: &Path) -> Result<ResidentAdapters> {
        let (mut default, mut named) = (None, Vec::new());
        for flag in &self.adapter {
            match name_and_folder(project, flag) {
                Some((name, folder)) => {
                    check_name(name)?;
                    named.push((name.to_owned(), project.adapter_folder(folder)?));
                }
                None if default.is_some() => {
                    let reason =
                        "only one adapter can be the default: name the others, as in --adapter NAME=DIR";
                    return Err(Error::option("--adapter", reason));
                }
                None => default = Some(flag.as_path()),
            }
        }
        let default = match default {
            Some(_) => requested_adapter(project, default)?,
            None => found(project, model)?,
        };
        Ok((default, named))
    }
}

/// The parts of NAME=DIR; `None` for a folder, even one with "=" in its name.
#[cfg(feature = "pipeline")]
fn name_and_folder<'a>(project: &Project, flag: &'a Path) -> Option<(&'a str, &'a Path)> {
    let (name, folder) = flag.to_str()?.split_once('=')?;
    (!flag.is_dir() && project.adapter_folder(flag).is_err()).then_some((name, Path::new(folder)))
}

#[cfg(feature = "pipeline")]
fn check_name(name: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let reason = if !(1..=64).contains(&name.chars().count()) || !name.chars().all(allowed) {
        "a name has 1 to 64 letters, digits, \".\", \"_\" and \"-\""
    } else if name.starts_with('.') {
        "a name does not start with \".\""
    } else if matches!(name, "none" | "default") {
        "\"none\" and \"default\" are not names: requests choose the base and the default with them"
    } else {
        return Ok(());
    };
    Err(Error::option(
        "--adapter",
        format!("\"{}\": {reason}", name.escape_debug()),
    ))
}

#[cfg(all(test, feature = "pipeline"))]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_plain() {
        for name in ["a", "medical-lora.v2", "A_1", &"x".repeat(64)] {
            check_name(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        for name in [
            "",
            "a/b",
            "..",
            ".a",
            "a b",
            "ä",
            "none",
            "default",
            "a=b",
            &"x".repeat(65),
        ] {
            let error = check_name(name).expect_err(name).to_string();
            assert!(error.starts_with("--adapter: "), "{error}");
        }
    }

    #[test]
    fn a_folder_may_have_an_equals_sign() {
        let root = tempfile::tempdir().unwrap();
        let project = Project::open(Some(root.path())).unwrap();
        let folder = root.path().join("a=b");
        std::fs::create_dir_all(&folder).unwrap();
        assert_eq!(name_and_folder(&project, &folder), None);
        let flag = Path::new("ward=some/folder");
        assert_eq!(
            name_and_folder(&project, flag),
            Some(("ward", Path::new("some/folder")))
        );
        assert_eq!(name_and_folder(&project, Path::new("some/folder")), None);
    }
}
