// Statistics of libtorch's caching allocator, which tch does not bind.
//
// Only device-neutral headers: nothing here needs CUDA to compile or link.

#include <ATen/DeviceAccelerator.h>

#include <cstdint>

extern "C" {

struct medvision_allocator_stats {
  int64_t allocated_bytes;
  int64_t reserved_bytes;
  int64_t max_allocated_bytes;
};

// Fills `stats` for the accelerator with this index. Returns 0 on success. No exception leaves.
int medvision_allocator_stats(int device, medvision_allocator_stats* stats) noexcept {
  try {
    if (!at::accelerator::getAccelerator(false).has_value()) return 1;
    const auto all = at::accelerator::getDeviceStats(static_cast<c10::DeviceIndex>(device));
    const auto aggregate = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    stats->allocated_bytes = all.allocated_bytes[aggregate].current;
    stats->reserved_bytes = all.reserved_bytes[aggregate].current;
    stats->max_allocated_bytes = all.allocated_bytes[aggregate].peak;
    return 0;
  } catch (...) {
    return 1;
  }
}

// Resets the peak to the current allocation. Returns 0 on success. No exception leaves.
int medvision_reset_peak(int device) noexcept {
  try {
    if (!at::accelerator::getAccelerator(false).has_value()) return 1;
    at::accelerator::resetPeakStats(static_cast<c10::DeviceIndex>(device));
    return 0;
  } catch (...) {
    return 1;
  }
}

}  // extern "C"
