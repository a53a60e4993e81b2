//! Warnings about a model folder and an adapter that can be used all the same.

use std::path::Path;

use crate::Result;
use crate::checkpoint::{Checkpoint, ModelFolder};
use crate::generation::GenerationOptions;
use crate::lora::Adapter;
use crate::qwen2_5_vl::{Config, Tying};

/// Returns the warnings of [`Reader::warnings`](super::Reader::warnings) without loading the model.
pub fn folder_warnings(dir: &Path, adapter: Option<&Path>) -> Result<Vec<String>> {
    let folder = ModelFolder::new(dir);
    let config = Config::from_json(folder.config()?)?;
    let checkpoint = Checkpoint::open(dir)?;
    let mut warnings = checkpoint.warnings().to_vec();
    warnings.extend(Tying::of(&checkpoint, &config)?.1);
    if let Some(adapter) = adapter {
        warnings.extend(Adapter::read(adapter)?.warnings(&config.adaptable_modules())?);
    }
    warnings.extend(GenerationOptions::warnings(&folder)?);
    Ok(warnings)
}
