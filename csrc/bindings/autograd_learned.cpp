#include <ATen/TensorOperators.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/clamp_max.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/where.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <algorithm>

#include "autograd.h"
#include "node.h"
#include "tensors.h"

namespace truequant {
namespace {

using torch::autograd::edge_list;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

struct OnceDifferentiable final : torch::autograd::Node {
  explicit OnceDifferentiable(edge_list edges) : Node(std::move(edges)) {}
  std::string name() const override { return "OnceDifferentiable"; }
  variable_list apply(variable_list&&) override {
    TORCH_CHECK(false, "the gradient of fake quantization with a learned scale cannot be differentiated again");
  }
};

// Gradients of x, of the scales, and, for kOffset, of the offsets.
struct LearnedFakeQuantizeBackward final : torch::autograd::Node {
  LearnedFakeQuantizeBackward(edge_list edges, const at::Tensor& x, const LearnedGrid& grid)
      : Node(std::move(edges)), x_(x, false), grid_(grid), sizes_(grid.sizes) {}

  std::string name() const override { return "LearnedFakeQuantizeBackward"; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    x_.reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list result(num_outputs());
    at::Tensor g = std::move(grads[0]);
    if (!g.defined()) return result;
    const at::Tensor x = x_.unpack();
    const bool again = torch::autograd::compute_requires_grad(g);
    {
      const at::AutoDispatchBelowAutograd below;
      if (is_plain(g) && !is_watched() && g.scalar_type() == x.scalar_type() && g.sizes() == x.sizes()) by_kernel(g, x, result);
      else by_ops(g, x, result);
    }
    for (size_t k = 0; k < result.size(); ++k) {
      if (!task_should_compute_output(k)) result[k].reset();
      else if (again && result[k].defined()) set_node<OnceDifferentiable>(result[k], torch::autograd::collect_next_edges(g));
    }
    return result;
  }

 private:
  void by_kernel(at::Tensor g, const at::Tensor& x, variable_list& result) {
    if (g.strides() != x.strides()) {
      at::Tensor same = at::empty_like(x);
      same.copy_(g);
      g = std::move(same);
    }
    const LearnedGradients found = learned_gradients(g, x, grid_.channels);
    std::vector<float> scale(found.scale.size()), offset(found.offset.size());
    for (size_t k = 0; k < scale.size(); ++k) scale[k] = static_cast<float>(found.scale[k]) * grid_.factor;
    for (size_t k = 0; k < offset.size(); ++k) offset[k] = grid_.inward(k, static_cast<float>(found.offset[k])) ? static_cast<float>(found.offset[k]) : 0.0f;
    result[0] = found.x;
    result[1] = new_floats(scale, sizes_);
    if (result.size() > 2) result[2] = new_floats(offset, sizes_);
  }

  // The same by ops of torch's, whatever kind of tensor the gradient is; sums have no order then.
  void by_ops(const at::Tensor& g, const at::Tensor& x, variable_list& result) {
    const Channels& own = grid_.channels;
    const at::Tensor scale = new_floats(own.scale, sizes_), zero = new_floats(own.zero_point, sizes_), before = x.to(at::kFloat);
    const float low = own.clip == kRelu ? 0.0f : own.grid.low;
    at::Tensor v = before, passes = before.eq(before).logical_or(before.ne(before));
    if (own.clip != kNone) {
      v = own.clip == kRelu ? before.clamp_min(low) : at::clamp(before, low, own.grid.high);
      if (own.clip == kRelu) passes = v.le(low).logical_not();
      if (own.clip == kHardtanh) passes = before.le(low).logical_or(before.ge(own.grid.high)).logical_not();
      if (own.clip == kClamp) passes = before.ge(low).logical_and(before.le(own.grid.high));
    }
    const at::Tensor steps = v / scale, nothing = at::scalar_tensor(0.0, g.options());
    at::Tensor inside, slope;
    if (own.rule == kBinary) {
      const at::Tensor sign = v.lt(0).to(at::kFloat) * -2.0 + 1.0;
      inside = steps.round().abs().le(1);
      slope = at::where(inside, sign - steps, sign);
    } else {
      const at::Tensor position = steps + zero;
      inside = position.gt(own.grid.qmin).logical_and(position.lt(own.grid.qmax));
      at::Tensor code = at::clamp(steps.round() + zero, own.grid.qmin, own.grid.qmax);
      if (own.rule == kLearned) code = code - zero;
      slope = at::where(inside, code - (own.rule == kLearned ? steps : position), code);
    }
    const at::Tensor wide = g.to(at::kFloat);
    const auto summed = [&](at::Tensor terms) {
      const int64_t missing = x.dim() - static_cast<int64_t>(sizes_.size());
      for (int64_t k = x.dim() - 1; k >= 0; --k) {
        if (k < missing || sizes_[k - missing] == 1) terms = terms.sum({k}, k >= missing);
      }
      return terms;
    };
    const at::Tensor stays = own.grid.straight != 0 ? inside.logical_or(inside.logical_not()) : inside;
    result[0] = at::where(stays.logical_and(passes), g, nothing);
    result[1] = summed(wide * slope) * static_cast<double>(grid_.factor);
    if (result.size() < 3) return;
    const at::Tensor offset = summed(at::where(inside, at::scalar_tensor(0.0, wide.options()), wide));
    const at::Tensor at_top = new_floats(grid_.beyond, sizes_);  // +1: beyond the top, -1: beyond the bottom
    const at::Tensor outward = at_top.gt(0).logical_and(offset.gt(0)).logical_or(at_top.lt(0).logical_and(offset.lt(0)));
    result[2] = at::where(outward, at::scalar_tensor(0.0, offset.options()), offset);
  }

  SavedVariable x_;
  LearnedGrid grid_;
  std::vector<int64_t> sizes_;
};

// Gradient of a shift: each op of torch's that would have led to the scale, in its order.
struct ShiftBackward final : torch::autograd::Node {
  struct Slope {
    float gain, initial, factor;  // factor: exp(t), or 1
    bool inside;                  // the bounds of scales
  };
  ShiftBackward(edge_list edges, std::vector<Slope> slopes, at::IntArrayRef sizes)
      : Node(std::move(edges)), slopes_(std::move(slopes)), sizes_(sizes.vec()) {}

  std::string name() const override { return "ShiftBackward"; }

  variable_list apply(variable_list&& grads) override {
    variable_list result(1);
    if (!grads[0].defined()) return result;
    const bool again = torch::autograd::compute_requires_grad(grads[0]);
    {
      const at::AutoDispatchBelowAutograd below;
      const at::Tensor g = grads[0].to(at::kFloat).contiguous();
      const float* from = g.const_data_ptr<float>();
      std::vector<float> own(slopes_.size());
      for (size_t k = 0; k < own.size(); ++k) {
        const Slope& slope = slopes_[k];
        own[k] = slope.inside ? from[k] * slope.gain * slope.initial * slope.factor : 0.0f;
      }
      result[0] = new_floats(own, sizes_);
    }
    if (again) set_node<OnceDifferentiable>(result[0], torch::autograd::collect_next_edges(grads[0]));
    return result;
  }

 private:
  std::vector<Slope> slopes_;
  std::vector<int64_t> sizes_;
};

}  // namespace

at::Tensor scale_of_shift(const at::Tensor& initial, const at::Tensor& shift, float gain) {
  const bool differentiable = wants_gradient(shift, nullptr);
  const at::Tensor start = initial.contiguous(), moved = shift.detach().contiguous();
  const float *i = start.const_data_ptr<float>(), *t = moved.const_data_ptr<float>();
  const int64_t c = moved.numel();
  const bool falls = std::any_of(t, t + c, [](float v) { return v < 0; });
  const at::Tensor powers = falls ? at::exp(at::clamp_max(moved, 0.0)) : moved;
  const float* e = powers.const_data_ptr<float>();
  std::vector<float> scale(c);
  std::vector<ShiftBackward::Slope> slopes(differentiable ? c : 0);
  for (int64_t k = 0; k < c; ++k) {
    const float exact = i[k] * (t[k] < 0 ? e[k] : 1.0f + t[k]);
    const bool inside = exact >= kMinScale && exact <= kMaxScale;
    scale[k] = inside || exact != exact ? exact : exact < kMinScale ? kMinScale : kMaxScale;
    if (differentiable) slopes[k] = {1.0f / (i[k] * i[k]) * gain, i[k], t[k] < 0 ? e[k] : 1.0f, inside};
  }
  at::Tensor y = new_floats(scale, initial.sizes());
  if (differentiable) set_node<ShiftBackward>(y, torch::autograd::collect_next_edges(shift), std::move(slopes), shift.sizes());
  return y;
}

void record_learned(const at::Tensor& y, const at::Tensor& x, const at::Tensor& kept, const at::Tensor& scale,
                    const at::Tensor& offset, const LearnedGrid& grid) {
  edge_list edges = offset.defined() ? torch::autograd::collect_next_edges(x, scale, offset)
                                     : torch::autograd::collect_next_edges(x, scale);
  set_node<LearnedFakeQuantizeBackward>(y, std::move(edges), kept, grid);
}

}  // namespace truequant
