//! Checks operating system, processor, memory, disk and port.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::num::NonZeroUsize;
use std::thread::available_parallelism;

use serde::Serialize;

use super::{Checks, Status, gib};
use crate::device;
use crate::fs::disk_free;
use crate::project::{BASE_MODEL, Project};

/// Default port of the server.
const PORT: u16 = 8000;
/// Disk space for the 7B model, with a margin.
const BASE_MODEL_BYTES: u64 = 20 << 30;
/// Instruction sets that affect speed, by their Linux names.
const CPU_FEATURES: [&str; 7] = [
    "avx2",
    "fma",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "amx_bf16",
    "asimd",
];

/// The machine.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Distribution and kernel.
    pub os: String,
    /// Processor name.
    pub cpu: String,
    /// Physical cores available to the process, if known.
    pub physical_cores: Option<usize>,
    /// Hardware threads available to the process.
    pub threads: usize,
    /// Supported instruction sets that affect speed.
    pub cpu_features: Vec<&'static str>,
    /// Memory of the machine or the control group, bytes.
    pub memory_total_bytes: Option<u64>,
    /// Available memory, bytes.
    pub memory_available_bytes: Option<u64>,
    /// Free space at the project folder, bytes.
    pub disk_free_bytes: Option<u64>,
    /// Whether port 8000 is in use.
    pub port_8000_in_use: bool,
}

pub(super) fn examine(project: &Project, checks: &mut Checks) -> Machine {
    let memory = device::host_memory();
    let machine = Machine {
        os: os(),
        cpu: device::cpu_name(),
        physical_cores: device::physical_cores(),
        threads: available_parallelism().map_or(1, NonZeroUsize::get),
        cpu_features: cpu_features(),
        memory_total_bytes: memory.map(|memory| memory.total_bytes),
        memory_available_bytes: memory.map(|memory| memory.available_bytes),
        disk_free_bytes: disk_free(project.root()).ok(),
        port_8000_in_use: port_in_use(PORT),
    };
    checks.add("Machine", Status::Info, format!("OS: {}", machine.os));
    check_cpu(&machine, checks);
    if let Some(memory) = memory {
        let (total, available) = (gib(memory.total_bytes), gib(memory.available_bytes));
        checks.add(
            "Machine",
            Status::Info,
            format!("memory: {total} total, {available} available"),
        );
    }
    check_project(project, &machine, checks);
    if machine.port_8000_in_use {
        let hint = "stop the other program, or choose another port: server --port 8001";
        checks.add_with_hint("Machine", Status::Warn, format!("port {PORT} is in use"), hint);
    } else {
        checks.add("Machine", Status::Pass, format!("port {PORT} is free"));
    }
    machine
}

fn check_cpu(machine: &Machine, checks: &mut Checks) {
    let cores = machine.physical_cores.map_or_else(
        || format!("{} threads", machine.threads),
        |cores| {
            if cores == 1 {
                "1 core".to_owned()
            } else {
                format!("{cores} cores")
            }
        },
    );
    let features = machine.cpu_features.join(" ");
    let message = format!("CPU: {}, {cores}, {features}", machine.cpu);
    if cfg!(target_arch = "x86_64") && !machine.cpu_features.contains(&"avx2") {
        let hint = "reading on this processor is several times slower than on one with AVX2";
        checks.add_with_hint("Machine", Status::Warn, message, hint);
    } else {
        checks.add("Machine", Status::Info, message);
    }
}

fn check_project(project: &Project, machine: &Machine, checks: &mut Checks) {
    let root = project.root();
    let shown = fs::canonicalize(root).unwrap_or_else(|_| root.to_owned());
    let free = machine
        .disk_free_bytes
        .map_or_else(String::new, |bytes| format!(", {} free", gib(bytes)));
    let message = format!("project folder: {}{free}", shown.display());
    if tempfile::tempfile_in(root).is_err() {
        let hint =
            "reading pages works; programs that write records or models need a writable folder (--root)";
        checks.add_with_hint("Machine", Status::Warn, format!("{message}, not writable"), hint);
    } else if machine
        .disk_free_bytes
        .is_some_and(|bytes| bytes < BASE_MODEL_BYTES)
        && !project.models().join(BASE_MODEL).is_dir()
    {
        let hint = format!(
            "the 7B model takes {}: free some space, or choose another folder with --root",
            gib(BASE_MODEL_BYTES)
        );
        checks.add_with_hint("Machine", Status::Warn, message, hint);
    } else {
        checks.add("Machine", Status::Pass, message);
    }
}

/// Distribution, kernel and processor architecture.
pub fn os() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let name = name.map_or("unknown distribution", |name| name.trim_matches('"'));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "{name}, {} {}, {}",
        std::env::consts::OS,
        kernel.trim(),
        std::env::consts::ARCH
    )
}

fn cpu_features() -> Vec<&'static str> {
    // "flags" on x86, "Features" on ARM.
    let flags = device::cpu_info("flags")
        .or_else(|| device::cpu_info("Features"))
        .unwrap_or_default();
    let present = |feature: &&str| flags.split(' ').any(|flag| flag == *feature);
    CPU_FEATURES.into_iter().filter(present).collect()
}

fn port_in_use(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_in_use_are_detected() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(port_in_use(port));
        drop(listener);
        assert!(!port_in_use(port));
    }

    #[test]
    fn too_little_disk_space_is_a_warning_until_the_base_model_exists() {
        let folder = tempfile::tempdir().unwrap();
        let project = Project::open(Some(folder.path())).unwrap();
        let mut machine = examine(&project, &mut Checks::default());
        let check = |machine: &Machine| {
            let mut checks = Checks::default();
            check_project(&project, machine, &mut checks);
            checks.0.remove(0)
        };
        machine.disk_free_bytes = Some(BASE_MODEL_BYTES - 1);
        let full = check(&machine);
        assert_eq!(full.status, Status::Warn);
        assert!(full.hint.unwrap().contains("20.0 GiB"));
        machine.disk_free_bytes = Some(BASE_MODEL_BYTES);
        assert_eq!(check(&machine).status, Status::Pass);
        machine.disk_free_bytes = Some(0);
        fs::create_dir_all(project.models().join(BASE_MODEL)).unwrap();
        assert_eq!(check(&machine).status, Status::Pass);
    }
}
