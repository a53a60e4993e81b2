//! Checks that model folders are complete, consistent, and fit on the device.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use tch::{Device, Kind};

use super::Choices;
use super::{Accelerators, Checks, Machine, Status, gib};
use crate::Result;
use crate::checkpoint::{Checkpoint, ModelFolder};
use crate::device::{DeviceChoice, device_name};
use crate::engine::{folder_warnings, kv_budget_bytes, kv_bytes_per_token};
use crate::generation::GenerationOptions;
use crate::processing::{ImageProcessor, TextProcessor};
use crate::project::{BASE_MODEL, GET_BASE_MODEL, Project, require_model};
use crate::qwen2_5_vl::Config;

pub(crate) const SECTION: &str = "Models";
/// Maximum number of positions in the estimate of the KV cache.
const CACHED_POSITIONS: usize = 8192;
/// Estimated memory of libtorch, image and activations, in addition to weights and KV cache.
const OVERHEAD_BYTES: u64 = 512 << 20;

/// One model folder.
#[derive(Debug, Clone, Serialize)]
pub struct ModelReport {
    /// The folder.
    pub path: PathBuf,
    /// Whether a run with the same flags uses it.
    pub selected: bool,
    /// Whether the folder is complete and consistent.
    pub usable: bool,
    /// What is wrong with it.
    pub problem: Option<String>,
    /// Its sizes, if it is usable.
    pub sizes: Option<ModelSizes>,
}

/// Sizes of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelSizes {
    /// Size of the weights on disk, bytes.
    pub weight_bytes: u64,
    /// Number of weights.
    pub parameters: u64,
    /// Dtypes of the weights on disk.
    pub dtypes: Vec<String>,
    /// Context length: prompt, image and answer together.
    pub context_tokens: usize,
    /// Estimated device memory for reading a page, bytes.
    pub needed_bytes: u64,
    /// Free device memory, bytes.
    pub available_bytes: Option<u64>,
    /// Tokens of all requests together whose keys and values the server has memory for.
    pub kv_cache_tokens: u64,
}

/// The device that the model would run on.
struct Target {
    name: String,
    available_bytes: Option<u64>,
    kind: Kind,
}

impl Target {
    fn new(choices: &Choices, machine: &Machine, accelerators: &Accelerators) -> Self {
        let gpu = match choices.device {
            DeviceChoice::Cpu => None,
            choice => {
                let index = choice.gpu().unwrap_or(0);
                accelerators
                    .gpus
                    .iter()
                    .find(|gpu| gpu.index == index && gpu.works)
            }
        };
        let (name, available_bytes) = match gpu {
            Some(gpu) => (device_name(Device::Cuda(gpu.index)), gpu.free_bytes),
            None => (device_name(Device::Cpu), machine.memory_available_bytes),
        };
        let device = gpu.map_or(Device::Cpu, |gpu| Device::Cuda(gpu.index));
        Self {
            name,
            available_bytes,
            kind: choices.precision.kind(device),
        }
    }

    /// Estimated bytes of weights plus a fifth for loading, and of everything but the KV cache.
    fn loaded_bytes(&self, parameters: u64) -> u64 {
        parameters * self.kind.elt_size_in_bytes() as u64 * 6 / 5 + OVERHEAD_BYTES
    }

    /// Estimated bytes with the KV cache of a page.
    fn needed_bytes(&self, parameters: u64, config: &Config) -> u64 {
        let positions = config.text.max_position_embeddings.min(CACHED_POSITIONS);
        self.loaded_bytes(parameters) + positions as u64 * kv_bytes_per_token(&config.text, self.kind)
    }

    /// Tokens that the server has room for, all requests together.
    fn kv_cache_tokens(&self, parameters: u64, config: &Config) -> u64 {
        let per_token = kv_bytes_per_token(&config.text, self.kind).max(1);
        let free = self
            .available_bytes
            .map(|free| free.saturating_sub(self.loaded_bytes(parameters)));
        kv_budget_bytes(free, per_token) / per_token
    }
}

pub(super) fn examine(
    project: &Project,
    choices: &Choices,
    machine: &Machine,
    accelerators: &Accelerators,
    checks: &mut Checks,
) -> Vec<ModelReport> {
    let target = Target::new(choices, machine, accelerators);
    let mut reports = Vec::new();
    match project.model_folder(choices.model.as_deref()) {
        Ok(folder) => {
            if folder.stands_in {
                let message = format!(
                    "{} is missing: using the embedded model",
                    project.models().join(BASE_MODEL).display()
                );
                checks.add_with_hint(
                    SECTION,
                    Status::Warn,
                    message,
                    format!("to get it: {GET_BASE_MODEL}"),
                );
            }
            reports.push(examine_folder(&folder.path, true, &target, checks));
        }
        Err(error) => checks.add(SECTION, Status::Error, error.to_string()),
    }
    for path in folders_with(&project.models(), "config.json") {
        if !reports.iter().any(|report| same(&report.path, &path)) {
            reports.push(examine_folder(&path, false, &target, checks));
        }
    }
    reports
}

/// Folders in `models` that contain `file`, sorted by name.
pub(super) fn folders_with(models: &Path, file: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(models).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.join(file).is_file())
        .collect();
    folders.sort();
    folders
}

pub(super) fn same(one: &Path, other: &Path) -> bool {
    matches!((fs::canonicalize(one), fs::canonicalize(other)), (Ok(one), Ok(other)) if one == other)
}

fn examine_folder(path: &Path, selected: bool, target: &Target, checks: &mut Checks) -> ModelReport {
    let result = sizes(path, target);
    for warning in folder_warnings(path, None).unwrap_or_default() {
        checks.add(SECTION, Status::Warn, warning);
    }
    match &result {
        Ok(sizes) => check_sizes(path, selected, target, sizes, checks),
        Err(error) => {
            let status = if selected { Status::Error } else { Status::Warn };
            checks.add(
                SECTION,
                status,
                format!("{} cannot be used: {error}", path.display()),
            );
        }
    }
    ModelReport {
        path: path.to_owned(),
        selected,
        usable: result.is_ok(),
        problem: result.as_ref().err().map(ToString::to_string),
        sizes: result.ok(),
    }
}

/// Reads everything in the folder except the weights themselves.
fn sizes(path: &Path, target: &Target) -> Result<ModelSizes> {
    require_model(path)?;
    let folder = ModelFolder::new(path);
    let config = Config::from_json(folder.config()?)?;
    TextProcessor::from_folder(&folder)?;
    ImageProcessor::from_dir(path)?;
    GenerationOptions::from_folder(&folder)?;
    let checkpoint = Checkpoint::open(path)?;
    let parameters = checkpoint.parameters();
    Ok(ModelSizes {
        weight_bytes: checkpoint.total_bytes(),
        parameters,
        dtypes: checkpoint.dtypes(),
        context_tokens: config.text.max_position_embeddings,
        needed_bytes: target.needed_bytes(parameters, &config),
        available_bytes: target.available_bytes,
        kv_cache_tokens: target.kv_cache_tokens(parameters, &config),
    })
}

fn check_sizes(path: &Path, selected: bool, target: &Target, sizes: &ModelSizes, checks: &mut Checks) {
    let used = if selected {
        ", used unless --model says otherwise"
    } else {
        ""
    };
    let message = format!(
        "{}: {} parameters in {}, complete; takes about {} on {}, and the server has room for {} tokens at a time{used}",
        path.display(),
        count(sizes.parameters),
        sizes.dtypes.join("+"),
        gib(sizes.needed_bytes),
        target.name,
        sizes.kv_cache_tokens,
    );
    match sizes.available_bytes {
        Some(available) if sizes.needed_bytes > available => {
            let half = if target.kind == Kind::Float {
                "; --precision bf16 takes about half"
            } else {
                ""
            };
            let hint = format!("{} has {} free{half}", target.name, gib(available));
            checks.add_with_hint(SECTION, Status::Warn, message, hint);
        }
        _ => checks.add(SECTION, Status::Pass, message),
    }
}

/// Formats a count: "13.3M".
pub(super) fn count(parameters: u64) -> String {
    let parameters = parameters as f64;
    if parameters >= 1e9 {
        format!("{:.1}B", parameters / 1e9)
    } else {
        format!("{:.1}M", parameters / 1e6)
    }
}
