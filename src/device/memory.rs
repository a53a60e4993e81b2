//! Memory of this process and of the machine, from `/proc` and the control group.

use std::fs;
use std::path::{Path, PathBuf};

use tch::Device;

use crate::torch::{AllocatorStats, allocator_stats};

/// Memory of this process, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessMemory {
    /// Resident set size.
    pub resident_bytes: u64,
    /// Peak resident set size.
    pub peak_resident_bytes: u64,
}

/// Memory of the machine or, if less, of the control group; bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostMemory {
    /// Total.
    pub total_bytes: u64,
    /// Available without swapping.
    pub available_bytes: u64,
}

/// Memory of this process; `None` without `/proc`.
pub fn process_memory() -> Option<ProcessMemory> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    Some(ProcessMemory {
        resident_bytes: kibibytes(&status, "VmRSS:")?,
        peak_resident_bytes: kibibytes(&status, "VmHWM:")?,
    })
}

/// Memory of the machine; `None` without `/proc`.
pub fn host_memory() -> Option<HostMemory> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let machine = HostMemory {
        total_bytes: kibibytes(&meminfo, "MemTotal:")?,
        available_bytes: kibibytes(&meminfo, "MemAvailable:")?,
    };
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Some(bounded(machine, &groups, Path::new("/sys/fs/cgroup")))
}

/// Memory use of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelMemory {
    /// Statistics of libtorch's allocator on the model's GPU.
    Gpu(AllocatorStats),
    /// Memory of the process, for a model on the CPU.
    Process(ProcessMemory),
}

/// Memory use of a model on `device`; `None` if unknown.
pub fn model_memory(device: Device) -> Option<ModelMemory> {
    match device {
        Device::Cuda(index) => allocator_stats(index).map(ModelMemory::Gpu),
        _ => process_memory().map(ModelMemory::Process),
    }
}

/// Makes the allocator keep freed memory of any size, so that large buffers which are allocated repeatedly are not mapped and
/// zeroed by the kernel each time. glibc only.
pub fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets two numbers of the allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, i32::MAX);
    }
}

/// Makes all threads allocate from one arena, so that memory which one frees is used by the next; otherwise each keeps its own peak.
/// To be called before threads are started. glibc only.
pub fn share_freed_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number of the allocator.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Returns the allocator's free memory to the system; otherwise a server would stay at its peak. glibc only.
pub fn return_freed_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes the allocator's own locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// `machine` within the limits of the control groups (v2, or v1's memory controller) that `groups` lists.
fn bounded(machine: HostMemory, groups: &str, mount: &Path) -> HostMemory {
    let mut memory = machine;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (fields.next(), fields.next()) else {
            continue;
        };
        let (base, limit_file, usage_file) = match controllers {
            "" => (mount.to_owned(), "memory.max", "memory.current"),
            "memory" => (
                mount.join("memory"),
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
            ),
            _ => continue,
        };
        // Inside a container the group's own folder is often the mount itself.
        for folder in [base.join(group.trim_start_matches('/')), base] {
            if let Some(limit) = number(folder.join(limit_file)).filter(|limit| *limit < memory.total_bytes) {
                let used = number(folder.join(usage_file)).unwrap_or(0);
                memory.total_bytes = limit;
                memory.available_bytes = memory.available_bytes.min(limit.saturating_sub(used));
            }
        }
    }
    memory
}

fn number(file: PathBuf) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The value, in bytes, of a `Name:   123 kB` line.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let value: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(value * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory() {
        let memory = process_memory().unwrap();
        assert!(memory.resident_bytes > 1 << 20);
        assert!(memory.peak_resident_bytes >= memory.resident_bytes);
        let host = host_memory().unwrap();
        assert!(host.total_bytes >= host.available_bytes && host.total_bytes > memory.resident_bytes);
    }

    #[test]
    fn a_control_group_limits_the_machine() {
        let machine = HostMemory {
            total_bytes: 1000,
            available_bytes: 900,
        };
        let mount = tempfile::tempdir().unwrap();
        let group = mount.path().join("job");
        fs::create_dir(&group).unwrap();
        fs::write(group.join("memory.max"), "max\n").unwrap();
        assert_eq!(bounded(machine, "0::/job\n", mount.path()), machine);
        fs::write(group.join("memory.max"), "600\n").unwrap();
        fs::write(group.join("memory.current"), "150\n").unwrap();
        let limited = HostMemory {
            total_bytes: 600,
            available_bytes: 450,
        };
        assert_eq!(bounded(machine, "0::/job\n", mount.path()), limited);
    }
}
