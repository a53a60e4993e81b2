//! Chooses the adapter of a run: the one of the flag, or the one that was trained on the model.

use std::iter;
use std::path::{Path, PathBuf};

use super::{config::LoraConfig, file::ADAPTER_CONFIG, recommendation::Recommendation};
use crate::project::{BASE_MODEL, EMBEDDED_MODEL, LORA_SUFFIX, MODEL_ID, Project, model_stem};
use crate::{Error, Result};

/// Value of the flag for no adapter.
const NONE: &str = "none";

/// The folder of the requested adapter: a path, or a name under `models/`; `None` for "none" and without a request.
pub fn requested_adapter(project: &Project, choice: Option<&Path>) -> Result<Option<PathBuf>> {
    match choice {
        None => Ok(None),
        Some(choice) if choice.as_os_str() == NONE => Ok(None),
        Some(choice) => project.adapter_folder(choice).map(Some),
    }
}

/// Result of looking for the model's own adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FoundAdapter {
    /// There is none.
    Missing,
    /// It is attached by default.
    Recommended(PathBuf),
    /// It is attached on request only.
    NotRecommended {
        /// Its folder.
        dir: PathBuf,
        /// Reason, one clause.
        reason: String,
    },
}

/// The adapter folder of `model`: where fine-tuning writes it, beside the model, or the embedded model's own.
pub fn own_adapter_folder(project: &Project, model: &Path) -> Option<PathBuf> {
    let own = project.derived_model(model, LORA_SUFFIX);
    let mut models = vec![model.to_owned()];
    if model_stem(model) == EMBEDDED_MODEL {
        models.extend(project.embedded_models());
    }
    let beside = models
        .iter()
        .filter_map(|model| Some(model.parent()?.join(own.file_name()?)));
    let mut candidates = iter::once(own.clone()).chain(beside);
    candidates.find(|dir| dir.join(ADAPTER_CONFIG).is_file())
}

/// Looks for the adapter of `model` and decides whether it is attached.
pub fn find_adapter(project: &Project, model: &Path) -> Result<FoundAdapter> {
    let Some(dir) = own_adapter_folder(project, model) else {
        return Ok(FoundAdapter::Missing);
    };
    let config = LoraConfig::read(&dir).map_err(|error| corrupt_adapter(&dir, &error))?;
    if !config.is_of(model) {
        let base = config
            .base_model_name_or_path
            .as_deref()
            .unwrap_or("an unnamed model");
        let reason = format!("it was trained on {base}, not on this model");
        return Ok(FoundAdapter::NotRecommended { dir, reason });
    }
    Ok(match Recommendation::read(&dir) {
        Ok(
            None
            | Some(Recommendation {
                recommended: true, ..
            }),
        ) => FoundAdapter::Recommended(dir),
        Ok(Some(Recommendation { reason, .. })) => {
            let reason = format!("not recommended by its evaluation ({reason})");
            FoundAdapter::NotRecommended { dir, reason }
        }
        Err(error) => {
            let reason = format!("cannot read its evaluation ({error})");
            FoundAdapter::NotRecommended { dir, reason }
        }
    })
}

/// A corrupt adapter is an error, not a reason to run without it.
fn corrupt_adapter(dir: &Path, error: &Error) -> Error {
    Error::invalid_file(
        dir,
        format!("the model's adapter is corrupt ({error}); use --adapter none to run without it"),
    )
}

impl LoraConfig {
    /// Whether the adapter was trained on `model`, by the base's name and in any dtype.
    pub fn is_of(&self, model: &Path) -> bool {
        let Some(base) = self.base_model_name_or_path.as_deref() else {
            return false;
        };
        let base = if base == MODEL_ID { BASE_MODEL } else { base };
        model_stem(Path::new(base)) == model_stem(model)
    }
}
