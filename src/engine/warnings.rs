//! What is odd about a model folder and an adapter, though they can be used.

use std::path::Path;

use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::lora::Adapter;
use crate::qwen2_5_vl::{Config, Tying};

/// What [`Reader::warnings`](super::Reader::warnings) would say of the folders, without loading the model.
pub fn folder_warnings(dir: &Path, adapter: Option<&Path>) -> Result<Vec<String>> {
    let config = Config::from_dir(dir)?;
    let checkpoint = Checkpoint::open(dir)?;
    let mut warnings = checkpoint.warnings().to_vec();
    warnings.extend(Tying::of(&checkpoint, &config)?.1);
    if let Some(adapter) = adapter {
        warnings.extend(Adapter::read(adapter)?.warnings(&config.adaptable_modules())?);
    }
    Ok(warnings)
}
