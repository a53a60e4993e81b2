// Which of libtorch's attention kernels may run, which tch does not bind.

#include <ATen/Context.h>

extern "C" {

// cuDNN's attention builds a plan for every new number of keys, some 40 ms each: once a token when decoding.
// libtorch prefers it on Hopper and later; flash attention takes its place.
void medvision_without_cudnn_attention() noexcept {
  try {
    at::globalContext().setSDPUseCuDNN(false);
  } catch (...) {
  }
}

}  // extern "C"
