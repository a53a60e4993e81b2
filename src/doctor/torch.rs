//! Checks libtorch and GPUs.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;
use tch::{Device, Kind};

use super::{Checks, Status, gib};
use crate::blackwell_compat::{self, Reductions};
use crate::device::{self, CudaUnavailable, DeviceChoice, Gpu};

/// The loaded libtorch.
#[derive(Debug, Clone, Serialize)]
pub struct Libtorch {
    /// Version, such as "2.11.0+cu130"; `None` if unknown.
    pub version: Option<String>,
    /// The CUDA version that it was built for, such as "13.0"; `None` without CUDA or if unknown.
    pub cuda_version: Option<String>,
    /// Folder of its libraries.
    pub folder: Option<PathBuf>,
}

/// GPUs and their state.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Accelerators {
    /// Latest CUDA version that the NVIDIA driver supports.
    pub driver_cuda_version: Option<String>,
    /// The GPUs that CUDA sees.
    pub gpus: Vec<GpuReport>,
    /// Reason if there is none.
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
    /// Free memory, bytes.
    pub free_bytes: Option<u64>,
    /// Whether a test operation gave the correct result.
    pub works: bool,
    /// Why it does not work.
    pub reason: Option<String>,
    /// State of integer products.
    pub blackwell_compat: blackwell_compat::Check,
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
    Libtorch {
        cuda_version: folder
            .as_deref()
            .and_then(|folder| cuda_version(version.as_deref(), folder)),
        version,
        folder,
    }
}

/// Version of the libtorch in use, such as "2.11.0+cu130"; `None` if unknown.
pub fn libtorch_version() -> Option<String> {
    version(&device::libtorch_folder()?)
}

/// Version from the folder above the libraries: a Python wheel's `version.py`, a libtorch archive's `build-version`, or the name of
/// the wheel's `.dist-info` folder, which `make setup` keeps.
fn version(libraries: &Path) -> Option<String> {
    let folder = libraries.parent()?;
    if let Ok(text) = fs::read_to_string(folder.join("version.py")) {
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix("__version__ = "))?;
        return Some(value.trim_matches(['\'', '"']).to_owned());
    }
    if let Ok(text) = fs::read_to_string(folder.join("build-version")) {
        return Some(text.trim().to_owned());
    }
    wheel_version(folder.parent()?, "torch-")
}

/// "13.0" for a version such as "2.11.0+cu130"; otherwise the version of the installed CUDA runtime wheel.
fn cuda_version(version: Option<&str>, libraries: &Path) -> Option<String> {
    match version.and_then(|version| version.split_once('+')) {
        Some((_, build)) => {
            let digits = build.strip_prefix("cu")?;
            let (major, minor) = digits.split_at_checked(digits.len().checked_sub(1)?)?;
            (!major.is_empty()).then(|| format!("{major}.{minor}"))
        }
        None if !libraries.join("libtorch_cuda.so").is_file() => None,
        None => {
            let runtime = wheel_version(libraries.parent()?.parent()?, "nvidia_cuda_runtime-")?;
            let mut parts = runtime.split('.');
            Some(format!("{}.{}", parts.next()?, parts.next()?))
        }
    }
}

/// Version in the name of a wheel's `NAME-VERSION.dist-info` folder.
fn wheel_version(folder: &Path, prefix: &str) -> Option<String> {
    fs::read_dir(folder).ok()?.flatten().find_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        Some(name.strip_prefix(prefix)?.strip_suffix(".dist-info")?.to_owned())
    })
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
    if let Some(index) = choice.gpu()
        && !accelerators
            .gpus
            .iter()
            .any(|gpu| gpu.index == index && gpu.works)
    {
        let hint = "choose --device auto or cpu, or fix the problem above";
        checks.add_with_hint(
            "Accelerator",
            Status::Error,
            format!("the requested device {choice} is not usable"),
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
    // Queried after the test operation, which includes CUDA's own memory.
    let memory = device::gpu_memory(gpu.index).ok();
    let (major, minor) = gpu.compute_capability;
    let reductions = Reductions::with_capability(Some(gpu.compute_capability));
    let products = match &trial {
        Ok(_) => blackwell_compat::check(Device::Cuda(gpu.index), reductions),
        Err(_) => blackwell_compat::Check {
            capability: Some(format!("{major}.{minor}")),
            in_use: reductions.through_cpu(Kind::Int64),
            ..blackwell_compat::Check::default()
        },
    };
    let report = GpuReport {
        index: gpu.index,
        compute_capability: format!("{major}.{minor}"),
        total_bytes: gpu.total_bytes,
        free_bytes: memory.map(|memory| memory.total_bytes.saturating_sub(memory.used_bytes)),
        works: trial.is_ok(),
        reason: trial.err().map(|error| error.to_string()),
        name: gpu.name,
        blackwell_compat: products,
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
    if report.works {
        check_products(&report, checks);
    }
    report
}

/// Reports whether integer products are correct on a working GPU.
fn check_products(gpu: &GpuReport, checks: &mut Checks) {
    let way = match gpu.blackwell_compat.in_use {
        true => "on the CPU (blackwell_compat)",
        false => "on the GPU",
    };
    let message = format!("CUDA[{}]: integer products {way}", gpu.index);
    match gpu.blackwell_compat.checked {
        true => checks.add("Accelerator", Status::Pass, format!("{message} are correct")),
        false => checks.add_with_hint(
            "Accelerator",
            Status::Error,
            format!("{message} fail or are incorrect"),
            "install libtorch with make setup, or choose --device cpu",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_the_loaded_libtorch_is_known() {
        let libtorch = examine_libtorch(&mut Checks::default());
        assert!(libtorch.version.unwrap().starts_with("2."));
    }

    #[test]
    fn versions_are_found_in_every_layout() {
        let folder = tempfile::tempdir().unwrap();
        let libraries = folder.path().join("torch/lib");
        fs::create_dir_all(&libraries).unwrap();
        assert_eq!(version(&libraries), None);
        assert_eq!(cuda_version(None, &libraries), None);
        fs::create_dir(folder.path().join("torch-2.11.0.dist-info")).unwrap();
        fs::create_dir(folder.path().join("nvidia_cuda_runtime-13.0.96.dist-info")).unwrap();
        assert_eq!(version(&libraries).unwrap(), "2.11.0");
        // The CPU part of a wheel that was built for CUDA.
        assert_eq!(cuda_version(Some("2.11.0"), &libraries), None);
        fs::write(libraries.join("libtorch_cuda.so"), "").unwrap();
        assert_eq!(cuda_version(Some("2.11.0"), &libraries).unwrap(), "13.0");
        fs::write(folder.path().join("torch/build-version"), "2.11.0+cpu\n").unwrap();
        assert_eq!(version(&libraries).unwrap(), "2.11.0+cpu");
        fs::write(
            folder.path().join("torch/version.py"),
            "__all__ = []\n__version__ = '2.11.0+cu130'\n",
        )
        .unwrap();
        assert_eq!(version(&libraries).unwrap(), "2.11.0+cu130");
        for (version, cuda) in [
            ("2.11.0+cu130", Some("13.0")),
            ("2.11.0.dev20260206+cu128", Some("12.8")),
            ("2.11.0+cpu", None),
            ("2.11.0+cu", None),
        ] {
            assert_eq!(
                cuda_version(Some(version), &libraries).as_deref(),
                cuda,
                "{version}"
            );
        }
    }
}
