#include "linear.h"

#include <torch/csrc/autograd/grad_mode.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <ATen/SavedTensorHooks.h>
#include <ATen/ops/linear.h>

#include <memory>
#include <mutex>
#include <utility>

#include "autograd.h"
#include "node.h"

namespace truequant {
namespace {

using torch::autograd::edge_list;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

bool is_hooked() { return !at::SavedTensorDefaultHooks::get_tls_state().stack.empty(); }

// An operand that is made again from what it was made from, or kept where that is gone.
class Operand {
 public:
  Operand(const at::Tensor& x, bool wanted) {
    if (!wanted) return;
    origin_ = origin_of(x);
    at::Tensor source = origin_ != nullptr ? origin_->source_of(x) : at::Tensor();
    // What hooks give back may be kept by another forward than this one, a recomputation, in which the origin was there where
    // it is gone here, or the other way: both are right if it is quantized, once or again.
    const bool again = origin_ != nullptr && is_hooked();
    if (again && !origin_->is_idempotent()) source.reset();
    if (!source.defined() && !(again && origin_->is_idempotent())) origin_.reset();
    kept_ = SavedVariable(source.defined() ? source : x, false);
  }

  at::Tensor get(const torch::autograd::Edge& edge) const {
    const at::Tensor kept = kept_.unpack();
    if (origin_ == nullptr) return kept;
    at::Tensor made = origin_->quantized(kept);
    if (at::GradMode::is_enabled()) torch::autograd::impl::set_gradient_edge(made, edge);
    return made;
  }

  void release() { kept_.reset_data(); }

 private:
  SavedVariable kept_;
  std::shared_ptr<const Origin> origin_;
};

// The gradients of torch's own, from operands that are made again. Differentiable again.
struct LinearBackward final : torch::autograd::Node {
  LinearBackward(edge_list edges, const at::Tensor& x, const at::Tensor& weight, bool to_x, bool to_weight)
      : Node(std::move(edges)), x_(x, to_weight), weight_(weight, to_x), sizes_(x.sizes()), outputs_(weight.size(0)) {}

  std::string name() const override { return "LinearBackward"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    x_.release();
    weight_.release();
  }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(3);
    if (!grads[0].defined()) return result;
    const at::Tensor g = std::move(grads[0]).reshape({-1, outputs_});
    if (task_should_compute_output(0)) result[0] = g.mm(weight_.get(next_edge(1))).reshape(sizes_);
    if (task_should_compute_output(1)) result[1] = g.t().mm(x_.get(next_edge(0)).reshape({-1, sizes_.back()}));
    if (task_should_compute_output(2)) result[2] = g;  // summed over rows by the engine, as torch's own
    return result;
  }

 private:
  Operand x_, weight_;
  c10::SmallVector<int64_t, 5> sizes_;
  int64_t outputs_;
};

// Whether an operand that the backward reads can be made again.
bool gains(const at::Tensor& x, const at::Tensor& weight) {
  const std::shared_ptr<const Origin> of_x = origin_of(x), of_weight = origin_of(weight);
  return (weight.requires_grad() && of_x != nullptr) || (x.requires_grad() && of_weight != nullptr);
}

}  // namespace

at::Tensor linear_output(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, const ProductGrids* grids) {
  const bool differentiable = wants_gradient(x, weight, bias);
  at::Tensor y;
  {
    const at::AutoDispatchBelowAutograd below;
    if (grids != nullptr) y = product_of_codes(x, weight, bias, *grids);
    if (!y.defined() && differentiable && gains(x, weight)) y = at::linear(x, weight, bias);
  }
  if (y.defined() && differentiable) {
    set_node<LinearBackward>(y, torch::autograd::collect_next_edges(x, weight, bias), x, weight, x.requires_grad(),
                             weight.requires_grad());
  }
  return y;
}

}  // namespace truequant
