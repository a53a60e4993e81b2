// Autograd nodes with a backward function of the caller's, the fused AdamW step, and the backward of the fused RMSNorm, which
// tch does not bind.
//
// Only device-neutral headers: nothing here needs CUDA to compile or link. No exception leaves.

#include <ATen/core/Tensor.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/_fused_rms_norm_backward.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/variable.h>

#include <cstdio>
#include <memory>
#include <utility>
#include <vector>

#include "shim.hpp"

namespace {

using torch::autograd::variable_list;

// Fills `gradients`, one entry per input, with new tensors where `wanted`. Returns 0 on success, else 1 and a message.
using Backward = int (*)(
    void* closure, const at::Tensor* gradient, const bool* wanted, at::Tensor** gradients, size_t count,
    char* message, size_t capacity);
using Drop = void (*)(void* closure);

struct ClosureNode : torch::autograd::Node {
  ClosureNode(void* closure, Backward backward, Drop drop) : closure_(closure), backward_(backward), drop_(drop) {}
  ~ClosureNode() override { release(); }

  variable_list apply(variable_list&& gradients) override {
    const size_t count = num_outputs();
    variable_list result(count);
    if (gradients.empty() || !gradients[0].defined()) return result;
    TORCH_CHECK(closure_ != nullptr, "the graph was already used for a backward pass");
    auto wanted = std::make_unique<bool[]>(count);
    for (size_t i = 0; i < count; ++i) wanted[i] = task_should_compute_output(i);
    std::vector<at::Tensor*> made(count, nullptr);
    char message[512] = {0};
    const int failed =
        backward_(closure_, &gradients[0], wanted.get(), made.data(), count, message, sizeof message);
    for (size_t i = 0; i < count; ++i) {
      if (made[i] == nullptr) continue;
      result[i] = std::move(*made[i]);
      delete made[i];
    }
    TORCH_CHECK(failed == 0, message);
    return result;
  }

  void release_variables() override { release(); }

  std::string name() const override { return "medvision::Closure"; }

 private:
  void release() {
    if (closure_ != nullptr) drop_(std::exchange(closure_, nullptr));
  }

  void* closure_;
  Backward backward_;
  Drop drop_;
};

}  // namespace

extern "C" {

// Whether gradients are enabled on this thread.
int medvision_grad_enabled() noexcept { return c10::GradMode::is_enabled() ? 1 : 0; }

// `*result` becomes a new tensor with `output`'s values and a node: `closure` turns its gradient into the inputs' gradients.
// Owns `closure` in any case.
int medvision_attach(
    const at::Tensor* const* inputs, size_t count, const at::Tensor* output, void* closure, Backward backward,
    Drop drop, at::Tensor** result, char* message, size_t capacity) noexcept {
  auto* raw = new (std::nothrow) ClosureNode(closure, backward, drop);
  if (raw == nullptr) {
    drop(closure);
    std::snprintf(message, capacity, "out of memory");
    return 1;
  }
  return guarded(message, capacity, [&] {
    std::shared_ptr<ClosureNode> node(raw, torch::autograd::deleteNode);
    torch::autograd::edge_list edges;
    edges.reserve(count);
    for (size_t i = 0; i < count; ++i) edges.push_back(torch::autograd::impl::gradient_edge(*inputs[i]));
    node->set_next_edges(std::move(edges));
    auto made = std::make_unique<at::Tensor>(output->variable_data());
    torch::autograd::set_history(*made, node);
    *result = made.release();
  });
}

// Runs the backward pass from `output`, whose gradient is `gradient`; may run inside another one.
int medvision_backward(
    const at::Tensor* output, const at::Tensor* gradient, char* message, size_t capacity) noexcept {
  return guarded(message, capacity, [&] { torch::autograd::backward({*output}, {*gradient}); });
}

// Makes `gradient`, of the same shape, the accumulation buffer of the leaf `parameter`'s gradient.
int medvision_set_gradient(
    at::Tensor* parameter, const at::Tensor* gradient, char* message, size_t capacity) noexcept {
  return guarded(message, capacity, [&] { parameter->mutable_grad() = *gradient; });
}

struct medvision_adamw {
  double learning_rate;
  double beta1;
  double beta2;
  double weight_decay;
  double epsilon;
};

// Gradient of the input of the fused RMSNorm; `factor` is the second result of its forward.
int medvision_rms_norm_backward(
    const at::Tensor* gradient, const at::Tensor* input, const at::Tensor* factor, const at::Tensor* weight,
    at::Tensor** result, char* message, size_t capacity) noexcept {
  return guarded(message, capacity, [&] {
    c10::AutoGradMode no_grad(false);
    auto made = at::_fused_rms_norm_backward(
        gradient->contiguous(), *input, weight->sizes(), *factor, *weight, {true, false});
    *result = new at::Tensor(std::get<0>(std::move(made)));
  });
}

// One AdamW step in place; `step` is f32, on the parameters' device, and holds the step's number, from 1.
int medvision_adamw_step(
    at::Tensor* parameters, at::Tensor* gradients, at::Tensor* first, at::Tensor* second, at::Tensor* step,
    const medvision_adamw* settings, char* message, size_t capacity) noexcept {
  return guarded(message, capacity, [&] {
    c10::AutoGradMode no_grad(false);
    at::_fused_adamw_(
        {*parameters}, {*gradients}, {*first}, {*second}, {}, {*step}, settings->learning_rate, settings->beta1,
        settings->beta2, settings->weight_decay, settings->epsilon, /*amsgrad=*/false, /*maximize=*/false,
        std::nullopt, std::nullopt);
  });
}

}  // extern "C"
