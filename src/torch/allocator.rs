//! Memory that a model takes: what libtorch's caching allocator holds on a GPU, through a few lines of C++ (`allocator.cpp`),
//! and on a CPU the process's.

use std::ffi::c_int;

use tch::Device;

use crate::device::process_memory;
use crate::records::GpuMemory;

/// As in `allocator.cpp`.
#[repr(C)]
#[derive(Default)]
struct Stats {
    allocated_bytes: i64,
    reserved_bytes: i64,
    max_allocated_bytes: i64,
}

unsafe extern "C" {
    fn medvision_allocator_stats(device: c_int, stats: *mut Stats) -> c_int;
    fn medvision_reset_peak(device: c_int) -> c_int;
}

/// What the allocator holds on `device`; on a CPU the resident memory of the process. `None` where it is not told.
pub fn allocator_memory(device: Device) -> Option<GpuMemory> {
    let Device::Cuda(index) = device else {
        let memory = process_memory()?;
        return Some(GpuMemory::resident(
            memory.resident_bytes,
            memory.peak_resident_bytes,
        ));
    };
    let index = gpu_index(index)?;
    let mut stats = Stats::default();
    // SAFETY: the structure is the one the function fills, and it throws nothing.
    if unsafe { medvision_allocator_stats(index, &mut stats) } != 0 {
        return None;
    }
    let bytes = |value: i64| u64::try_from(value).unwrap_or(0);
    Some(GpuMemory::from_bytes(
        bytes(stats.allocated_bytes),
        bytes(stats.reserved_bytes),
        bytes(stats.max_allocated_bytes),
    ))
}

/// Lets the highest figure of [`allocator_memory`] begin anew; nothing on a CPU.
pub fn reset_allocator_peak(device: Device) {
    if let Device::Cuda(index) = device
        && let Some(index) = gpu_index(index)
    {
        // SAFETY: takes a plain number and throws nothing. Where there is no such GPU there is no peak either.
        unsafe { medvision_reset_peak(index) };
    }
}

/// As libtorch counts GPUs, in 8 bits.
fn gpu_index(index: usize) -> Option<c_int> {
    i8::try_from(index).ok().map(c_int::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_has_the_processs_memory_and_a_gpu_that_is_not_there_none() {
        let memory = allocator_memory(Device::Cpu).unwrap();
        assert_eq!(memory.memory_kind(), Some("resident"));
        assert!(memory.allocated_mb > 1.0 && memory.allocated_mb == memory.reserved_mb);
        assert!(memory.max_allocated_mb >= memory.allocated_mb);
        for absent in [256, usize::MAX] {
            assert_eq!(allocator_memory(Device::Cuda(absent)), None);
            reset_allocator_peak(Device::Cuda(absent));
        }
        if !tch::Cuda::is_available() {
            assert_eq!(allocator_memory(Device::Cuda(0)), None);
            reset_allocator_peak(Device::Cuda(0));
        }
    }
}
