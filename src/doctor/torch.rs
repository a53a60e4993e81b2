//! libtorch, GPUs, and whether the two work together.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Checks, Status, gib};
use crate::device::{self, CudaUnavailable, DeviceChoice, Gpu};

/// The libtorch that this program runs on.
#[derive(Debug, Clone, Serialize)]
pub struct Libtorch {
    /// Version, such as "2.11.0+cu130"; `None` where its folder does not tell.
    pub version: Option<String>,
    /// Folder of its libraries.
    pub folder: Option<PathBuf>,
}

/// GPUs, and whether they work.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Accelerators {
    /// Newest CUDA version that the NVIDIA driver supports.
    pub driver_cuda_version: Option<String>,
    /// Each GPU that CUDA sees.
    pub gpus: Vec<GpuReport>,
    /// Why there is none.
    pub reason: Option<String>,
}

/// One GPU.
#[derive(Debug, Clone, Serialize)]
pub struct GpuReport {
    /// Index among the GPUs that CUDA sees.
    pub index: usize,
    /// Its name.
    pub name: String,
    /// Compute capability, such as "9.0".
    pub compute_capability: String,
    /// Its memory, bytes.
    pub total_bytes: u64,
    /// What of it is free, bytes.
    pub free_bytes: Option<u64>,
    /// A first operation came out right.
    pub works: bool,
    /// Why it does not work.
    pub reason: Option<String>,
}

pub(super) fn examine_libtorch(checks: &mut Checks) -> Libtorch {
    let folder = device::libtorch_folder();
    let version = folder.as_deref().and_then(version);
    let place = folder.as_ref().map_or_else(
        || "an unknown folder".to_owned(),
        |folder| folder.display().to_string(),
    );
    let number = version.as_deref().unwrap_or("of unknown version");
    checks.add("Libraries", Status::Pass, format!("libtorch {number} in {place}"));
    Libtorch { version, folder }
}

/// The version that the folder above the libraries tells: a Python wheel's `version.py`, a libtorch archive's `build-version`.
fn version(libraries: &Path) -> Option<String> {
    let folder = libraries.parent()?;
    if let Ok(text) = fs::read_to_string(folder.join("version.py")) {
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix("__version__ = "))?;
        return Some(value.trim_matches(['\'', '"']).to_owned());
    }
    let text = fs::read_to_string(folder.join("build-version")).ok()?;
    Some(text.trim().to_owned())
}

pub(super) fn examine_accelerators(choice: DeviceChoice, checks: &mut Checks) -> Accelerators {
    let accelerators = match device::gpus() {
        Ok(gpus) if !gpus.is_empty() => Accelerators {
            driver_cuda_version: device::driver_version()
                .ok()
                .map(|(major, minor)| format!("{major}.{minor}")),
            gpus: gpus.into_iter().map(|gpu| examine_gpu(gpu, checks)).collect(),
            reason: None,
        },
        Ok(_) => without_gpu(&CudaUnavailable::NoGpu, checks),
        Err(reason) => without_gpu(&reason, checks),
    };
    if let DeviceChoice::Cuda(index) = choice
        && !accelerators
            .gpus
            .iter()
            .any(|gpu| gpu.index == index && gpu.works)
    {
        let hint = "choose --device auto or cpu, or mend what is said above";
        checks.add_with_hint(
            "Accelerator",
            Status::Error,
            format!("{choice}, as asked for, cannot be used"),
            hint,
        );
    }
    accelerators
}

fn without_gpu(reason: &CudaUnavailable, checks: &mut Checks) -> Accelerators {
    let message = format!("the CPU is used: {reason}");
    let status = if *reason == CudaUnavailable::NoDriver {
        Status::Info
    } else {
        Status::Warn
    };
    checks.add("Accelerator", status, message);
    Accelerators {
        reason: Some(reason.to_string()),
        ..Accelerators::default()
    }
}

fn examine_gpu(gpu: Gpu, checks: &mut Checks) -> GpuReport {
    let trial = device::select(DeviceChoice::Cuda(gpu.index));
    // Asked after the trial: by then the memory that CUDA itself takes is counted.
    let memory = device::gpu_memory(gpu.index).ok();
    let (major, minor) = gpu.compute_capability;
    let report = GpuReport {
        index: gpu.index,
        compute_capability: format!("{major}.{minor}"),
        total_bytes: gpu.total_bytes,
        free_bytes: memory.map(|memory| memory.total_bytes.saturating_sub(memory.used_bytes)),
        works: trial.is_ok(),
        reason: trial.err().map(|error| error.to_string()),
        name: gpu.name,
    };
    let free = report
        .free_bytes
        .map_or_else(String::new, |bytes| format!(", {} free", gib(bytes)));
    let message = format!(
        "CUDA[{}]: {}, {}{free}, compute capability {}",
        report.index,
        report.name,
        gib(report.total_bytes),
        report.compute_capability
    );
    match &report.reason {
        None => checks.add("Accelerator", Status::Pass, message),
        Some(reason) => checks.add_with_hint("Accelerator", Status::Warn, message, reason),
    }
    report
}
