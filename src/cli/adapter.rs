//! The flag for the adapter, and its default.

use std::path::{Path, PathBuf};

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
        if self.adapter.is_some() {
            return self.named(project);
        }
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
}
