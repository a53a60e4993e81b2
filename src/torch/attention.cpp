// Which of libtorch's attention kernels may run, which tch does not bind.

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/_flash_attention_forward.h>

#include "shim.hpp"

extern "C" {

// cuDNN's attention builds a plan for every new number of keys, some 40 ms each: once a token when decoding.
// libtorch prefers it on Hopper and later; flash attention takes its place.
void medvision_without_cudnn_attention() noexcept {
  try {
    at::globalContext().setSDPUseCuDNN(false);
  } catch (...) {
  }
}

// Flash attention within runs of rows: queries `[rows, heads, dim]`, keys and values alike, in 16 bits on a GPU; `query_bounds`
// and `key_bounds` the runs' ends, i32 `[runs + 1]` from 0, and the longest run of each. Causal: the last query sees all keys, the
// one before it one key less. `*out` becomes a new tensor of the queries' shape, with a history where autograd records; 0 where it
// could. No exception leaves.
int medvision_flash_attention(const at::Tensor* q, const at::Tensor* k, const at::Tensor* v, const at::Tensor* query_bounds,
                              const at::Tensor* key_bounds, int64_t most_queries, int64_t most_keys, int causal,
                              at::Tensor** out, char* message, size_t capacity) noexcept {
  return guarded(message, capacity, [&] {
    auto made = at::_flash_attention_forward(*q, *k, *v, *query_bounds, *key_bounds, most_queries, most_keys, 0.0,
                                             causal != 0, false);
    *out = new at::Tensor(std::get<0>(std::move(made)));
  });
}

}  // extern "C"
