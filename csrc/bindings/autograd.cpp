#include "autograd.h"

#include <torch/csrc/autograd/saved_variable.h>

#include <ATen/ops/empty_like.h>

#include "node.h"
#include "tensors.h"

namespace truequant {
namespace {

using torch::autograd::edge_list;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

// Differentiable again: its own gradient is the same masking.
struct FakeQuantizeBackward final : torch::autograd::Node {
  FakeQuantizeBackward(edge_list edges, const at::Tensor& mask, at::IntArrayRef sizes, at::IntArrayRef strides,
                       std::shared_ptr<const Origin> origin = nullptr)
      : Node(std::move(edges)), origin(std::move(origin)), mask_(mask, false), masks_(mask.defined()), sizes_(sizes),
        strides_(strides) {}

  const std::shared_ptr<const Origin> origin;  // null where what was quantized was no tensor by itself

  std::string name() const override { return "FakeQuantizeBackward"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    mask_.reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(num_outputs());
    const at::Tensor g = std::move(grads[0]);
    if (!g.defined()) return result;
    at::Tensor d = g;
    if (masks_) {
      const at::Tensor mask = mask_.unpack();
      const bool again = torch::autograd::compute_requires_grad(g);
      d.reset();
      {
        const at::AutoDispatchBelowAutograd below;
        d = masked(g, mask, sizes_, strides_, !again && is_owned(g));
      }
      if (again) set_node<FakeQuantizeBackward>(d, torch::autograd::collect_next_edges(g), mask, sizes_, strides_);
    }
    for (size_t k = 0; k < result.size(); ++k) {
      if (task_should_compute_output(k)) result[k] = d;
    }
    return result;
  }

 private:
  SavedVariable mask_;
  bool masks_;
  c10::SmallVector<int64_t, 5> sizes_, strides_;
};

// The gradients of a quantized BatchNorm. Not differentiable again.
struct FakeQuantizedNormBackward final : torch::autograd::Node {
  FakeQuantizedNormBackward(edge_list edges, const at::Tensor& x, const at::Tensor& gamma, const at::Tensor& mask,
                            const Moments& moments)
      : Node(std::move(edges)), x_(x, false), gamma_(gamma, false), mask_(mask, false), mean_(moments.mean, false),
        invstd_(moments.invstd, false) {}

  std::string name() const override { return "FakeQuantizedNormBackward"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable* saved : {&x_, &gamma_, &mask_, &mean_, &invstd_}) saved->reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(3);
    at::Tensor g = std::move(grads[0]);
    if (!g.defined()) return result;
    const at::Tensor x = x_.unpack(), gamma = gamma_.unpack(), mask = mask_.unpack();
    const Moments moments{mean_.unpack(), invstd_.unpack()};
    TORCH_CHECK(is_plain(g) && !torch::autograd::compute_requires_grad(g),
                "the gradient of a BatchNorm fused with its quantizer cannot be differentiated again or mapped over; "
                "prepare the model with fusions=Fusions(norm=False)");
    {
      const at::AutoDispatchBelowAutograd below;
      if (g.sizes() != x.sizes() || g.strides() != x.strides()) {
        at::Tensor same = at::empty_like(x);
        same.copy_(g);
        g = std::move(same);
      }
      Runs runs{};
      TORCH_INTERNAL_ASSERT(runs_of(runs, x));
      const NormGradients found = norm_gradients(g, mask, x, runs, moments, gamma, task_should_compute_output(0), is_owned(g));
      result[0] = found.x;
      if (task_should_compute_output(1)) result[1] = found.gamma;
      if (task_should_compute_output(2)) result[2] = found.beta;
    }
    return result;
  }

 private:
  SavedVariable x_, gamma_, mask_, mean_, invstd_;
};

}  // namespace

bool wants_gradient(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c) {
  return torch::autograd::compute_requires_grad(a, b, c);
}

void record_norm(const at::Tensor& y, const at::Tensor& x, const at::Tensor& gamma, const at::Tensor& beta, const at::Tensor& mask,
                 const Moments& moments) {
  set_node<FakeQuantizedNormBackward>(y, torch::autograd::collect_next_edges(x, gamma, beta), x, gamma, mask, moments);
}

bool wants_gradient(const at::Tensor& a, const at::Tensor* b) {
  return b == nullptr ? torch::autograd::compute_requires_grad(a) : torch::autograd::compute_requires_grad(a, *b);
}

void record(const at::Tensor& y, const at::Tensor& a, const at::Tensor* b, const at::Tensor& mask,
            std::shared_ptr<const Origin> origin) {
  edge_list edges = b == nullptr ? torch::autograd::collect_next_edges(a) : torch::autograd::collect_next_edges(a, *b);
  set_node<FakeQuantizeBackward>(y, std::move(edges), mask, y.sizes(), y.strides(), std::move(origin));
}

std::shared_ptr<const Origin> origin_of(const at::Tensor& x) {
  const NodePointer node = x.is_view() ? x._base().grad_fn() : x.grad_fn();
  const auto* quantizer = dynamic_cast<const FakeQuantizeBackward*>(node.get());
  if (quantizer == nullptr || quantizer->origin == nullptr || !quantizer->origin->made(x)) return nullptr;
  return quantizer->origin;
}

}  // namespace truequant
