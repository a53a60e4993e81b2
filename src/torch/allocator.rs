//! Statistics of libtorch's caching allocator on a GPU (`allocator.cpp`).

use std::ffi::c_int;

use tch::Device;

/// Layout of `medvision_allocator_stats` in `allocator.cpp`.
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

/// Bytes of libtorch's caching allocator on one GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AllocatorStats {
    /// Allocated to tensors.
    pub allocated_bytes: u64,
    /// Reserved from the driver.
    pub reserved_bytes: u64,
    /// Peak of `allocated_bytes` since the last reset.
    pub peak_bytes: u64,
}

/// Allocator statistics of the GPU with this index; `None` if there is none.
pub fn allocator_stats(index: usize) -> Option<AllocatorStats> {
    let index = gpu_index(index)?;
    let mut stats = Stats::default();
    // SAFETY: the structure is the one the function fills, and it throws nothing.
    if unsafe { medvision_allocator_stats(index, &mut stats) } != 0 {
        return None;
    }
    let bytes = |value: i64| u64::try_from(value).unwrap_or(0);
    Some(AllocatorStats {
        allocated_bytes: bytes(stats.allocated_bytes),
        reserved_bytes: bytes(stats.reserved_bytes),
        peak_bytes: bytes(stats.max_allocated_bytes),
    })
}

/// Resets the peak of [`allocator_stats`]; does nothing on a CPU.
pub fn reset_allocator_peak(device: Device) {
    if let Device::Cuda(index) = device
        && let Some(index) = gpu_index(index)
    {
        // SAFETY: takes a plain number and throws nothing. Without such a GPU there is no peak to reset.
        unsafe { medvision_reset_peak(index) };
    }
}

/// libtorch's device index, which has 8 bits.
fn gpu_index(index: usize) -> Option<c_int> {
    i8::try_from(index).ok().map(c_int::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_that_is_not_there_has_no_figures() {
        for absent in [256, usize::MAX] {
            assert_eq!(allocator_stats(absent), None);
            reset_allocator_peak(Device::Cuda(absent));
        }
        if !tch::Cuda::is_available() {
            assert_eq!(allocator_stats(0), None);
            reset_allocator_peak(Device::Cuda(0));
        }
    }
}
