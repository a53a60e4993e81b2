// libtorch's process groups over gloo, which tch does not bind. The wheel has no gloo headers: `stub/` declares what c10d's
// own headers mention of it.

#define USE_C10D_GLOO
#include <ATen/ATen.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include "shim.hpp"

namespace {

struct Group {
  c10::intrusive_ptr<c10d::Store> store;
  c10::intrusive_ptr<c10d::ProcessGroupGloo> gloo;
};

}  // namespace

extern "C" {

// Joins the group whose store is at host:port; `server` serves the store in this process. `interface` names a network
// interface, or is empty for the one that the machine's host name resolves to; `local` binds to the loopback interface.
int medvision_group_join(const char* host, uint16_t port, int server, int rank, int size, const char* interface, int local,
                         int64_t timeout_ms, void** group, char* message, size_t capacity) noexcept {
  return guarded(message, capacity, [&] {
    const std::chrono::milliseconds timeout(timeout_ms);
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = server != 0;
    options.numWorkers = size;
    // An external launcher (torchrun) may serve the store, which then does not count workers.
    options.waitWorkers = false;
    options.timeout = timeout;
    auto store = c10::make_intrusive<c10d::TCPStore>(host, options);
    auto own = c10::make_intrusive<c10d::PrefixStore>("medvision", store);
    auto settings = c10d::ProcessGroupGloo::Options::create(timeout);
    if (*interface != '\0') {
      settings->devices.push_back(c10d::ProcessGroupGloo::createDeviceForInterface(interface));
    } else if (local) {
      settings->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname("127.0.0.1"));
    } else {
      settings->devices.push_back(c10d::ProcessGroupGloo::createDefaultDevice());
    }
    auto gloo = c10::make_intrusive<c10d::ProcessGroupGloo>(own, rank, size, settings);
    *group = new Group{own, gloo};
  });
}

void medvision_group_leave(void* group) noexcept {
  try {
    delete static_cast<Group*>(group);
  } catch (...) {
  }
}

// Sums `tensor`, contiguous on the CPU, over all ranks, in place.
int medvision_group_sum(void* group, void* tensor, char* message, size_t capacity) noexcept {
  return guarded(message, capacity, [&] {
    std::vector<at::Tensor> tensors{*static_cast<at::Tensor*>(tensor)};
    static_cast<Group*>(group)->gloo->allreduce(tensors)->wait();
  });
}

// Copies rank 0's values of `tensor` to all ranks, in place.
int medvision_group_broadcast(void* group, void* tensor, char* message, size_t capacity) noexcept {
  return guarded(message, capacity, [&] {
    std::vector<at::Tensor> tensors{*static_cast<at::Tensor*>(tensor)};
    static_cast<Group*>(group)->gloo->broadcast(tensors)->wait();
  });
}

}  // extern "C"
