//! Which adapter a run attaches: the one that the flag names, or the one that was trained on the model.

use std::iter;
use std::path::{Path, PathBuf};

use super::config::LoraConfig;
use super::file::ADAPTER_CONFIG;
use super::verdict::Verdict;
use crate::hub::MODEL_ID;
use crate::paths::{BASE_MODEL, EMBEDDED_MODEL, LORA_SUFFIX, Project, model_stem};
use crate::telemetry::{Level, say};
use crate::{Error, Result};

/// What the flag says for no adapter.
const NONE: &str = "none";

/// The flag.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct AdapterArgs {
    /// Folder of a LoRA adapter in PEFT's form, or the name of one under models/; or none
    ///
    /// It stays beside the model's weights. Without this flag extract and the server attach models/NAME-medical-lora,
    /// where NAME is the model's name, if it was trained on that model and its evaluation has nothing against it;
    /// everything else attaches none.
    #[arg(long, value_name = "DIR|none", env = "MVP_ADAPTER", hide_env_values = true)]
    pub adapter: Option<PathBuf>,
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

impl AdapterArgs {
    /// The adapter that the flag names.
    pub fn named(&self, project: &Project) -> Result<Option<PathBuf>> {
        match &self.adapter {
            None => Ok(None),
            Some(choice) if choice.as_os_str() == NONE => Ok(None),
            Some(choice) => project.adapter_folder(choice).map(Some),
        }
    }

    /// The adapter that the flag names, and without the flag the model's own; says which one, or why not.
    pub fn named_or_found(&self, project: &Project, model: &Path) -> Result<Option<PathBuf>> {
        if self.adapter.is_some() {
            return self.named(project);
        }
        match find(project, model)? {
            Found::Nothing => Ok(None),
            Found::Fit(dir) => {
                let message = format!("adapter: {} (--adapter none leaves it out)", dir.display());
                say(Level::INFO, &message);
                Ok(Some(dir))
            }
            Found::LeftOut { dir, reason } => {
                let dir = dir.display();
                say(
                    Level::WARN,
                    &format!("the adapter {dir} is left out: {reason}; --adapter {dir} attaches it"),
                );
                Ok(None)
            }
        }
    }
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
            .unwrap_or("a model it does not name");
        let reason = format!("it was trained on {base}, not on this model");
        return Ok(Found::LeftOut { dir, reason });
    }
    Ok(match Verdict::read(&dir) {
        Ok(
            None
            | Some(Verdict {
                recommended: true, ..
            }),
        ) => Found::Fit(dir),
        Ok(Some(Verdict { reason, .. })) => {
            let reason = format!("its evaluation does not recommend it ({reason})");
            Found::LeftOut { dir, reason }
        }
        Err(error) => {
            let reason = format!("what its evaluation says cannot be read ({error})");
            Found::LeftOut { dir, reason }
        }
    })
}

/// A damaged adapter is no reason to go on without it unasked.
fn without_it(dir: &Path, error: &Error) -> Error {
    Error::checkpoint(
        dir,
        format!("the model's adapter is damaged ({error}); --adapter none goes without it"),
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
