// What a quantized tensor was made from, and how: enough to make it again in a backward instead of keeping it until then.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/StorageImpl.h>
#include <c10/core/TensorImpl.h>
#include <c10/util/intrusive_ptr.h>

#include <memory>
#include <vector>

#include "../kernels/weights.h"

namespace truequant {

// The grid of an activation, or of a weight where there are `scales`.
struct Recipe {
  Grid grid{};
  Clip clip = kNone;
  Scheme scheme{};
  Rows rows{};
  std::vector<float> scales;
};

class Origin {
 public:
  // Of `made`, which was just made from `x`. Neither is kept alive.
  Origin(Recipe recipe, const at::Tensor& x, const at::Tensor& made);

  // Whether `x` shows elements of what was made, as they were made.
  bool made(const at::Tensor& x) const;

  // What elements `x` of what was made were made from, in the geometry of `x`; undefined where that is gone or overwritten.
  at::Tensor source_of(const at::Tensor& x) const;

  // Whether elements that lie on the grid stay as they are when they are quantized again: two-byte floats may not.
  bool is_idempotent() const { return dtype_ == at::kFloat; }

  // The elements that are made from `source`, without gaps.
  at::Tensor quantized(const at::Tensor& source) const;

 private:
  using Weak = c10::weak_intrusive_ptr<c10::StorageImpl>;

  Recipe recipe_;
  at::ScalarType dtype_;
  Weak made_, source_;  // `source_` is null where what was made took its memory, or lies otherwise
  int64_t offset_ = 0;
  uint32_t made_version_, source_version_ = 0;
  c10::VariableVersion counter_;
};

// How `made` was made from `x` by a kernel of one grid, or with the scales of rows.
std::shared_ptr<const Origin> origin(const Grid& grid, Clip clip, const at::Tensor& x, const at::Tensor& made);
std::shared_ptr<const Origin> origin(const Scheme& scheme, const Rows& rows, const float* scales, const at::Tensor& x,
                                     const at::Tensor& made);

}  // namespace truequant
