// Attention kernels of libtorch that tch does not bind.

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/_flash_attention_forward.h>

#include "shim.hpp"

extern "C" {

// cuDNN's attention builds a plan for every new number of keys, some 40 ms each: once per token when decoding.
// libtorch prefers it on Hopper and later; flash attention replaces it.
void medvision_without_cudnn_attention() noexcept {
  try {
    at::globalContext().setSDPUseCuDNN(false);
  } catch (...) {
  }
}

// Variable-length flash attention: queries `[rows, heads, dim]`, keys and values alike, in 16 bits on a GPU. `cu_seqlens_*`:
// cumulative lengths of the segments, i32 `[segments + 1]` from 0; `max_seqlen_*`: the longest segment. Causal: the last query
// of a segment attends to all of its keys, the one before it to one key less. `*out` becomes a new tensor of the queries' shape,
// tracked by autograd if enabled. Returns 0 on success, else 1 and a message. No exception leaves.
int medvision_flash_attention(const at::Tensor* q, const at::Tensor* k, const at::Tensor* v, const at::Tensor* cu_seqlens_q,
                              const at::Tensor* cu_seqlens_kv, int64_t max_seqlen_q, int64_t max_seqlen_kv, int causal,
                              at::Tensor** out, char* message, size_t capacity) noexcept {
  return guarded(message, capacity, [&] {
    auto made = at::_flash_attention_forward(*q, *k, *v, *cu_seqlens_q, *cu_seqlens_kv, max_seqlen_q, max_seqlen_kv, 0.0,
                                             causal != 0, false);
    *out = new at::Tensor(std::get<0>(std::move(made)));
  });
}

}  // extern "C"
