//! The adapter that a run begins with.

use std::path::PathBuf;

use super::{base::Base, options::TrainingOptions};
use crate::Result;
use crate::error::TrainingError;
use crate::lora::{Adapter, LoraConfig, Targets};
use crate::processing::ImageProcessor;
use crate::project::Project;

/// A new adapter for `base`, with the values of `init_adapter` if the settings name one.
///
/// `images` resizes the pages; it is saved with the adapter if the settings bound the page size from below.
pub(super) fn initial_adapter(
    project: &Project,
    base: &Base,
    options: &TrainingOptions,
    images: &ImageProcessor,
) -> Result<Adapter> {
    let config = LoraConfig {
        r: options.lora_rank as usize,
        lora_alpha: options.lora_alpha,
        use_rslora: options.rslora,
        lora_dropout: options.lora_dropout,
        target_modules: Targets::Suffixes(options.target_modules.clone()),
        exclude_modules: options
            .freeze_vision
            .then(|| Targets::Pattern(r".*visual\..*".to_owned())),
        base_model_name_or_path: Some(base.dir.display().to_string()),
        ..LoraConfig::default()
    };
    let mut adapter = Adapter::initial(config, &base.config.linear_modules(), options.seed)?;
    adapter.images = options.min_pixels.map(|_| images.clone());
    if let Some(name) = &options.init_adapter {
        copy_values(&mut adapter, project.adapter_folder(name)?)?;
    }
    Ok(adapter)
}

/// Copies the values of the adapter in `path`, which must have the same pairs as `adapter`.
fn copy_values(adapter: &mut Adapter, path: PathBuf) -> Result<()> {
    let mut other = Adapter::read(&path)?.pairs;
    let mut difference = None;
    for (name, pair) in &mut adapter.pairs {
        match other.remove(name) {
            None => difference = Some(format!("it has no pair for \"{name}\"")),
            Some(found) if found.sizes() != pair.sizes() || found.scale != pair.scale => {
                let text = |(rank, inputs, outputs), scale| {
                    format!("{inputs} inputs, {outputs} outputs, rank {rank}, scale {scale}")
                };
                let (theirs, ours) = (text(found.sizes(), found.scale), text(pair.sizes(), pair.scale));
                difference = Some(format!("\"{name}\" has {theirs}, expected {ours}"));
            }
            Some(found) => *pair = found,
        }
        if difference.is_some() {
            break;
        }
    }
    let left = other.into_keys().next().filter(|_| difference.is_none());
    match difference.or(left.map(|name| format!("it has \"{name}\", which is not a target module"))) {
        Some(reason) => Err(TrainingError::OtherAdapter { path, reason }.into()),
        None => Ok(()),
    }
}
