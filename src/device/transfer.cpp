// Page-locked memory, which tch allocates only with a warning.

#include <ATen/core/Tensor.h>

#include <cstdio>

extern "C" {

// `*out` becomes `tensor` in page-locked memory, which a GPU reads while the CPU goes on; 0 where it could. No exception leaves.
int medvision_pin(const at::Tensor* tensor, at::Tensor** out, char* message, size_t capacity) noexcept {
  try {
    *out = new at::Tensor(tensor->pin_memory());
    return 0;
  } catch (const std::exception& error) {
    std::snprintf(message, capacity, "%s", error.what());
  } catch (...) {
    std::snprintf(message, capacity, "unknown error");
  }
  return 1;
}

}  // extern "C"
