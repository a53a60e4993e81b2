//! The record of the environment check, `benchmarks/environment.json`.

use std::collections::BTreeMap;

use serde_json::json;

use crate::blackwell_compat::{Capability, FIRST_AFFECTED};
use crate::doctor::{self, Choices, Report, Status};
use crate::project::Project;
use crate::records::{Environment, Extra, gib, timestamp};

/// The dependencies of this build.
const LOCK: &str = include_str!("../../Cargo.lock");
/// The packages that affect results.
const PACKAGES: [&str; 12] = [
    "actix-web",
    "half",
    "hf-hub",
    "image",
    "minijinja",
    "parquet",
    "rayon",
    "safetensors",
    "serde_json",
    "tch",
    "tokenizers",
    "torch-sys",
];

/// Runs the same checks as `medvision doctor`; returns the record and the diagnosis.
///
/// The record's errors are those that keep the pipeline from running. A missing or incomplete model folder is an error only if the
/// user chose it: the pipeline's next phase downloads the model.
pub fn examine(project: &Project, choices: &Choices) -> (Environment, Report) {
    let report = doctor::examine(project, choices);
    let record = record(&report, choices.model.is_some());
    (record, report)
}

fn record(report: &Report, model_was_chosen: bool) -> Environment {
    let errors = findings(report, |check| {
        check.status == Status::Error && (model_was_chosen || check.section != doctor::MODELS)
    });
    let gpus = &report.accelerators.gpus;
    let gpu = gpus.first();
    let libtorch = report
        .libtorch
        .version
        .as_ref()
        .map(|version| ("libtorch".to_owned(), Some(version.clone())));
    Environment {
        timestamp: timestamp(),
        python_version: None,
        platform: report.machine.os.clone(),
        pytorch_version: report.libtorch.version.clone(),
        cuda_available: gpus.iter().any(|gpu| gpu.works),
        cuda_version: report.libtorch.cuda_version.clone(),
        gpu_name: gpu.map(|gpu| gpu.name.clone()),
        gpu_count: gpus.len() as u64,
        total_vram_gb: gpu.map(|gpu| gib(gpu.total_bytes)),
        installed_packages: packages(LOCK).chain(libtorch).collect(),
        validation_passed: errors.is_empty(),
        errors,
        extra: details(report),
    }
}

/// Keys beyond the original project's.
fn details(report: &Report) -> Extra {
    let machine = &report.machine;
    let capability = report
        .accelerators
        .gpus
        .first()
        .and_then(|gpu| capability(&gpu.compute_capability));
    [
        (
            "warnings",
            json!(findings(report, |check| check.status == Status::Warn)),
        ),
        ("tool_version", json!(crate::version::version())),
        ("cpu_name", json!(machine.cpu)),
        ("cpu_cores", json!(machine.physical_cores)),
        ("cpu_features", json!(machine.cpu_features)),
        ("memory_gb", json!(machine.memory_total_bytes.map(gib))),
        ("disk_free_gb", json!(machine.disk_free_bytes.map(gib))),
        (
            "driver_cuda_version",
            json!(report.accelerators.driver_cuda_version),
        ),
        (
            "compute_capability",
            json!(capability.map(|(major, minor)| format!("{major}.{minor}"))),
        ),
        ("blackwell_compat", json!(report.blackwell_compat)),
        (
            "integer_reductions_on_cpu",
            json!(capability.is_some_and(|capability| capability >= FIRST_AFFECTED)),
        ),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into_iter()
    .collect()
}

fn findings(report: &Report, wanted: impl Fn(&doctor::Check) -> bool) -> Vec<String> {
    let checks = report.checks.iter().filter(|check| wanted(check));
    checks
        .map(|check| match &check.hint {
            Some(hint) => format!("{}; {hint}", check.message),
            None => check.message.clone(),
        })
        .collect()
}

/// "9.0" → (9, 0).
fn capability(text: &str) -> Option<Capability> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Versions of [`PACKAGES`] in a `Cargo.lock`.
fn packages(lock: &str) -> impl Iterator<Item = (String, Option<String>)> {
    let versions: BTreeMap<&str, &str> = lock
        .split("[[package]]")
        .filter_map(|entry| Some((field(entry, "name")?, field(entry, "version")?)))
        .collect();
    PACKAGES.into_iter().map(move |package| {
        let version = versions.get(package).map(|version| (*version).to_owned());
        (package.to_owned(), version)
    })
}

fn field<'a>(entry: &'a str, key: &str) -> Option<&'a str> {
    let mut lines = entry.lines();
    lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blackwell_compat::{Reductions, check};
    use crate::device::{DeviceChoice, Precision};
    use crate::doctor::{Check, GpuReport};
    use tch::Device;

    fn report() -> Report {
        let choices = Choices {
            model: None,
            device: DeviceChoice::Cpu,
            precision: Precision::Auto,
        };
        doctor::examine(&Project::open(None).unwrap(), &choices)
    }

    #[test]
    fn every_package_has_a_version() {
        for (package, version) in packages(LOCK) {
            let version = version.unwrap_or_default();
            assert!(version.split('.').count() >= 3, "{package}: {version}");
        }
        let lock = "[[package]]\nname = \"tch\"\nversion = \"0.24.0\"\n\n[[package]]\nname = \"x\"\n";
        let found: BTreeMap<_, _> = packages(lock).collect();
        assert_eq!(found["tch"].as_deref(), Some("0.24.0"));
        assert_eq!(found["rayon"], None);
    }

    #[test]
    fn gpus_are_reported_with_their_compute_capability() {
        let mut report = report();
        report.accelerators.gpus = vec![GpuReport {
            index: 0,
            name: "NVIDIA GB10".to_owned(),
            compute_capability: "12.1".to_owned(),
            total_bytes: 128 << 30,
            free_bytes: None,
            works: true,
            reason: None,
            blackwell_compat: check(Device::Cpu, Reductions::with_capability(Some((12, 1)))),
        }];
        report.blackwell_compat = report.accelerators.gpus[0].blackwell_compat.clone();
        let blackwell = record(&report, false);
        assert!(blackwell.cuda_available);
        assert_eq!((blackwell.gpu_count, blackwell.total_vram_gb), (1, Some(128.0)));
        assert_eq!(blackwell.extra["compute_capability"], "12.1");
        assert_eq!(blackwell.extra["integer_reductions_on_cpu"], true);
        assert_eq!(
            blackwell.extra["blackwell_compat"],
            json!({"capability": "12.1", "needed": false, "in_use": true, "checked": true})
        );

        report.accelerators.gpus[0].compute_capability = "9.0".to_owned();
        report.accelerators.gpus[0].works = false;
        let broken = record(&report, false);
        assert!(!broken.cuda_available);
        assert_eq!(broken.extra["integer_reductions_on_cpu"], false);
    }

    #[test]
    fn a_model_to_be_downloaded_is_not_an_error() {
        let mut report = report();
        report.checks.retain(|check| check.status != Status::Error);
        assert!(record(&report, true).validation_passed);
        report.checks.push(Check {
            section: doctor::MODELS,
            status: Status::Error,
            message: "no such folder".to_owned(),
            hint: None,
        });
        assert!(record(&report, false).validation_passed);
        assert_eq!(record(&report, true).errors, ["no such folder"]);
        report.checks.push(Check {
            section: "Accelerator",
            status: Status::Error,
            message: "cuda:0 cannot be used".to_owned(),
            hint: Some("choose --device cpu".to_owned()),
        });
        let failed = record(&report, false);
        assert!(!failed.validation_passed);
        assert_eq!(failed.errors, ["cuda:0 cannot be used; choose --device cpu"]);
    }
}
