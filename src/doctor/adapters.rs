//! Checks LoRA adapters: readable, for which model, recommended or not.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{
    Checks, ModelReport, Status,
    models::{SECTION, count, folders_with, same},
};
use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::lora::{ADAPTER_CONFIG, ADAPTER_WEIGHTS, FoundAdapter, LoraConfig, Recommendation, find_adapter};
use crate::project::Project;

/// One adapter folder.
#[derive(Debug, Clone, Serialize)]
pub struct AdapterReport {
    /// The folder.
    pub path: PathBuf,
    /// Whether it is attached to the selected model by default.
    pub selected: bool,
    /// Error, if it is unusable.
    pub problem: Option<String>,
    /// Base model named in its configuration.
    pub base_model: Option<String>,
    /// LoRA rank.
    pub rank: Option<usize>,
    /// Number of parameters.
    pub parameters: Option<u64>,
    /// Recommendation of its evaluation, if it was evaluated.
    pub recommended: Option<bool>,
}

pub(super) fn examine(project: &Project, models: &[ModelReport], checks: &mut Checks) -> Vec<AdapterReport> {
    let model = models.iter().find(|model| model.selected);
    let found = model.and_then(|model| find_adapter(project, &model.path).ok());
    let mut folders = folders_with(&project.models(), ADAPTER_CONFIG);
    if let Some(FoundAdapter::Recommended(dir) | FoundAdapter::NotRecommended { dir, .. }) = &found
        && !folders.iter().any(|folder| same(folder, dir))
    {
        folders.push(dir.clone());
    }
    folders
        .into_iter()
        .map(|path| examine_folder(path, found.as_ref(), checks))
        .collect()
}

fn examine_folder(path: PathBuf, found: Option<&FoundAdapter>, checks: &mut Checks) -> AdapterReport {
    let mut report = AdapterReport {
        selected: matches!(found, Some(FoundAdapter::Recommended(dir)) if same(dir, &path)),
        path,
        problem: None,
        base_model: None,
        rank: None,
        parameters: None,
        recommended: None,
    };
    let name = report.path.display().to_string();
    let (config, parameters, recommendation) = match read(&report.path) {
        Ok(read) => read,
        Err(error) => {
            let message = format!("{name} cannot be used: {error}");
            checks.add(SECTION, Status::Warn, message);
            report.problem = Some(error.to_string());
            return report;
        }
    };
    report.rank = Some(config.r);
    report.parameters = Some(parameters);
    report.recommended = recommendation
        .as_ref()
        .map(|recommendation| recommendation.recommended);
    report.base_model = config.base_model_name_or_path;
    let base = report.base_model.as_deref().unwrap_or("an unnamed model");
    let status = match &recommendation {
        None => "not evaluated".to_owned(),
        Some(recommendation) if recommendation.recommended => "recommended by its evaluation".to_owned(),
        Some(recommendation) => format!("not recommended by its evaluation ({})", recommendation.reason),
    };
    let used = if report.selected {
        ", used unless --adapter says otherwise"
    } else {
        ""
    };
    let message = format!(
        "{name}: LoRA adapter of {base}, rank {}, {} parameters, {status}{used}",
        config.r,
        count(parameters)
    );
    match found {
        Some(FoundAdapter::NotRecommended { dir, reason }) if same(dir, &report.path) => {
            let hint = format!("not attached by default: {reason}; --adapter {name} attaches it");
            checks.add_with_hint(SECTION, Status::Warn, message, hint);
        }
        _ => checks.add(SECTION, Status::Info, message),
    }
    report
}

/// Configuration, number of parameters and recommendation.
fn read(path: &Path) -> Result<(LoraConfig, u64, Option<Recommendation>)> {
    let config = LoraConfig::read(path)?;
    let parameters = Checkpoint::open_file(&path.join(ADAPTER_WEIGHTS))?.parameters();
    Ok((config, parameters, Recommendation::read(path)?))
}
