// Page-locked memory, which tch allocates only with a warning.

#include <ATen/core/Tensor.h>

#include "shim.hpp"

extern "C" {

// `*out` becomes `tensor` in page-locked memory, from which copies are asynchronous. Returns 0 on success. No exception leaves.
int medvision_pin(const at::Tensor* tensor, at::Tensor** out, char* message, size_t capacity) noexcept {
  return guarded(message, capacity, [&] { *out = new at::Tensor(tensor->pin_memory()); });
}

}  // extern "C"
