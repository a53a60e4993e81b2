//! Which adapter a run attaches: the one that the flag names, or the one that was trained on the model.

use std::iter;
use std::path::{Path, PathBuf};

use super::{config::LoraConfig, file::ADAPTER_CONFIG, recommendation::Recommendation};
use crate::project::MODEL_ID;
use crate::project::{BASE_MODEL, EMBEDDED_MODEL, LORA_SUFFIX, Project, model_stem};
use crate::{Error, Result};

/// What is said for no adapter.
const NONE: &str = "none";

/// The folder of the adapter that is asked for: a path, or a name under `models/`; `None` for "none" and where none is.
pub fn named(project: &Project, choice: Option<&Path>) -> Result<Option<PathBuf>> {
    match choice {
        None => Ok(None),
        Some(choice) if choice.as_os_str() == NONE => Ok(None),
        Some(choice) => project.adapter_folder(choice).map(Some),
    }
}

/// An adapter that lies where the model's own would.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// There is none.
    Nothing,
    /// It is to be attached.
    Fit(PathBuf),
    /// It is not to be attached without being asked for.
    LeftOut {
        /// Its folder.
        dir: PathBuf,
        /// Why, as what follows "is left out: ".
        reason: String,
    },
}

/// The folder of the adapter of `model`: where fine-tuning puts it, beside the model, or where the embedded model's comes with it.
pub fn own_folder(project: &Project, model: &Path) -> Option<PathBuf> {
    let own = project.derived_model(model, LORA_SUFFIX);
    let mut models = vec![model.to_owned()];
    if model_stem(model) == EMBEDDED_MODEL {
        models.extend(project.embedded_models());
    }
    let beside = models
        .iter()
        .filter_map(|model| Some(model.parent()?.join(own.file_name()?)));
    let mut places = iter::once(own.clone()).chain(beside);
    places.find(|place| place.join(ADAPTER_CONFIG).is_file())
}

/// Looks for the adapter of `model` and whether it is to be attached.
pub fn find(project: &Project, model: &Path) -> Result<Found> {
    let Some(dir) = own_folder(project, model) else {
        return Ok(Found::Nothing);
    };
    let config = LoraConfig::read(&dir).map_err(|error| without_it(&dir, &error))?;
    if !config.is_of(model) {
        let base = config
            .base_model_name_or_path
            .as_deref()
            .unwrap_or("an unnamed model");
        let reason = format!("it was trained on {base}, not on this model");
        return Ok(Found::LeftOut { dir, reason });
    }
    Ok(match Recommendation::read(&dir) {
        Ok(
            None
            | Some(Recommendation {
                recommended: true, ..
            }),
        ) => Found::Fit(dir),
        Ok(Some(Recommendation { reason, .. })) => {
            let reason = format!("not recommended by its evaluation ({reason})");
            Found::LeftOut { dir, reason }
        }
        Err(error) => {
            let reason = format!("cannot read its evaluation ({error})");
            Found::LeftOut { dir, reason }
        }
    })
}

/// A damaged adapter is no reason to go on without it unasked.
fn without_it(dir: &Path, error: &Error) -> Error {
    Error::checkpoint(
        dir,
        format!("the model's adapter is corrupt ({error}); use --adapter none to run without it"),
    )
}

impl LoraConfig {
    /// Whether the adapter was trained on `model`, in any number format, by the base's name.
    pub fn is_of(&self, model: &Path) -> bool {
        let Some(base) = self.base_model_name_or_path.as_deref() else {
            return false;
        };
        let base = if base == MODEL_ID { BASE_MODEL } else { base };
        model_stem(Path::new(base)) == model_stem(model)
    }
}
